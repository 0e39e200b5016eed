"""A small part of a data set in a folder of its own, in the same layout, for trying things out."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from neural_rdm.core.errors import ConfigError, DataError, UserError, printable
from neural_rdm.core.files import cannot_write, temporary_name
from neural_rdm.core.listing import walk
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.base import DataModule
from neural_rdm.media.frames import files_of

#: what explains a data set beside its samples and lists, if it is small: the devkit, class names, licences
EXTRA_SUFFIXES = (".txt", ".csv", ".json", ".mat", ".md", ".xml")
EXTRA_BYTES = 8 << 20


def chosen(data: DataModule, count: int) -> dict[str, list[int]]:
    """Indices of `count` samples of each class (without classes: of each split), evenly spread, by split; none of those
    that are known to be broken.
    """
    found = {}
    for name, source in data.sources.items():
        labels, good = source.labels(), np.delete(np.arange(len(source)), list(source.broken))
        groups = [good] if labels is None else [good[labels[good] == label] for label in np.unique(labels[good])]
        picks = [g[np.arange(min(count, len(g))) * len(g) // min(count, len(g))] for g in groups if len(g)]
        found[name] = sorted(int(index) for pick in picks for index in pick)
    return found


def make_subset(data: DataModule, root: Path, target: Path, count: int, copy: bool = False) -> dict[str, int]:
    """Make a folder that `data.root` can be, with `count` samples of each class (without classes: of each split).

    Args:
        data: the whole data set, set up.
        root: its folder, absolute.
        target: the new folder, absolute; see `check_target`.
        copy: copy the files; otherwise they are links, which hold as long as `root` stays where it is.

    Returns:
        Samples of each split.

    Raises:
        DataError: samples that are no files below `root`.
        UserError: `target` cannot be written.
    """
    kept: list[str] = []
    sizes = {}
    for name, indices in chosen(data, count).items():
        paths = [data.sources[name].path(index) for index in indices]
        if any(path is None or not Path(path).is_relative_to(root) or ".." in Path(path).parts for path in paths):
            raise DataError(f"subset: the samples of {type(data).__name__} are no files of their own below {root}")
        there = [Path(path).relative_to(root).as_posix() for path in paths if path is not None and os.path.exists(path)]
        sizes[name] = len(there)
        kept += there
    with _all_or_nothing(target) as unfinished:
        for file, text in data.part_of_lists(kept):
            (target_file := unfinished / file.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
            target_file.write_text(text, encoding="utf-8", newline="\n")
        with progress_bar("copying" if copy else "linking", len(kept), "samples") as advance:
            for path in kept:
                for file in map(Path, files_of(root / path)):  # below a folder there may be other clips
                    _put(file, unfinished / file.relative_to(root), copy)
                advance()
        samples = {root / path for path in kept} | {(root / path).parent for path in kept}
        for file in _extras(root, samples):
            if not (extra := unfinished / file.relative_to(root)).exists():
                _put(file, extra, copy=True)
    return sizes


def check_target(root: Path, target: Path) -> None:
    """Refuse a folder that a subset of the data set in `root` cannot be made in: one that holds something already, or
    lies in `root`, where it would be read as data; both absolute.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"subset_dir={target} is there already and not empty; choose another folder or delete it")
    if target.is_relative_to(root):
        raise ConfigError(f"subset_dir={target} lies in data.root={root} and would be read as data; choose another")


@contextlib.contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all is in it; otherwise nothing of it stays."""
    unfinished = temporary_name(target)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        if target.exists():
            target.rmdir()  # it is empty
        unfinished.rename(target)
    except OSError as error:
        advice = "Choose another subset_dir, or pass copy=true where links cannot be made."
        raise UserError(f"{printable(cannot_write(target, error))} {advice}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _extras(root: Path, samples: set[Path]) -> Iterator[Path]:
    """Small files at most three folders below `root`, outside of the folders that hold samples."""
    for directory, folders, files in walk(root):
        here = Path(directory)
        if len(here.relative_to(root).parts) == 3:
            folders.clear()
        folders[:] = [name for name in folders if here / name not in samples]
        for file in (here / name for name in files if name.lower().endswith(EXTRA_SUFFIXES)):
            if file.is_file() and file.stat().st_size <= EXTRA_BYTES:
                yield file


def _put(file: Path, target: Path, copy: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if copy:
        shutil.copyfile(file, target)
    else:
        target.symlink_to(file.resolve())
