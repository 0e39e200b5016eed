"""`python -m neural_rdm.prepare`: what it finds in every layout, and small parts of them that load like the whole."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import DataError
from neural_rdm.data.base import DataModule
from neural_rdm.data.images.captions import JourneyDB
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.videos.datasets import UCF101, TaichiHD
from neural_rdm.prepare import _experiments, examine, prepare
from neural_rdm.runs import build
from tests.data.images.test_captions import coco
from tests.data.tar_files import jpeg, write_tar
from tests.data.videos.test_datasets import frames
from tests.helpers import shared
from tests.test_preview import _own_cache, composed  # noqa: F401  (a fixture)


def picture(path: Path, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 255, (*size[::-1], 3), np.uint8)).save(path)


def class_folders(root: Path) -> Path:
    for split, count in (("train", 6), ("val", 4)):
        for label in ("n00000001", "n00000002"):
            for i in range(count):
                picture(root / split / label / f"{i}.png")
    (root / "words.txt").write_text("n00000001\tcat\n")
    return root


def flat_val(root: Path) -> Path:
    """Tiny-ImageNet's layout: labels of the validation images in a list."""
    for label in ("n00000001", "n00000002"):
        for i in range(6):
            picture(root / "train" / label / "images" / f"{label}_{i}.png")
    lines = []
    for i in range(8):
        picture(root / "val" / "images" / f"val_{i}.png")
        lines.append(f"val_{i}.png\tn0000000{1 + i % 2}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def journeydb(root: Path) -> Path:
    for split, count in (("train", 6), ("valid", 4)):
        lines = []
        for i in range(count):
            picture(root / split / "imgs" / f"00{i % 2}" / f"{i}.png")
            entry = {"img_path": f"./00{i % 2}/{i}.png", "prompt": f"a fox,\u2028no. {i} --ar 3:2"}
            lines.append(json.dumps(entry, ensure_ascii=False))  # U+2028 ends no line of the file
        (root / split / f"{split}_anno.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def sky(root: Path) -> Path:
    for split, count in (("sky_train", 4), ("sky_test", 3)):
        for i in range(count):
            frames(root / split / f"v{i}" / f"v{i}_1", 6)
            frames(root / split / f"v{i}" / f"v{i}_1" / "below", 5)
    return root


def taichi(root: Path) -> Path:
    lines = ["video_id,start,end,bbox,fps,width,height,partition"]
    for split, count in (("train", 4), ("test", 3)):
        for i in range(count):
            frames(root / split / f"id.{i}#000010#0000{20 + i}", 6)
            lines.append(f"id.{i},10,{20 + i},1-1-2-2,25,9,9,{split}")
    (root / "taichi-metadata.csv").write_bytes("\r\n".join([*lines, ""]).encode())
    return root


def ucf(root: Path) -> Path:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_bytes(b"1 Archery\r\n2 Bowling\r\n")
    train, test = [], []
    for number, label in enumerate(("Archery", "Bowling"), start=1):
        for i in range(5):
            name = f"v_{label}_g0{i}_c01"
            frames(root / "UCF-101" / label / name, 6)
            if i < 3:
                train.append(f"{label}/{name}.avi {number}\r\n")
            else:
                test.append(f"{label}/{name}.avi\r\n")
    for split in (1, 2, 3):
        (lists / f"trainlist0{split}.txt").write_bytes("".join(train).encode())
        (lists / f"testlist0{split}.txt").write_bytes("".join(test).encode())
    return root


def two_splits(root: Path) -> Path:
    return coco(coco(root), "val2017", 4)


#: choice -> what makes its layout, samples of (train, val), and of a part with two a class or split
LAYOUTS: dict[str, tuple[str, Callable[[Path], Path], tuple[int, int], tuple[int, int]]] = {
    "classes": ("image_folder", class_folders, (12, 8), (4, 4)),
    "tiny": ("imagenet", flat_val, (12, 8), (4, 4)),
    "coco": ("coco", two_splits, (4, 4), (2, 2)),
    "journeydb": ("journeydb", journeydb, (6, 4), (2, 2)),
    "sky": ("sky", sky, (8, 6), (2, 2)),
    "taichi": ("taichi", taichi, (4, 3), (2, 2)),
    "ucf101": ("ucf101", ucf, (6, 4), (4, 4)),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def arguments(choice: str, root: Path) -> list[str]:
    clips = ["data.num_frames=3", "data.frame_interval=1"] if choice in ("sky", "taichi", "ucf101") else []
    return [f"data={choice}", f"data.root={root}", "data.image_size=8", "data.num_workers=0", *clips]


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


@layouts
def test_a_whole_layout_is_counted_and_decoded(layout: str, tmp_path: Path) -> None:
    choice, make, sizes, _ = LAYOUTS[layout]
    cfg = composed("prepare", *arguments(choice, make(tmp_path / "set")), "data.limit=1")
    assert prepare(cfg, tmp_path / "out") == 0
    found = report(tmp_path / "out")
    assert found["usable"]
    assert [row["found"] for row in found["splits"]] == list(sizes)
    assert found["facts"]["decoded"] == f"{sum(sizes)} samples, 0 of them broken"
    assert found["missing"] == []
    assert any((tmp_path / "out/preview").glob("grid.*"))
    assert (tmp_path / "out/report.md").read_text().startswith("# ")
    assert any("backbone.num_classes=2" in text for text in found["advice"]) is (layout in ("tiny", "classes"))
    if "listed" in found["splits"][0]:
        assert [row["listed"] for row in found["splits"]] == list(sizes)


@layouts
def test_limit_is_kept_by_every_data_set(layout: str, tmp_path: Path) -> None:
    choice, make, _, _ = LAYOUTS[layout]
    cfg = composed("preview", *arguments(choice, make(tmp_path / "set")), "data.limit=3")
    data = build.build(cfg.data, "data")
    data.setup()
    assert (data.train_size, data.val_size) == (3, 3)


def test_shards_are_checked_but_have_no_small_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "0.tar", "w") as tar:
        for i in range(6):
            picture(tmp_path / "a.png")
            tar.add(tmp_path / "a.png", f"{i}.png")
            (tmp_path / "a.cls").write_text(str(i % 2))
            tar.add(tmp_path / "a.cls", f"{i}.cls")
    root = tmp_path / "set"
    assert prepare(composed("prepare", *arguments("webdataset", root)), tmp_path / "out") == 0
    assert f"the index of 1 training shards is kept in {root / '.shards'}\n" in capsys.readouterr().out
    found = report(tmp_path / "out")
    assert found["splits"] == [{"split": "train", "found": 6, "official": None}]
    assert (found["facts"]["classes"], found["facts"]["train samples in a class"]) == (2, "3")
    shutil.rmtree(root / ".shards")
    cfg = composed("prepare", *arguments("webdataset", root), "subset=1", f"subset_dir={tmp_path / 'part'}", "decode=1")
    with pytest.raises(DataError, match="no files of their own"):
        prepare(cfg, tmp_path / "out")
    assert not (root / ".shards").exists()  # nothing was looked at


def test_what_a_list_names_and_is_not_there(tmp_path: Path) -> None:
    root = ucf(tmp_path / "set")
    (root / "UCF-101/Archery/v_Archery_g01_c01").rename(tmp_path / "away")
    assert prepare(composed("prepare", *arguments("ucf101", root)), tmp_path / "out") == 0
    found = report(tmp_path / "out")
    assert found["missing"] == ["Archery/v_Archery_g01_c01.avi"]
    assert (tmp_path / "out/missing.txt").read_text() == "Archery/v_Archery_g01_c01.avi\n"
    assert found["splits"][0] == {"split": "train", "found": 5, "official": 9537, "listed": 6, "missing": 1}
    assert any("1 of 6 named in" in text and "v_Archery_g01_c01.avi" in text for text in found["warnings"])
    assert any("unrar x UCF101.rar" in text for text in found["advice"])


def test_broken_samples_empty_classes_and_small_pictures(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "train/n00000001/3.png").write_bytes(b"no picture")
    for file in (root / "val/n00000002").iterdir():
        file.unlink()
    (root / "val/n00000002").rmdir()
    cfg = composed("prepare", "data=image_folder", f"data.root={root}", "data.image_size=11")
    _, found = examine(cfg)
    assert found.usable
    assert list(found.broken) == [str(root / "train/n00000001/3.png")]
    assert "val: 1 of 2 classes have no sample: n00000002" in found.warnings
    assert "15 of 15 are smaller than data.image_size=11 and will be enlarged" in found.warnings
    assert found.facts["height in pixels"] == "10"


def test_sets_that_are_all_but_black_are_warned_of(tmp_path: Path) -> None:
    class_folders(tmp_path / "bright")
    class_folders(tmp_path / "black")
    for path in sorted((tmp_path / "black").rglob("*.png"))[::3]:  # 12 bits, shifted down once too often
        Image.open(path).point(lambda value: value // 16).save(path)
    cfg = {name: composed("prepare", *arguments("image_folder", tmp_path / name)) for name in ("bright", "black")}
    warned = {name: [w for w in examine(c)[1].warnings if "black" in w.split(":")[0]] for name, c in cfg.items()}
    assert warned["bright"] == []
    assert len(warned["black"]) == 1
    assert "7 of 20 samples" in warned["black"][0]


def test_captions_that_say_nothing_or_too_much_are_counted(tmp_path: Path) -> None:
    said = ["", " ", "\n", "", "", "a kite"]
    members = [(f"{i}.txt", text.encode()) for i, text in enumerate(said)]
    write_tar(tmp_path / "empty" / "a.tar", sorted([*members, *((f"{i}.jpg", jpeg()) for i in range(6))]))
    _, found = examine(composed("prepare", "data=webdataset", f"data.root={tmp_path / 'empty'}", "data.image_size=8"))
    assert any("5 of the samples looked at have no caption" in w and "empty" in w for w in found.warnings)
    assert len(found.broken) == 5
    write_tar(tmp_path / "long" / "a.tar", [("0.jpg", jpeg()), ("0.txt", b"word " * 90)])
    _, found = examine(composed("prepare", "data=webdataset", f"data.root={tmp_path / 'long'}", "data.image_size=8"))
    assert found.facts["train words of a caption"] == "90"
    assert any("1 of 1 captions looked at have more than 75 words" in w for w in found.warnings)


def test_short_clips_and_their_lengths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sky(tmp_path / "set")
    cfg = composed("prepare", "data=sky", f"data.root={root}", "data.image_size=8", "data.num_frames=6")
    _, found = examine(cfg)
    assert f"the index of 14 videos is kept in {tmp_path / 'cache'}" in capsys.readouterr().out
    assert found.facts["frames of a clip"] == "5 to 6, median 5.5"
    assert found.facts["shortest clip"].endswith("_1/below")
    assert any(text.startswith("14 of 14 clips have fewer than the 16 frames") for text in found.warnings)


def test_what_cannot_be_used_ends_with_code_2_and_says_how_to_get_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "set").mkdir()
    assert prepare(composed("prepare", "data=coco", f"data.root={tmp_path / 'set'}"), tmp_path / "out") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: data.root: neither train2017 nor train2014")
    assert "ROOT/annotations/captions_train2017.json" in printed.out
    assert f"unzip -q train2017.zip -d {tmp_path / 'set'}" in printed.out
    assert not report(tmp_path / "out")["usable"]
    root = class_folders(tmp_path / "all_broken")
    for file in root.rglob("*.png"):
        file.write_bytes(b"no picture")
    assert prepare(composed("prepare", "data=image_folder", f"data.root={root}"), tmp_path / "out2") == 2
    assert "none of 20 samples can be read" in capsys.readouterr().err


def test_data_that_come_with_a_package_need_no_check(tmp_path: Path) -> None:
    assert prepare(composed("prepare", "data=digits", "decode=3"), tmp_path) == 0
    found = report(tmp_path)
    assert "nothing to check" in found["facts"]["folder"]
    assert found["warnings"] == []
    assert any("exp=digits_gated" in text for text in found["advice"])
    with pytest.raises(DataError, match=r"data=digits are no files of their own; data\.limit=N"):
        prepare(composed("prepare", "data=digits", "subset=2", f"subset_dir={tmp_path / 'x'}"), tmp_path)


def test_advice_names_experiments_that_exist() -> None:
    assert "dit_s_gated" in _experiments("imagenet")
    assert _experiments("image") == []


@pytest.mark.parametrize(
    ("choice", "kind"),
    [("ucf101", UCF101), ("taichi", TaichiHD), ("image_folder", ImageFolder), ("journeydb", JourneyDB)],
)
def test_advice_for_other_data_sets_composes(choice: str, kind: type[DataModule]) -> None:
    assert _experiments(choice) == []
    made = compose_config("train", kind.experiment.format(classes=7).split())
    validate(made.cfg, "train", made.sources)
    assert made.choices["data"] == choice


def test_ucf101_says_how_to_train_on_it(tmp_path: Path) -> None:
    _, found = examine(composed("prepare", *arguments("ucf101", ucf(tmp_path / "set"))))
    assert any("exp=latte_s_gated data=ucf101 backbone.extras=class" in text for text in found.advice)


def test_names_of_another_encoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = sky(tmp_path / os.fsdecode(b"s\xe9t"))
    shown = str(tmp_path) + "/s\\xe9t"
    name = os.fsdecode(b"caf\xe9")
    frames(root / "sky_train" / name, 9)
    (root / "sky_train" / "z").mkdir()
    (root / "sky_train" / "z" / os.fsdecode(b"\xe9.jpg")).write_bytes(b"no picture")
    cfg = composed("prepare", *arguments("sky", tmp_path))
    cfg.data.root = str(root)
    assert prepare(cfg, tmp_path / "out") == 0
    found = report(tmp_path / "out")
    assert found["root"] == shown
    assert found["facts"]["longest clip"] == f"{shown}/sky_train/caf\\xe9"
    assert any(path.startswith(f"{shown}/sky_train/z") for path in found["broken"])
    capsys.readouterr().out.encode("utf-8")
    cfg.subset, cfg.subset_dir = 9, str(tmp_path / "part")
    assert prepare(cfg, tmp_path / "out2") == 0
    assert len(list((tmp_path / "part" / "sky_train" / name).iterdir())) == 9
    capsys.readouterr().out.encode("utf-8")


def test_half_characters_in_a_list(tmp_path: Path) -> None:
    root = journeydb(tmp_path / "set")
    with (root / "train" / "train_anno.jsonl").open("a") as lines:
        lines.write('{"img_path": "./000/\\ud83d.jpg", "prompt": "x"}\n')
    assert prepare(composed("prepare", *arguments("journeydb", root)), tmp_path / "out") == 0
    assert report(tmp_path / "out")["missing"] == ["train/imgs/000/\\ud83d.jpg"]


def test_real_trees(tmp_path: Path) -> None:
    _, found = examine(composed("prepare", "data=coco", f"data.root={shared('data/coco')}", "decode=4"))
    assert [row["found"] for row in found.splits] == [80, 79]
    assert found.name == "COCO 2017"
    _, found = examine(composed("prepare", "data=ucf101", f"data.root={shared('data/ucf101')}"))
    assert not found.usable
    assert [(row["found"], row["listed"]) for row in found.splits] == [(0, 9537), (1, 3783)]
    root = shared("data/imagenet/sample1000_256")
    cfg = composed(
        "prepare", "data=imagenet", f"data.root={root}", "subset=1", f"subset_dir={tmp_path / 's'}", "decode=4"
    )
    assert prepare(cfg, tmp_path / "out") == 0
    assert len(list((tmp_path / "s").iterdir())) == 1000


def test_folders_of_ones_own_are_not_called_imagenet(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    (root / "train/n00000001/x.gif").touch()
    (root / "train/n00000001/again.png").symlink_to("0.png")
    _, found = examine(composed("prepare", "data=image_folder", f"data.root={root}", "data.image_size=8"))
    assert found.name is None
    assert "imagenet" not in json.dumps(vars(found)).lower()
    assert any(text.startswith("train: left out") and ".gif files are not read" in text for text in found.warnings)
    assert any("second names of images" in text for text in found.warnings)
