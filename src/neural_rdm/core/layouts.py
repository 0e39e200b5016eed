"""What a folder of images must look like, checked before anything heavy is imported.

Standard library only: a command calls `check_root` before torch is loaded, so a mistyped `data.root` is answered at
once.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from neural_rdm.core.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".m4v"})
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SPLITS = {"train", "val", "test"}
_DRAWING = """Expected layout (one folder a class, images directly inside it):
    {root}/
      train/
        <class 1>/  a.JPEG  b.png  ...
        <class 2>/  ...
      val/          (may be left out; same class names)
        <class 1>/  ...
or the class folders directly in {root}/. Pass the folder with data.root=/path/to/imagenet"""
_IMAGENET = """Expected layout:
    {root}/
      train/<wnid>/*.JPEG
      val/<wnid>/*.JPEG, or val/ILSVRC2012_val_*.JPEG with ILSVRC2012_devkit_t12/ beside train (val may be left out)
or Kaggle's: ILSVRC/Data/CLS-LOC/train/<wnid>/ and val/ with LOC_val_solution.csv
or Tiny-ImageNet's: train/<wnid>/images/  val/images/  val/val_annotations.txt
Pass the folder with data.root=/path/to/imagenet"""


class ImageTree(NamedTuple):
    """A checked tree: absolute folders of the splits, and the class names in label order.

    `inner` is the folder inside each training class that holds its images ("" where they lie in the class folder
    itself). `labels` is the file that says the classes of a `val` without class folders.
    """

    train: Path
    val: Path | None
    classes: list[str]
    inner: str = ""
    labels: Path | None = None


def image_names(folder: Path) -> Iterator[str]:
    """Names of the image files directly in `folder`, in the file system's order; hidden files are passed over.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                    yield name
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}. Check its permissions.") from error


def check_root(root: str | os.PathLike[str] | None, num_classes: int | None = None) -> ImageTree:
    """Check the class-folder tree `root` by looking at folders and at one image name; takes milliseconds.

    `root/train` is the training split if it holds folders, and `root/val` is then the validation split. Otherwise the
    folders of `root` itself are the classes. Labels follow the sorted folder names, as in torchvision's `ImageFolder`,
    which the official DiT code uses.

    Args:
        root: the folder; `~` is expanded and a relative path starts at the working directory.
        num_classes: how many class folders there must be, None for any number.

    Raises:
        DataError: no such folder, no class folders, no images, another number of classes, or a `val` folder whose
            classes are not those of `train`.
    """
    base = check_folder(root, _DRAWING)
    drawing = _DRAWING.format(root=base)
    folders = _folders(base)
    split = "train" in folders and (bool(_folders(base / "train")) or set(folders) <= _SPLITS)
    train = base / "train" if split else base
    classes = _classes(train, "", num_classes, drawing)
    val = base / "val" if split and "val" in folders else None
    if val is not None:
        _check_val(val, train, classes, drawing)
    return ImageTree(train, val, classes)


def check_imagenet(root: str | os.PathLike[str] | None, num_classes: int | None = None) -> ImageTree:
    """Check ImageNet (ILSVRC 2012) in any layout of `neural_rdm.data.imagenet.ImageNet`; takes milliseconds.

    Labels follow the sorted wnids, whatever numbers the devkit gives them.

    Args:
        root: the folder; `~` is expanded and a relative path starts at the working directory.
        num_classes: how many classes there must be, None for any number.

    Raises:
        DataError: none of these layouts, another number of classes, or a flat `val` without a list of its labels.
    """
    base = check_folder(root, _IMAGENET)
    drawing = _IMAGENET.format(root=base)
    kaggle = base / "ILSVRC" / "Data" / "CLS-LOC"
    images = kaggle if kaggle.is_dir() else base
    train, val = images / "train", images / "val"
    if not train.is_dir():
        return ImageTree(base, None, _classes(base, "", num_classes, drawing))
    first = next(iter(_folders(train)), "")
    inner = "images" if (train / first / "images").is_dir() and next(image_names(train / first), None) is None else ""
    classes = _classes(train, inner, num_classes, drawing)
    if not val.is_dir():
        return ImageTree(train, None, classes, inner)
    if (labels := val / "val_annotations.txt").is_file() and (val / "images").is_dir():
        return ImageTree(train, val / "images", classes, inner, labels)
    if _folders(val) or next(image_names(val), None) is None:
        _check_val(val, train, classes, drawing)
        return ImageTree(train, val, classes, inner)
    lists = [base / "LOC_val_solution.csv", *sorted(base.glob(f"*devkit*/data/{GROUND_TRUTH}"))]
    found = next((file for file in lists if file.is_file()), None)
    if found is None:
        raise DataError(
            f"data.root: {val} has no class folders, and there is no list of its labels: unpack "
            f"ILSVRC2012_devkit_t12.tar.gz in {base}, or train without it: data.root={train}\n{drawing}"
        )
    return ImageTree(train, val, classes, inner, found)


def check_folder(root: str | os.PathLike[str] | None, layout: str) -> Path:
    """The absolute path of the folder `root`.

    Args:
        layout: what it should hold, for the message.

    Raises:
        DataError: it is not there.
    """
    if root is None or not os.fspath(root):
        drawing = layout.replace("{root}", "ROOT")
        raise DataError(f"data.root is not set: which folder holds the data set?\n{drawing}")
    base = Path(os.path.abspath(os.path.expanduser(root)))
    if not base.is_dir():
        problem = f"{base} is a file, not a folder (unpack an archive first)" if base.exists() else f"no folder {base}"
        drawing = layout.replace("{root}", str(base))
        advice = "" if "data.root=" in layout else " Pass it with data.root=/path/to/it"
        raise DataError(f"data.root: {problem}.{advice}\n{drawing}".rstrip())
    return base


def drawn(docstring: str | None) -> str:
    """The layout that the docstring of a data module draws, for messages: what it says before its arguments."""
    text = inspect.cleandoc(docstring or "").partition("\nArgs:")[0]
    return re.sub(r"\s*Arguments: see `\w+`\.", "", text).strip()


def _classes(train: Path, inner: str, num_classes: int | None, drawing: str) -> list[str]:
    """The sorted class folders of `train`, some of which hold images, as many as there must be."""
    classes = _folders(train)
    if not classes:
        flat = next(image_names(train), None)
        found = f"images (such as {flat}) but no class folders" if flat else "no class folders and no images"
        advice = " Images without classes go into one folder of any name." if flat else ""
        raise DataError(f"data.root: {found} in {train}.{advice}\n{drawing}")
    if all(next(image_names(train / name / inner), None) is None for name in classes):
        raise DataError(
            f"data.root: no image directly in any of the {len(classes)} folders of {train} (the first is "
            f"{classes[0]!r}; endings read: {' '.join(sorted(IMAGE_SUFFIXES))}).\n{drawing}"
        )
    if num_classes is not None and num_classes != len(classes):
        raise DataError(
            f"data.root: {len(classes)} class folders in {train}, but data.num_classes={num_classes}. Pass "
            f"data.num_classes={len(classes)}, or the folder of the right data set with data.root=/path/to/imagenet.\n"
            f"{drawing}"
        )
    return classes


def _check_val(val: Path, train: Path, classes: list[str], drawing: str) -> None:
    found = _folders(val)
    advice = f"Sort its images into the class folders of {train}, or train without it: data.root={train}"
    if not found:
        raise DataError(f"data.root: no class folders in {val}. {advice}\n{drawing}")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(f"data.root: {len(unknown)} class folders of {val} are not in {train}, "
                        f"such as {unknown[0]!r}. {advice}\n{drawing}")  # fmt: skip


def _folders(folder: Path) -> list[str]:
    """Sorted names of the folders (or links to folders) in `folder` that are not hidden."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}. Check its permissions.") from error


#: what finds the splits and classes of a folder of images, by the name of the data module
CHECKS = {"ImageFolder": check_root, "ImageNet": check_imagenet}
