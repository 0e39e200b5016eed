"""A small part of a data set in a folder of its own, in the same layout, for trying things out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neural_rdm.core.errors import ConfigError, DataError, UserError
from neural_rdm.core.layouts import IMAGE_SUFFIXES
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.base import DataModule
from neural_rdm.data.inspection import labels_of, path_of
from neural_rdm.data.listings import write_listings

#: what explains a data set beside its samples and lists, if it is small: the devkit, class names, licences
EXTRA_SUFFIXES = (".txt", ".csv", ".json", ".mat", ".md", ".xml")
EXTRA_BYTES = 8 << 20


def chosen(data: DataModule, count: int) -> dict[str, list[int]]:
    """Indices of `count` samples of each class (without classes: of each split), evenly spread, by split."""
    found = {}
    for name, source in (("train", data.train_set), ("val", data.val_set)):
        if source is None:
            continue
        labels = labels_of(source)
        groups = [np.arange(len(source))]
        if labels is not None:
            groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        picks = [group[np.arange(min(count, len(group))) * len(group) // min(count, len(group))] for group in groups]
        found[name] = sorted(int(index) for pick in picks for index in pick)
    return found


def make_subset(data: DataModule, root: Path, target: Path, count: int, copy: bool = False) -> dict[str, int]:
    """Make a folder that `data.root` can be, with `count` samples of each class (without classes: of each split).

    Args:
        data: the whole data set, set up.
        root: its folder, absolute.
        target: the new folder.
        copy: copy the files; otherwise they are links, which hold as long as `root` stays where it is.

    Returns:
        Samples of each split.

    Raises:
        ConfigError: `target` holds something already, or lies in `root`, where it would be read as data.
        DataError: samples that are no files below `root`.
        UserError: `target` cannot be written.
    """
    target = Path(os.path.abspath(os.path.expanduser(target)))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"subset_dir={target} is there already and not empty; choose another folder or delete it")
    if target.is_relative_to(root):
        raise ConfigError(f"subset_dir={target} lies in data.root={root} and would be read as data; choose another")
    kept: list[str] = []
    sizes = {}
    for name, indices in chosen(data, count).items():
        source = data.train_set if name == "train" else data.val_set
        assert source is not None
        paths = [path_of(source, index) for index in indices]
        if any(path is None or not Path(path).is_relative_to(root) for path in paths):
            raise DataError(f"subset: the samples of {type(data).__name__} are no files of their own below {root}")
        there = [Path(path).relative_to(root).as_posix() for path in paths if path is not None and os.path.exists(path)]
        sizes[name] = len(there)
        kept += there
    with progress_bar("copying" if copy else "linking", len(kept), "samples") as advance:
        for path in kept:
            for file in _files(root / path):
                _put(file, target / file.relative_to(root), copy)
            advance()
    written = set(write_listings(type(data).__name__, root, target, kept))
    samples = {root / path for path in kept} | {(root / path).parent for path in kept}
    for file in _extras(root, samples):
        if (place := target / file.relative_to(root)) not in written and not place.exists():
            _put(file, place, copy=True)
    return sizes


def _files(path: Path) -> Iterator[Path]:
    """A file itself, or the frames directly in a folder: below it there may be other clips."""
    if not path.is_dir():
        yield path
        return
    for entry in os.scandir(path):
        if entry.is_file() and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
            yield path / entry.name


def _extras(root: Path, samples: set[Path]) -> Iterator[Path]:
    """Small files at most three folders below `root`, outside of the folders that hold samples."""
    folders = [root]
    for _ in range(4):
        below = []
        for entry in (entry for folder in folders for entry in os.scandir(folder) if entry.name[0] != "."):
            if entry.is_dir() and Path(entry.path) not in samples:
                below.append(Path(entry.path))
            elif entry.name.lower().endswith(EXTRA_SUFFIXES) and entry.stat().st_size <= EXTRA_BYTES:
                yield Path(entry.path)
        folders = below


def _put(file: Path, place: Path, copy: bool) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(file, place)
        else:
            place.symlink_to(file.resolve())
    except OSError as error:
        advice = "Free some disk space, choose another subset_dir, or pass copy=true where links cannot be made."
        raise UserError(f"cannot write {place}: {error.strerror}. {advice}") from error
