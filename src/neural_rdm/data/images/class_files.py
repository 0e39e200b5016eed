"""Which images lie in class folders, and what there is in them that is no image of its own."""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import BrokenSample, printable
from neural_rdm.core.listing import Identity, file_names, identity
from neural_rdm.data.packed import PackedPaths
from neural_rdm.media.suffixes import UNREAD_SUFFIXES, is_image


@dataclass
class ClassFiles:
    """What lies in class folders.

    Attributes:
        folders: the class folders; some may be absent.
        names: names of the images, folder by folder.
        counts: how many of them are of each folder.
        left_out: folders without an image, and pictures of formats that are not read.
        notes: images that are there twice, in words.
    """

    folders: Sequence[Path]
    names: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    left_out: list[BrokenSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def list_classes(folders: Sequence[Path]) -> ClassFiles:
    """The images directly in each of these folders, by name; folders may be absent.

    A file that has two names in one folder counts once. A folder that is a link is a class like any other; images that
    two classes share (a file of two names, or one folder as two classes) count in both. Either is said in the notes,
    as is a picture that lies beside one of the same name in another format: nothing says that it is the same picture.
    """
    found = ClassFiles(folders)
    again: list[str] = []
    formats: list[tuple[str, str]] = []
    entered: dict[Identity, Path] = {}
    marks = array("q")
    for folder in folders:
        names, twice, its_marks = file_names(folder, _is_picture) if folder.is_dir() else ([], {}, [])
        images = [name for name in names if is_image(name)]
        found.left_out += [
            BrokenSample(f"{_suffix(name)} files are not read; convert it to PNG or JPEG", folder / name)
            for name in names
            if not is_image(name)
        ]
        if folder.is_dir():
            if not images:
                found.left_out.append(BrokenSample("a class folder without an image", folder))
            if (which := identity(folder)) is not None and (other := entered.setdefault(which, folder)) is not folder:
                found.notes.append(
                    f"{printable(folder)} and {printable(other)} are one folder: its images have two labels"
                )
                its_marks = list(range(len(marks), len(marks) + len(names)))  # said once
        again += [f"{folder / name} is {first}" for name, first in twice.items()]
        stems = Counter(os.path.splitext(name)[0] for name in images)
        if len(stems) < len(images):
            stem = next(stem for stem, count in stems.items() if count > 1)
            formats += [(stem, os.fspath(folder))] * (len(images) - len(stems))
        marks.extend(mark for name, mark in zip(names, its_marks, strict=True) if is_image(name))
        found.names += images
        found.counts.append(len(images))
    found.notes += _shared(found, np.asarray(marks))
    if again:
        found.notes.append(f"{len(again)} second names of images are left out, such as {printable(again[0])}")
    if formats:
        where = printable(os.path.join(formats[0][1], formats[0][0]))
        found.notes.append(
            f"{len(formats)} images have the name of another one in the same folder and another ending, such as "
            f"{where}.*: they count as images of their own. Remove them if they are the same pictures"
        )
    return found


def _shared(found: ClassFiles, marks: NDArray[np.int64]) -> list[str]:
    """What to say of files that lie in two of the folders, or under two names that a link in another folder has."""
    order = np.argsort(marks, kind="stable")
    places = np.flatnonzero(np.diff(marks[order]) == 0)
    if not len(places):
        return []
    paths = PackedPaths(list(map(os.fspath, found.folders)), found.names, found.counts)
    first, second = (printable(paths[int(place)]) for place in order[places[0] : places[0] + 2])
    return [f"{len(places)} images are files of two names, such as {first} and {second}: they count in each class"]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_picture(name: str) -> bool:
    return is_image(name) or _suffix(name) in UNREAD_SUFFIXES
