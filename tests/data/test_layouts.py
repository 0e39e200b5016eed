from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neural_rdm.core.errors import DataError
from neural_rdm.data.layouts import ImageTree, check_root, image_names


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def refusal(root: Path | str | None, num_classes: int | None = None) -> str:
    with pytest.raises(DataError) as error:
        check_root(root, num_classes)
    assert "<class 1>/" in str(error.value)
    assert "data.root=" in str(error.value)
    return str(error.value)


def test_splits_and_plain_class_folders_are_both_read(tmp_path):
    touch(tmp_path / "a/train/n2/x.JPEG", tmp_path / "a/train/n1/x.webp", tmp_path / "a/val/n2/y.png")
    touch(tmp_path / "b/dog/x.PNG", tmp_path / "b/cat/x.jpeg", tmp_path / "b/.cache/x.jpg")
    assert check_root(tmp_path / "a") == ImageTree(tmp_path / "a/train", tmp_path / "a/val", ["n1", "n2"])
    assert check_root(str(tmp_path / "a"), 2).classes == ["n1", "n2"]
    assert check_root(tmp_path / "b") == ImageTree(tmp_path / "b", None, ["cat", "dog"])
    assert check_root(tmp_path / "a/train").val is None


def test_a_class_may_be_called_train(tmp_path):
    touch(tmp_path / "car/a.png", tmp_path / "train/a.png", tmp_path / "plane/a.png")
    assert check_root(tmp_path) == ImageTree(tmp_path, None, ["car", "plane", "train"])


def test_relative_paths_and_the_home_folder(tmp_path, monkeypatch):
    touch(tmp_path / "set/cat/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_root("set").train == check_root("~/set").train == tmp_path / "set"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_linked_class_folders_are_followed(tmp_path):
    touch(tmp_path / "store/n1/a.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/cat").symlink_to(tmp_path / "store/n1")
    assert check_root(tmp_path / "set").classes == ["cat"]


def test_only_images_that_are_not_hidden_are_listed(tmp_path):
    touch(
        *(tmp_path / name for name in ("a.JPEG", "b.tiff", "._a.JPEG", ".DS_Store", "Thumbs.db", "list.txt", "c.gif"))
    )
    assert sorted(image_names(tmp_path)) == ["a.JPEG", "b.tiff"]
    with pytest.raises(DataError, match="cannot read the folder"):
        list(image_names(tmp_path / "absent"))


def test_a_missing_root_is_named_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal("nowhere").startswith(f"data.root: no folder {tmp_path / 'nowhere'}.")
    assert "data.root=/path/to/images" in refusal("nowhere")
    assert refusal(None).startswith("data.root is not set")
    assert refusal("").startswith("data.root is not set")
    touch(tmp_path / "imagenet.tar")
    assert f"{tmp_path / 'imagenet.tar'} is a file, not a folder (unpack" in refusal("imagenet.tar")


def test_folders_without_classes_or_images(tmp_path):
    assert f"no class folders and no images in {tmp_path}" in refusal(tmp_path)
    touch(tmp_path / "flat/a.png")
    assert "images (such as a.png) but no class folders" in refusal(tmp_path / "flat")
    touch(tmp_path / "split/train/a.png", tmp_path / "split/val/a.png")
    assert f"no class folders in {tmp_path / 'split/train'}" in refusal(tmp_path / "split")
    touch(tmp_path / "deep/n1/images/a.png", tmp_path / "deep/n2/notes.txt")
    text = refusal(tmp_path / "deep")
    assert f"no image directly in any of the 2 folders of {tmp_path / 'deep'} (the first is 'n1'" in text


def test_another_number_of_classes(tmp_path):
    touch(tmp_path / "a/x.jpg", tmp_path / "b/x.jpg")
    text = refusal(tmp_path, 1000)
    assert f"2 class folders in {tmp_path}, but data.num_classes=1000, which is the network's" in text
    assert "Pass data.num_classes" not in text


def test_a_validation_split_must_fit(tmp_path):
    touch(tmp_path / "a/train/n1/x.jpg", tmp_path / "a/val/x.jpg")
    text = refusal(tmp_path / "a")
    assert f"no class folders in {tmp_path / 'a/val'}" in text
    assert f"data.root={tmp_path / 'a/train'}\n" in text
    touch(tmp_path / "b/train/n1/x.jpg", tmp_path / "b/val/n2/x.jpg")
    assert f"1 class folders of {tmp_path / 'b/val'} are not in {tmp_path / 'b/train'}, such as 'n2'" in refusal(
        tmp_path / "b"
    )


def test_the_check_needs_the_standard_library_only():
    code = (
        "import sys; from neural_rdm.data.layouts import check_root; "
        "print([m for m in ('torch', 'numpy', 'PIL', 'lightning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
