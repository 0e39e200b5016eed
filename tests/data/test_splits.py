"""What is held out is never trained on, and nothing is in both splits: one policy for every data module."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.data.base import DataModule
from neural_rdm.data.builtin.synthetic import SyntheticSet
from neural_rdm.data.images.captions import COCO, JourneyDB
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.images.imagenet import ImageNet
from neural_rdm.data.layouts import is_held_out
from neural_rdm.data.splits import refuse_shared
from neural_rdm.data.tars.shards import TarShards
from neural_rdm.data.videos.datasets import UCF101, SkyTimelapse, TaichiHD
from tests.helpers import covering


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12, 3), len(path.as_posix()) % 256, np.uint8)).save(path)


def clips(folder: Path) -> None:
    for k in range(4):
        picture(folder / f"{folder.name}_c" / f"{k}.png")


def classes(folder: Path) -> None:
    for label in ("n01", "n02"):
        picture(folder / label / f"{folder.name}.png")


def annotated(folder: Path) -> None:
    picture(folder / "imgs" / "000" / f"{folder.name}.png")
    line = {"img_path": f"./000/{folder.name}.png", "prompt": "a fox"}
    (folder / f"{folder.name}_anno.jsonl").write_text(json.dumps(line) + "\n")


def shard(folder: Path) -> None:
    """ROOT/train -> ROOT/train-0.tar."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder.parent / f"{folder.name}-000000.tar", "w") as tar:
        for k in range(2):
            content = io.BytesIO()
            Image.new("RGB", (8, 8)).save(content, "PNG")
            for name, data in ((f"{k}.png", content.getvalue()), (f"{k}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def coco(folder: Path) -> None:
    name = {"train": "train2017", "val": "val2017"}.get(folder.name, folder.name)
    root = folder.parent
    picture(root / name / f"{name}.png")
    (root / "annotations").mkdir(exist_ok=True)
    said = {"images": [{"id": 1, "file_name": f"{name}.png"}],
            "annotations": [{"id": 1, "image_id": 1, "caption": "a fox"}]}  # fmt: skip
    (root / "annotations" / f"captions_{name}.json").write_text(json.dumps(said))


def sizes(kind: str, root: Path) -> tuple[DataModule, list[str], list[str]]:
    """The data module, set up, and the paths below the root of its two splits."""
    short = {"image_size": 8, "batch_size": 1}
    video = {"num_frames": 2, "frame_interval": 1}
    made: dict[str, Callable[[], DataModule]] = {
        "images": lambda: ImageFolder(root, **short),
        "imagenet": lambda: ImageNet(root, **short),
        "sky": lambda: SkyTimelapse(root, **short, **video),
        "taichi": lambda: TaichiHD(root, **short, **video),
        "journeydb": lambda: JourneyDB(root, **short),
        "coco": lambda: COCO(root, **short),
        "shards": lambda: TarShards(root, **short),
    }
    data = made[kind]()
    data.setup()
    train, val = (
        [] if source is None else sorted(os.path.relpath(path, root) for path in source.origins())  # type: ignore[attr-defined]
        for source in (data.train_set, data.val_set)
    )
    return data, train, val


MAKE = {"images": classes, "imagenet": classes, "sky": clips, "taichi": clips, "journeydb": annotated, "coco": coco,
        "shards": shard}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), covering(list(MAKE), ["test", "Valid", "val"], whole=[("images", ...)]))
def test_what_is_held_out_alone_is_never_trained_on(kind: str, name: str, tmp_path: Path) -> None:
    MAKE[kind](tmp_path / name)
    with pytest.raises(DataError, match=r"(?i)(nothing to train on|held out).*(?s:.)*") as error:
        sizes(kind, tmp_path)
    assert name.lower() in str(error.value).lower()
    assert "data." in str(error.value)


@pytest.mark.parametrize("kind", MAKE)
def test_training_and_validation_are_apart(kind: str, tmp_path: Path) -> None:
    for name in ("train", "val" if kind == "coco" else "valid"):
        MAKE[kind](tmp_path / name)
    _, train, val = sizes(kind, tmp_path)
    assert train
    assert all("train" in path for path in train)
    assert all("val" in path for path in val)
    assert bool(val) is (kind != "shards")  # data.val names these


@pytest.mark.parametrize(
    ("kind", "name"),
    covering(["images", "sky", "taichi"], ["test", "Validation", "sky_test", "val_clips"], whole=[(..., "test")]),
)
def test_the_root_stands_in_without_what_is_held_out(
    kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes(tmp_path)
    for label in ("n01", "n02"):
        for k in range(2):  # one picture beside folders would be a still
            picture(tmp_path / label / f"{k}.png")
            picture(tmp_path / name / label / f"{k}.png")
    _, train, val = sizes(kind, tmp_path)
    assert train
    assert not [path for path in train if path.startswith(name)]
    assert val
    assert all(path.startswith(name) for path in val)
    assert "held out" in capsys.readouterr().out


def test_held_out_folders_deep_below_the_root_are_not_entered(tmp_path: Path) -> None:
    clips(tmp_path / "set" / "sky_train")
    clips(tmp_path / "set" / "sky_test")
    _, train, val = sizes("sky", tmp_path)
    assert (train, val) == (["set/sky_train/sky_train_c"], [])


def test_what_is_held_out_inside_the_training_split_is_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path / "v" / "train")
    clips(tmp_path / "v" / "train" / "test")
    clips(tmp_path / "v" / "val" / "test")
    _, train, val = sizes("sky", tmp_path / "v")
    assert (train, val) == (["train/train_c"], ["val/test/test_c"])
    assert "held out by the name, not trained on" in capsys.readouterr().out
    classes(tmp_path / "i" / "train")
    classes(tmp_path / "i" / "train" / "val")  # no class: it holds no images itself
    picture(tmp_path / "i" / "train" / "test" / "0.png")  # a class: it does
    data, train, _ = sizes("images", tmp_path / "i")
    assert data.class_names == ["n01", "n02", "test"]
    assert len(train) == 3
    assert "val in " in capsys.readouterr().out


@pytest.mark.parametrize(("name", "classes"), [("valid", None), ("test", 4)])
def test_who_has_a_class_of_such_a_name_learns_what_to_do(name: str, classes: int | None, tmp_path: Path) -> None:
    for label in ("a", "b", "c", name):
        picture(tmp_path / label / "0.png")
    with pytest.raises(DataError, match=rf"{name}\b.*If it is a class, move the class folders into .*train"):
        ImageFolder(tmp_path, image_size=8, batch_size=1, num_classes=classes).setup()


@pytest.mark.parametrize(
    ("name", "held"),
    [("test", True), ("TEST", True), ("valid", True), ("sky_test", True), ("test2017", True), ("val-set", True),
     ("validation_videos", True), ("held_out", True), ("tests", True), ("testA", True), ("DIV2K_valid_HR", True),
     ("val_large", True), ("test_B", True), ("test_b", False), ("trainA", False), ("testa", False), ("train", False),
     ("test_tube", False), ("train_val", False), ("contest", False), ("invalid", False), ("testament", False),
     ("videos", False)],
)  # fmt: skip
def test_names_of_what_is_held_out(name: str, held: bool) -> None:
    assert is_held_out(name) is held


def test_a_split_that_is_asked_for_by_name_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips(tmp_path / "test")
    assert sizes("sky", tmp_path / "test")[1] == ["test_c"]
    assert "is trained on, though" in capsys.readouterr().out
    shard(tmp_path / "val")
    data = TarShards(tmp_path, train="val-*.tar", image_size=8, batch_size=1)
    assert data.train_size == 2
    for other in ("held_out", "tests", "train"):
        shard(tmp_path / other)
    data = TarShards(tmp_path, image_size=8, batch_size=1)
    data.setup()
    assert [path.name for path in data.train_set.shards] == ["train-000000.tar"]  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["link", "hard link", "folder"])
def test_the_same_files_in_both_splits_are_refused(how: str, tmp_path: Path) -> None:
    classes(tmp_path / "train")
    classes(tmp_path / "val")
    source = tmp_path / "train" / "n01" / "train.png"
    target = tmp_path / "val" / "n01" / "again.png"
    if how == "link":
        target.symlink_to(source)
    elif how == "hard link":
        os.link(source, target)
    else:
        shutil.rmtree(tmp_path / "val" / "n01")
        (tmp_path / "val" / "n01").symlink_to(source.parent)
    with pytest.raises(DataError, match=r"1 samples are trained on and validated on, such as .*train\.png, which is"):
        sizes("images", tmp_path)


def test_videos_and_shards_in_both_splits_are_refused(tmp_path: Path) -> None:
    clips(tmp_path / "v" / "train")
    clips(tmp_path / "v" / "test")
    (tmp_path / "v" / "test" / "again").symlink_to(tmp_path / "v" / "train" / "train_c")
    with pytest.raises(DataError, match=r"1 samples are trained on and validated on"):
        sizes("taichi", tmp_path / "v")
    (tmp_path / "v" / "test" / "again").unlink()
    (tmp_path / "v" / "test" / "again").mkdir()
    for k, link in enumerate((os.link, os.symlink) * 2):
        link(tmp_path / "v" / "train" / "train_c" / f"{k}.png", tmp_path / "v" / "test" / "again" / f"{k}.png")
    with pytest.raises(DataError, match=r"1 samples .*train_c, which is the same as .*again"):
        sizes("taichi", tmp_path / "v")
    lists = tmp_path / "u" / "lists"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 A\n")
    (lists / "trainlist01.txt").write_text("A/v_A_1.avi 1\nA/v_A_2.avi 1\n")
    (lists / "testlist01.txt").write_text("A/v_A_2.avi\n")
    for k in (1, 2):
        picture(tmp_path / "u" / "all" / f"v_A_{k}" / "0.png")
    with pytest.raises(DataError, match=r"such as .*v_A_2\. Take them out"):
        UCF101(tmp_path / "u", image_size=8, num_frames=1, batch_size=1).setup()
    shard(tmp_path / "s" / "train")
    os.link(tmp_path / "s" / "train-000000.tar", tmp_path / "s" / "more.tar")
    with pytest.raises(DataError, match="trained on and validated on"):
        TarShards(tmp_path / "s", train="train-*.tar", val="more.tar", image_size=8, batch_size=1).setup()


def test_sources_that_are_no_files_are_not_compared() -> None:
    made = SyntheticSet([1, 2, 2], None, 3, "pixels")
    refuse_shared(made, made)
    refuse_shared(made, None)
