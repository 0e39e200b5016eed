"""What a folder of images must look like, checked before anything heavy is imported.

Standard library only: a command calls `check_root` before torch is loaded, so a mistyped `data.root` is answered at
once.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import file_names, is_hidden, unreadable
from neural_rdm.media.suffixes import IMAGE_SUFFIXES, is_image

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
#: names of folders with what is trained on, and words for what is held out, the ones for validation first
TRAIN_NAMES = ("train", "training")
_VALIDATION = "val|valid|validation|eval|evaluation|dev|devel"
_TEST = "tests?|testing|holdout|hold[-_ ]?out|held[-_ ]?out"
_HELD_OUT = re.compile(
    rf"(?!.*train)(?:.*[-_. ])?(?:(?P<val>{_VALIDATION})|{_TEST})"
    r"(?:[-_. ]?(?:\d+|set|split|data|clips?|videos?|frames?|images?|imgs?|[lh]r|large|small|mini|public|private)"
    r"|(?-i:(?:(?<=[a-z])|[-_. ])[A-D]))*",
    re.IGNORECASE,
)
_DRAWING = """Expected layout (one folder a class, images directly inside it):
    {root}/
      train/
        <class 1>/  a.JPEG  b.png  ...
        <class 2>/  ...
      val/          (may be left out; same class names)
        <class 1>/  ...
or the class folders directly in {root}/. Pass the folder with data.root=/path/to/images"""
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
    itself). `labels` is the file that says the classes of a `val` without class folders. `notes` are what a user should
    know of how the folder was read.
    """

    train: Path
    val: Path | None
    classes: list[str]
    inner: str = ""
    labels: Path | None = None
    notes: tuple[str, ...] = ()


class ClassCount(DataError):
    """Another number of class folders than there must be.

    Attributes:
        problem: the sentence that says so.
        drawing: the layout that there should be.
        found: how many there are.
    """

    def __init__(self, problem: str, drawing: str, found: int) -> None:
        super().__init__(f"{problem}\n{drawing}")
        self.problem, self.drawing, self.found = problem, drawing, found


def image_names(folder: Path) -> list[str]:
    """Sorted names of the image files directly in `folder`, each file once; hidden files are passed over.

    Raises:
        DataError: the folder cannot be read.
    """
    return file_names(folder, is_image).names


def first_image(folder: Path) -> str | None:
    """Any image file directly in `folder`, without listing all of them; None where there is none.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return next((e.name for e in entries if is_image(e.name) and not is_hidden(e.name)), None)
    except OSError as error:
        raise unreadable(folder, error) from error


def is_held_out(name: str) -> bool:
    """Whether a folder of this name holds what is never trained on: test, val, valid, validation, sky_test, val2017,
    ... in any case.
    """
    return _HELD_OUT.fullmatch(name) is not None


def held_out(folder: Path) -> list[Path]:
    """The folders directly in `folder` that are held out, those for validation before those for tests."""
    names = [name for name in folders_in(folder) if is_held_out(name)]
    return [folder / name for name in sorted(names, key=lambda name: (_for_tests(name), len(name), name))]


def _for_tests(name: str) -> bool:
    match = _HELD_OUT.fullmatch(name)
    return match is not None and match["val"] is None


def split_folder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these folders that exists directly in `folder`, whatever the case of its name."""
    there = {name.casefold(): name for name in reversed(folders_in(folder))}
    return next((folder / there[name] for name in names if name in there), None)


def nothing_to_train_on(folder: Path, what: str) -> str:
    """The refusal of a folder that holds nothing but what is held out.

    Args:
        what: of what there is none, "videos" for example.
    """
    found = held_out(folder)
    names = ", ".join(path.name for path in found)
    return (
        f"data.root: nothing to train on in {folder}: besides what is held out ({names}) it holds no {what}. What is "
        f"held out is never trained on. Put the training {what} into {folder / 'train'}; or, to train on these after "
        f"all, pass data.root={found[0]}"
    )


def check_root(root: str | os.PathLike[str] | None, num_classes: int | None = None) -> ImageTree:
    """Check the class-folder tree `root` by looking at folders and at one image name; takes milliseconds.

    `root/train` is the training split if it holds folders. Otherwise the folders of `root` itself are the classes,
    without those that are held out (see `is_held_out`), which are never trained on. Of these the first with the same
    classes is the validation split. Labels follow the sorted folder names, as in torchvision's `ImageFolder`, which the
    official DiT code uses.

    Args:
        root: the folder; `~` is expanded and a relative path starts at the working directory.
        num_classes: how many class folders there must be, None or 0 for any number.

    Raises:
        DataError: no such folder, no class folders, no images, another number of classes, or a `val` folder whose
            classes are not those of `train`.
    """
    base = check_folder(root, _DRAWING)
    drawing = _DRAWING.format(root=base)
    train = split_folder(base, TRAIN_NAMES)
    if train is not None and not folders_in(train):  # a class may be called train
        others = [name for name in folders_in(base) if name != train.name and not is_held_out(name)]
        train = None if others else train
    return _tree(base, train, "", num_classes, drawing)


def check_imagenet(root: str | os.PathLike[str] | None, num_classes: int | None = None) -> ImageTree:
    """Check ImageNet (ILSVRC 2012) in any layout of `neural_rdm.data.images.imagenet.ImageNet`; takes milliseconds.

    Labels follow the sorted wnids, whatever numbers the devkit gives them.

    Args:
        root: the folder; `~` is expanded and a relative path starts at the working directory.
        num_classes: how many classes there must be, None or 0 for any number.

    Raises:
        DataError: none of these layouts, another number of classes, or a flat `val` without a list of its labels.
    """
    base = check_folder(root, _IMAGENET)
    drawing = _IMAGENET.format(root=base)
    kaggle = base / "ILSVRC" / "Data" / "CLS-LOC"
    images = kaggle if kaggle.is_dir() else base
    train = split_folder(images, TRAIN_NAMES)
    if train is None:
        return _tree(images, None, "", num_classes, drawing)
    first = next(iter(folders_in(train)), "")
    inner = "images" if (train / first / "images").is_dir() and first_image(train / first) is None else ""
    val = split_folder(images, ("val",))
    if val is None:
        return _tree(images, train, inner, num_classes, drawing)
    if (labels := val / "val_annotations.txt").is_file() and (val / "images").is_dir():
        return ImageTree(train, val / "images", _classes(train, inner, num_classes, drawing), inner, labels)
    if folders_in(val) or first_image(val) is None:
        return _tree(images, train, inner, num_classes, drawing)
    classes = _classes(train, inner, num_classes, drawing)
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


def _tree(base: Path, train: Path | None, inner: str, num_classes: int | None, drawing: str) -> ImageTree:
    """The class folders of `train`, or of `base` without what is held out, and the validation split beside them."""
    classes = _classes(train or base, inner, num_classes, drawing, is_root=train is None)
    notes = [text] if (text := _no_classes(train or base, classes)) else []
    for folder in held_out(base):
        if not _for_tests(folder.name):
            _check_val(folder, train or base, classes, drawing)
        elif not folders_in(folder) or not set(folders_in(folder)) <= set(classes):  # tests often come without labels
            notes.append(f"{folder} is not used for validation: its folders are not the classes")
            continue
        return ImageTree(train or base, folder, classes, inner, notes=tuple(notes))
    return ImageTree(train or base, None, classes, inner, notes=tuple(notes))


def _classes(train: Path, inner: str, num_classes: int | None, drawing: str, is_root: bool = False) -> list[str]:
    """The sorted class folders of `train`, some of which hold images, as many as there must be.

    A folder that is called as what is held out is a class only if it holds images.

    Args:
        is_root: `train` is the data set's folder itself: folders that are held out are no classes at all.
    """
    classes = [
        name for name in folders_in(train) if not is_held_out(name) or not (is_root or _is_empty(train / name / inner))
    ]
    if not classes:
        if is_root and folders_in(train):
            raise DataError(f"{nothing_to_train_on(train, 'class folders')}\n{drawing}")
        flat = first_image(train)
        found = f"images (such as {flat}) but no class folders" if flat else "no class folders and no images"
        advice = " Images without classes go into one folder of any name." if flat else ""
        raise DataError(f"data.root: {found} in {train}.{advice}\n{drawing}")
    if all(_is_empty(train / name / inner) for name in classes):
        raise DataError(
            f"data.root: no image directly in any of the {len(classes)} folders of {train} (the first is "
            f"{classes[0]!r}; endings read: {' '.join(sorted(IMAGE_SUFFIXES))}).\n{drawing}"
        )
    if num_classes and num_classes != len(classes):
        raise ClassCount(
            f"data.root: {len(classes)} class folders in {train}, but data.num_classes={num_classes}, which "
            "is the network's number of classes unless it is set. Pass the folder of the right data set with data.root"
            f"{f' ({note})' if (note := _no_classes(train, classes)) else ''}.",
            drawing,
            len(classes),
        )
    return classes


def _is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or no image directly in it."""
    return not folder.is_dir() or first_image(folder) is None


def _no_classes(train: Path, classes: list[str]) -> str:
    """What to say of folders beside the class folders that are no classes since they are held out; "" without any."""
    if not (others := [path.name for path in held_out(train) if path.name not in classes]):
        return ""
    way = f"move the class folders into {train / 'train'}"
    if train.name.casefold() in TRAIN_NAMES:
        way = "put its images directly into it"
    return f"{', '.join(others)} in {train}: held out by the name, no class. If it is a class, {way}"


def _check_val(val: Path, train: Path, classes: list[str], drawing: str) -> None:
    found = folders_in(val)
    advice = f"Sort its images into the class folders of {train}, or train without it: data.root={train}"
    if val.parent == train:
        advice = (
            f"Sort its images into its own folders of these names, or move it out of {train}. If it is a class, move "
            f"the class folders into {train / 'train'}"
        )
    if not found:
        raise DataError(f"data.root: no class folders in {val}. {advice}\n{drawing}")
    unknown = sorted(set(found) - set(classes))
    if unknown:
        raise DataError(f"data.root: {len(unknown)} class folders of {val} are not in {train}, "
                        f"such as {unknown[0]!r}. {advice}\n{drawing}")  # fmt: skip


def folders_in(folder: Path) -> list[str]:
    """Sorted names of the folders (or links to folders) in `folder` that are not hidden.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    except OSError as error:
        raise unreadable(folder, error) from error
