"""Samples out of tar shards: what they hold, their order over workers, ranks and resumes, and what cannot be read."""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path
from traceback import clear_frames
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import BrokenSample, ConfigError, DataError
from neural_rdm.data.base import DataModule
from neural_rdm.data.images.captions import COCO
from neural_rdm.data.tars.shards import MAX_IMAGE, MAX_TEXT, TarShards, shuffled_by_shards
from tests.data.tar_files import jpeg, write_shards, write_tar
from tests.helpers import shared


def module(root: Path, **settings: Any) -> TarShards:
    return TarShards(root, **{"image_size": 8, "batch_size": 4, "flip": False} | settings)


def at(data: DataModule, step: int = 0, world_size: int = 1, rank: int = 0, folder: Path | None = None) -> DataModule:
    data.configure(3)
    data.trainer = SimpleNamespace(
        global_step=step,
        world_size=world_size,
        global_rank=rank,
        strategy=None,
        default_root_dir=folder or data.root,
    )
    return data


def seen(data: DataModule, count: int) -> list[tuple[str, float]]:
    """(caption, first pixel) of the samples of some batches."""
    batches = list(islice(data.train_dataloader(), count))
    return [(c, float(x[0, 0, 0])) for b in batches for c, x in zip(b["caption"], b["x"], strict=True)]


def test_texts_classes_and_fields_of_a_json(tmp_path: Path) -> None:
    for ending in ("txt", "cls", "json"):
        write_shards(tmp_path / ending, [3, 2], ending)
    texts = module(tmp_path / "txt")
    texts.setup()
    assert (texts.train_size, texts.val_size, texts.num_classes) == (5, 0, None)
    sample = texts.train_set.load(3, 0)
    assert sample.keys() == {"x", "caption"}
    assert sample["caption"] == "picture 3"
    assert (sample["x"].dtype, sample["x"].shape) == (torch.float32, (3, 8, 8))
    assert (sample["x"] == 3 / 127.5 - 1).all()
    assert sorted(texts.prompts(5)) == [f"picture {i}" for i in range(5)]

    classes = module(tmp_path / "cls")
    classes.setup()
    assert classes.num_classes == 3
    assert classes.prompts(1) is None
    assert [classes.train_set.load(i, 0)["y"] for i in range(5)] == [0, 1, 2, 0, 1]

    fields = module(tmp_path / "json", caption_key="said", val="train-000001.tar", train="train-000000.tar")
    fields.setup()
    assert {fields.train_set.load(2, key)["caption"] for key in range(20)} == {"picture 2", "again 2"}
    assert [fields.val_set.load(1, key)["caption"] for key in range(3)] == ["picture 4"] * 3
    assert set(fields.prompts(9)[:2]) == {"picture 3", "picture 4"}  # then the second captions
    assert len(set(fields.prompts(9))) == len(fields.prompts(9)) > 2


def test_flips_are_keyed_by_the_position(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(file, "PNG")
    write_tar(tmp_path / "a.tar", [("1.png", file.getvalue()), ("1.cls", b"0")])
    write_tar(tmp_path / "b.tar", [("1.png", file.getvalue()), ("1.cls", b"0")])
    data = module(tmp_path, train="a.tar", val="b.tar", flip=True)
    data.setup()
    corners = [float(data.train_set.load(0, key)["x"][0, 0, 0]) for key in range(50)]
    assert set(corners) == {-1.0, np.float32(7 / 127.5) - np.float32(1)}
    assert corners == [float(data.train_set.load(0, key)["x"][0, 0, 0]) for key in range(50)]
    assert {float(data.val_set.load(0, key)["x"][0, 0, 0]) for key in range(50)} == {-1.0}


def test_a_pickle_beside_an_image_is_never_read(tmp_path: Path) -> None:
    bomb = b"cposix\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    members = [("1.jpg", jpeg()), ("1.pyd", bomb), ("1.pickle", bomb), ("1.pth", bomb), ("1.txt", b"a")]
    write_tar(tmp_path / "a.tar", members)
    data = module(tmp_path)
    data.setup()
    assert data.train_set.load(0, 0)["caption"] == "a"
    assert {p.name for p in tmp_path.iterdir()} == {"a.tar", ".shards"}


@pytest.mark.parametrize("shards_at_once", [None, 2])
def test_a_resume_in_the_middle_of_an_epoch_with_workers_and_other_ranks(
    tmp_path: Path, shards_at_once: int | None
) -> None:
    write_shards(tmp_path, [5, 1, 7, 6, 4])  # 23 samples, 6 batches of 4: a batch spans epochs

    def data(**settings: Any) -> TarShards:
        return module(tmp_path, shards_at_once=shards_at_once, **settings)

    whole = seen(at(data()), 12)
    assert all(abs(x - (int(c.split()[1]) / 127.5 - 1)) < 1e-6 for c, x in whole)  # each with its own caption
    for epoch in range(2):
        assert sorted(whole[23 * epoch : 23 * (epoch + 1)]) == sorted(set(whole))
    assert whole[:23] != whole[23:46]
    assert seen(at(data(num_workers=2), step=3), 6) == whole[12:36]
    for world in (2, 4):
        each = [seen(at(data(), 3, world, rank), 9) for rank in range(world)]
        size = 4 // world
        joined = [pair for b in range(9) for rank in each for pair in rank[b * size : (b + 1) * size]]
        assert joined == whole[12:48]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 6), min_size=1, max_size=7),
    at_once=st.integers(1, 8),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 5),
)
def test_every_sample_comes_once_and_from_few_shards_at_a_time(
    counts: list[int], at_once: int, seed: int, epoch: int
) -> None:
    ends = np.cumsum(counts)
    order = shuffled_by_shards(ends, at_once, seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    assert (order == shuffled_by_shards(ends, at_once, seed, epoch)).all()
    visited = np.searchsorted(ends, order, side="right")
    spans = [(visited == shard).nonzero()[0] for shard in set(visited.tolist())]
    assert all(sum(span[0] <= place <= span[-1] for span in spans) <= at_once for place in range(len(order)))


def test_orders_differ_by_epoch_and_seed(tmp_path: Path) -> None:
    write_shards(tmp_path, [4] * 10)
    orders = set()
    for seed in (0, 1):
        data = module(tmp_path, shards_at_once=3)
        data.configure(seed)
        orders |= {tuple(data.order(epoch).tolist()) for epoch in range(3)}
    assert len(orders) == 6
    blocks = [sorted({i // 4 for i in order[:12]}) for order in orders]
    assert all(len(block) == 3 for block in blocks)
    assert len({tuple(block) for block in blocks}) > 1


def broken_set(root: Path) -> TarShards:
    """A shard of 9 samples, of which only b"9" can be read."""
    good = jpeg(9)
    members = [
        ("1.jpg", good[:-200]), ("1.txt", b"cut"), ("2.jpg", good), ("3.jpg", good), ("3.txt", b"caf\xe9"),
        ("4.jpg", good), ("4.jpg", good), ("4.txt", b"twice"), ("5.txt", b"no image"), ("6.jpg", b""), ("6.txt", b"x"),
        ("7.jpg", b"not an image"), ("7.txt", b"x"), ("8.jpg", good), ("8.txt", b" "), ("9.jpg", good), ("9.txt", b"x"),
    ]  # fmt: skip
    write_tar(root / "a.tar", members)
    data = module(root)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (0, r"a\.tar!1: .*(?i:truncated)"), (1, r"a\.tar!2: has no txt"), (2, r"a\.tar!3: its txt cannot be read"),
        (3, r"a\.tar!4: has its image \(jpg, jpeg, png, webp\) twice"), (4, r"a\.tar!5: has no image"),
        (5, r"a\.tar!6: .*empty"), (6, r"a\.tar!7: .*not an image"), (7, r"a\.tar!8: its txt .*the caption is empty"),
    ],
)  # fmt: skip
def test_a_broken_sample_names_its_shard_and_key(tmp_path: Path, index: int, message: str) -> None:
    data = broken_set(tmp_path)
    with pytest.raises(BrokenSample, match=message):
        data.train_set.load(index, 0)


def test_what_is_whole_beside_broken_samples_is_read(tmp_path: Path) -> None:
    data = broken_set(tmp_path)
    assert data.train_set.load(8, 0)["caption"] == "x"
    assert set(data.prompts(99)) == {"cut", "twice", "no image", "x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"said": 3}', "is no text"), (b'{"said": []}', "is no text"), (b'{"said": ["a", null]}', "is no text"),
        (b'{"other": "a"}', "its json has no said"), (b"[1]", "cannot be read"), (b"{", "cannot be read"),
        (b"[" * 100_000, "cannot be read"), (b'{"said": "' + b"a" * MAX_TEXT + b'"}', "is the most"),
        (b"3", "cannot be read"),
    ],
)  # fmt: skip
def test_a_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    write_tar(tmp_path / "a.tar", [("d/1.jpg", jpeg()), ("d/1.json", content)])
    data = module(tmp_path, caption_key="said")
    data.setup()
    with pytest.raises(BrokenSample, match=rf"a\.tar!d/1: .*{message}"):
        data.train_set.load(0, 0)


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    bomb = io.BytesIO()
    Image.new("1", (200, 200)).save(bomb, "PNG")
    write_tar(tmp_path / "a.tar", [("1.png", bomb.getvalue()), ("1.txt", b"bomb"), ("2.png", jpeg()), ("2.txt", b"x")])
    data = module(tmp_path)
    data.setup()
    with pytest.raises(BrokenSample, match=r"a\.tar!1: .*decompression bomb"):
        data.train_set.load(0, 0)
    data.train_set.table.members[1, 0, 1] = MAX_IMAGE + 1
    with pytest.raises(BrokenSample, match=f"{MAX_IMAGE} is the most"):
        data.train_set.load(1, 0)
    data.train_set.table.members[1, 0, 1] = MAX_IMAGE
    with pytest.raises(BrokenSample, match="the shard ends within its image"):
        data.train_set.load(1, 0)
    (tmp_path / "a.tar").unlink()
    with pytest.raises(BrokenSample, match=r"a\.tar!2: No such file"):
        data.train_set.load(1, 0)


def test_names_and_labels_that_are_none_are_printed_and_counted(tmp_path: Path) -> None:
    good = jpeg()
    members = [("\udce4.jpg", good), ("1.jpg", good), ("1.cls", b"cat"), ("2.jpg", good), ("2.cls", b"1")]
    write_tar(tmp_path / "a.tar", members)
    data = module(tmp_path)
    data.setup()
    assert data.num_classes == 2
    for index, message in ((0, r"a\.tar!\\xe4: has no cls"), (1, r"a\.tar!1: has no cls that is one number")):
        with pytest.raises(BrokenSample, match=message) as error:
            data.train_set.load(index, 0)
        str(error.value).encode()  # can be printed


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_and_lists_what_it_could_not_read(tmp_path: Path, workers: int) -> None:
    members = [m for i in range(40) for m in ((f"{i:02d}.jpg", jpeg(i)), (f"{i:02d}.txt", b"x"))]
    members[6] = ("03.jpg", b"damaged")
    write_tar(tmp_path / "a.tar", members)
    data = at(module(tmp_path, max_bad_fraction=0.05, num_workers=workers), folder=tmp_path / "run")
    assert len(seen(data, 20)) == 80
    listed = (tmp_path / "run" / "bad_samples.csv").read_text(encoding="utf-8").splitlines()
    assert len(listed) == 2
    assert "a.tar!03" in listed[1]
    strict = at(module(tmp_path, max_bad_fraction=0.0, num_workers=workers), folder=tmp_path / "strict")
    with pytest.raises(DataError, match=r"a\.tar!03") as error:
        seen(strict, 20)
    clear_frames(error.tb)  # they hold the loader in a cycle, and collecting that makes its workers wait for 5 s


def test_sets_that_cannot_work_are_refused_at_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "none.tar", [])
    write_tar(tmp_path / "text.tar", [("1.txt", b"a"), ("2.txt", b"b"), ("2.jpg", jpeg())])
    write_tar(tmp_path / "apart.tar", [("1.jpg", jpeg()), ("2.jpg", jpeg()), ("1.txt", b"a"), ("2.txt", b"b")])
    write_shards(tmp_path, [3], "cls", "class")
    write_shards(tmp_path, [3], "txt", "word")
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"train": "none.tar"}, "1 training shards hold no samples"),
        ({"train": "class-*", "num_classes": 2}, r"class-000000\.tar!000002 is of class 2.*pass data\.num_classes=3"),
        ({"train": "word-*", "num_classes": 2}, r"data\.num_classes=2, but most samples of .*word.* have no cls"),
        ({"train": "word-*", "val": "class-*"}, "do not both have captions"),
        ({"train": "*-*", "val": "class-*"}, r"data\.train and data\.val both name .*class-000000\.tar"),
    ]
    for settings_, message in refusals:
        with pytest.raises((DataError, ConfigError), match=message):
            module(tmp_path, **settings_).setup()
    for name in ("text", "apart"):
        with pytest.raises(DataError, match=r"most of the . samples in .* have no image.*such as .*!1\. .*--sort=name"):
            module(tmp_path, train=f"{name}.tar").setup()
    with pytest.raises(DataError, match=r"(?s)no folder .*ROOT/\*\.tar"):
        module(tmp_path / "absent").setup()
    for key in ("image_size", "num_classes", "shards_at_once"):
        with pytest.raises(ConfigError, match=f"{key}=0 must be above 0"):
            module(tmp_path, **{key: 0})


def test_the_same_samples_as_from_the_folder_they_were_packed_from(tmp_path: Path) -> None:
    """Real COCO images with their captions: pixels and captions equal those of `data=coco` bit for bit."""
    folder = COCO(shared("data/coco"), image_size=64, batch_size=8, flip=True)
    folder.setup()
    members = []
    for i in range(0, 80, 4):
        said = list(folder.train_set.captions(i))
        path = Path(folder.train_set.path(i))
        members += [(path.name, path.read_bytes()), (f"{path.stem}.json", json.dumps({"captions": said}).encode())]
    write_tar(tmp_path / "a.tar", members)
    shards = TarShards(tmp_path, caption_key="captions", image_size=64, batch_size=8, flip=True)
    shards.setup()
    for place, i in enumerate(range(0, 80, 4)):
        ours, theirs = shards.train_set.load(place, 7 * i), folder.train_set.load(i, 7 * i)
        assert torch.equal(ours["x"], theirs["x"])
        assert ours["caption"] == theirs["caption"]


def test_a_wildcard_never_trains_on_what_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for prefix in ("set-train", "set-val", "set-test", "val/0"):
        write_shards(tmp_path, [2], prefix=prefix)
    data = TarShards(tmp_path, train="**/*.tar", val="set-val-*.tar", image_size=8, batch_size=1)
    assert (data.train_size, data.val_size) == (2, 2)
    assert "3 shards such as set-test-000000.tar are held out by their names" in capsys.readouterr().out
    (tmp_path / "set-train-000000.tar").unlink()
    with pytest.raises(DataError, match="nothing to train on: its 2 shards such as set-test"):
        TarShards(tmp_path, image_size=8, batch_size=1).setup()
