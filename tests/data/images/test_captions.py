"""Captioned images: COCO's and JourneyDB's layouts, and what is missing from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.data.images.captions import COCO, JourneyDB
from neural_rdm.data.images.midjourney import without_flags
from tests.helpers import shared


def coco(root: Path, split: str = "train2017", count: int = 4, captions: int = 5) -> Path:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images = [{"id": 7 * i, "file_name": f"{i:012d}.jpg"} for i in range(count)]
    for i, image in enumerate(images):
        Image.new("RGB", (24, 20), (10 * i, 0, 0)).save(root / split / image["file_name"])
    said = [
        {"id": 100 * i + j, "image_id": 7 * i, "caption": f" picture {i}, said {j} "}
        for i in range(count)
        for j in reversed(range(captions))
    ]
    (root / "annotations" / f"captions_{split}.json").write_text(json.dumps({"images": images, "annotations": said}))
    return root


def test_one_of_five_captions_is_drawn_by_position(tmp_path: Path) -> None:
    coco(coco(tmp_path), "val2017", 3)
    data = COCO(tmp_path, image_size=8, batch_size=2)
    data.configure(seed=1)
    assert (data.train_size, data.val_size) == (4, 3)
    drawn = [data.train_set.load(2, key)["caption"] for key in range(60)]
    assert set(drawn) == {f"picture 2, said {j}" for j in range(5)}
    assert data.train_set.load(2, 5)["caption"] == drawn[5]
    sample = data.val_set.load(1, 17)
    assert sample["caption"] == "picture 1, said 0"
    assert sample["x"].shape == (3, 8, 8)
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch["caption"], list)
    assert len(batch["caption"]) == 2
    moved = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert moved["caption"] == batch["caption"]


def test_prompts_are_fixed_validation_captions(tmp_path: Path) -> None:
    coco(coco(tmp_path), "val2017", 30)
    prompts = []
    for seed in (0, 9):
        data = COCO(tmp_path, image_size=8, batch_size=2)
        data.configure(seed=seed)
        prompts.append(data.prompts(6))
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == 6
    assert all(p.endswith("said 0") for p in prompts[0])


def test_a_few_missing_images_are_replaced_and_listed_and_many_are_refused(tmp_path: Path) -> None:
    coco(tmp_path, count=200, captions=1)
    (tmp_path / "train2017" / f"{3:012d}.jpg").unlink()
    data = COCO(tmp_path, image_size=8, batch_size=200)
    data.report_folder = tmp_path
    assert data.train_size == 200
    batch = next(iter(data.train_dataloader()))
    assert len(set(batch["caption"])) == 199
    assert "picture 3, said 0" not in batch["caption"]
    path = tmp_path / "train2017" / f"{3:012d}.jpg"
    assert f"train,3,{path},No such file or directory," in (tmp_path / "bad_samples.csv").read_text()
    for i in range(4, 8):
        (tmp_path / "train2017" / f"{i:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"5 of 200 annotated images are not in .*such as 000000000003\.jpg"):
        COCO(tmp_path, image_size=8, batch_size=2).setup()
    COCO(tmp_path, image_size=8, batch_size=2, max_bad_fraction=0.03).setup()
    COCO(tmp_path, image_size=8, batch_size=2, limit=3).setup()


def test_journeydb_prefers_the_caption_and_removes_flags(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    (folder / "imgs" / "000").mkdir(parents=True)
    lines: list[dict[str, Any]] = [
        {"img_path": "./000/a.jpg", "prompt": "a cat --ar 3:2 --v 4", "Task2": {"Caption": "A cat sits."}},
        {"img_path": "./000/b.jpg", "prompt": "a dog, oil --ar 16:9 --v 5"},
    ]
    (folder / "train_anno.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    for name in "ab":
        Image.new("RGB", (9, 9)).save(folder / "imgs" / "000" / f"{name}.jpg")
    data = JourneyDB(tmp_path, image_size=8, batch_size=1)
    data.setup()
    assert [data.train_set.load(i, 0)["caption"] for i in range(2)] == ["A cat sits.", "a dog, oil"]
    assert data.prompts(5) is not None
    (folder / "train_anno.jsonl").write_text('{"img_path": 3}')
    with pytest.raises(DataError, match=r"1 of 1 annotations cannot be read; the first: .*train_anno\.jsonl:1: not an"):
        JourneyDB(tmp_path, batch_size=1).setup()


def test_lines_that_are_no_annotations_are_listed(tmp_path: Path) -> None:
    (tmp_path / "train" / "imgs").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "imgs" / "a.jpg")
    good = [json.dumps({"img_path": "./a.jpg", "prompt": f"a cat {i}", "Task2": None}).encode() for i in range(3)]
    bad = [
        b'{"img_path": "./a.jpg", "prompt": "caf\xe9"}',
        b"[]",
        b'{"img_path": "./a.jpg", "prompt": null}',
        b"[" * 9999,
    ]
    file = tmp_path / "train" / "train_anno.jsonl"
    half = json.dumps({"img_path": "./imgs/a.jpg", "prompt": "half \ud83d"}).encode()
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([*good, *bad, b"", half]))
    data = JourneyDB(tmp_path, image_size=8, batch_size=1, max_bad_fraction=0.5)
    data.setup()
    assert data.train_set.load(0, 0)["caption"] == "half ?"
    assert [error.path for error in data.train_set.left_out] == [f"{file}:{n}" for n in (4, 5, 6, 7)]


def test_a_caption_of_no_image_is_left_out(tmp_path: Path) -> None:
    file = coco(tmp_path) / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["image_id"] = 999
    file.write_text(json.dumps(content))
    data = COCO(tmp_path, image_size=8, batch_size=1)
    data.setup()
    assert [error.reason for error in data.train_set.left_out] == [
        "caption 4 is of image 999, which the file does not list"
    ]
    assert len(data.train_set.captions(0)) == 4
    for broken in (b"{", b"[]", b'{"images": [3], "annotations": []}', b"\xff\xfe", b"[" * 9999):
        file.write_bytes(broken)
        with pytest.raises(DataError, match="is not an annotation file of COCO captions"):
            COCO(tmp_path, image_size=8, batch_size=1).setup()


def test_annotations_of_coco_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    file = coco(tmp_path, count=40) / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][7]["caption"] = None
    del content["annotations"][8]["id"]
    file.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    data = COCO(tmp_path, image_size=8, batch_size=1, max_bad_fraction=0.05)
    assert data.train_size == 40
    assert [(error.path, error.reason) for error in data.train_set.left_out] == [
        (f"{file}:annotations[7]", "its caption is null, not a text"),
        (f"{file}:annotations[8]", "it lacks 'id'"),
    ]
    assert len(data.train_set.captions(1)) == 3
    content["annotations"] += [3, None, {"id": "x"}, {"id": 1, "image_id": [], "caption": ""}] * 3
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"14 of 212 annotations cannot be read; the first: .*caption is null"):
        COCO(tmp_path, image_size=8, batch_size=1, max_bad_fraction=0.05).setup()


def test_captions_of_no_image_do_not_stop_a_limited_run(tmp_path: Path) -> None:
    file = coco(tmp_path, count=400, captions=1) / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] += [{"id": i, "image_id": 999, "caption": "x"} for i in range(3)]
    file.write_text(json.dumps(content))
    data = COCO(tmp_path, image_size=8, batch_size=4, limit=40)
    data.report_folder = tmp_path
    assert len(next(iter(data.train_dataloader()))["caption"]) == 4
    assert (tmp_path / "bad_samples.csv").read_text().count("which the file does not list") == 3


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a fox --v 4 --ar 3:2", "a fox"), ("a well-known fox", "a well-known fox"), ("--test x", ""),
        ("fox—like creature", "fox—like creature"), ("fox —ar 2:3", "fox"), ("a -- b", "a -- b"),
    ],
)  # fmt: skip
def test_flags(prompt: str, plain: str) -> None:
    assert without_flags(prompt) == plain


@pytest.mark.parametrize("kind", [COCO, JourneyDB])
def test_wrong_roots_show_the_layout(kind: type[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no folder .*ROOT/train"):
        kind(tmp_path / "absent").setup()
    with pytest.raises(DataError, match=r"(?s)ROOT/train"):
        kind(tmp_path).setup()
    with pytest.raises(DataError) as error:
        kind(tmp_path).setup()
    assert "see `Captioned`" not in str(error.value)
    assert "\n    ROOT" not in str(error.value)


def test_real_coco_images() -> None:
    data = COCO(shared("data/coco"), image_size=64, batch_size=8)
    data.setup()
    assert (data.train_size, data.val_size) == (80, 79)
    sample = data.train_set.load(0, 0)
    assert sample["x"].shape == (3, 64, 64)
    assert sample["x"].std() > 0.1
    assert len(sample["caption"].split()) > 4
    assert len(set(data.prompts(10) or [])) == 10


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("\u2014a hero\u2014 in the rain", "\u2014a hero\u2014 in the rain"),
        ("a man \u2014no hat\u2014 walking --v 4", "a man \u2014no hat\u2014 walking"),
        ("a fox \u2014ar 16:9 \u2014v 5", "a fox"),
        ("a fox \u2013ar 16:9", "a fox"),
        ("a fox --v4 --q2", "a fox"),
        ("a fox --ar 3:2 , golden hour", "a fox"),
        ("a fox --no trees, cars --stylize 750", "a fox"),
        ("a fox \u2014niji", "a fox"),
        ("a fox --weird-new-flag 7", "a fox --weird-new-flag 7"),
        ("a fox --newflag 7 --other", "a fox"),
        ("a cat --the best one-- on a mat", "a cat --the best one-- on a mat"),
        ("well-known --- and so on", "well-known --- and so on"),
        ("a van \u2014 volkswagen \u2014 at dusk", "a van \u2014 volkswagen \u2014 at dusk"),
        ("--ar 16:9 --v 5", ""),
        ("\u2014ar 2:3", ""),
    ],
)
def test_only_flags_are_removed(prompt: str, plain: str) -> None:
    assert without_flags(prompt) == plain


def test_empty_captions_are_left_out_and_counted(tmp_path: Path) -> None:
    """An empty caption is the null prompt: its picture would be trained without a text."""
    folder = tmp_path / "train"
    folder.mkdir()
    said = [("a fox", None), ("--ar 16:9 --v 5", None), ("--v 5", "  "), ("--v 5", "a dog"), ("\u200b", None)]
    entries = [{"img_path": f"./0/{i}.jpg", "prompt": p, "Task2": {"Caption": c}} for i, (p, c) in enumerate(said)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, entries)))
    found = JourneyDB.read(folder, folder / "a.jsonl")
    assert found.captions == {"./0/0.jpg".removeprefix("./"): ["a fox"], "0/3.jpg": ["a dog"]}
    assert (len(found.left_out), found.annotations) == (3, 5)
    assert all("caption is empty" in str(error) for error in found.left_out)
    images = [{"id": 0, "file_name": "0.jpg"}]
    annotations = [{"id": n, "image_id": 0, "caption": text} for n, text in enumerate(["a kite", " ", ""])]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    coco_found = COCO.read(tmp_path, tmp_path / "c.json")
    assert coco_found.captions == {"0.jpg": ["a kite"]}
    assert len(coco_found.left_out) == 2


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret.jpg", "a/../../b.jpg"])
def test_annotations_name_no_image_outside_of_their_folder(name: str, tmp_path: Path) -> None:
    content = {"images": [{"id": 1, "file_name": name}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="lies outside of the folder"):
        COCO.read(tmp_path, tmp_path / "coco.json")
    (tmp_path / "anno.jsonl").write_text(json.dumps({"img_path": name, "prompt": "a kite"}) + "\n")
    found = JourneyDB.read(tmp_path, tmp_path / "anno.jsonl")
    assert (found.captions, found.annotations) == ({}, 1)
    assert "lies outside of the folder" in str(found.left_out[0])
