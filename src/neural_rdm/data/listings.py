"""The lists that data sets ship: which samples they name, which of those are there, and the lists of a part of them.

A data module reads the lists for training; here they are read for `prepare`, which says what is missing by name and
makes small subsets whose lists name what they hold.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_text
from neural_rdm.core.layouts import VIDEO_SUFFIXES
from neural_rdm.data.clips import find_videos


@dataclass(frozen=True)
class Listing:
    """One list.

    Attributes:
        file: where it stands.
        split: "train" or "val".
        named: how many samples it names.
        missing: which of them are not there, as the list names them.
        counts: whether the data module counts the missing ones, as samples that cannot be read.
    """

    file: Path
    split: str
    named: int
    missing: list[str]
    counts: bool = False


def read_listings(kind: str, root: Path, split: int = 1) -> list[Listing]:
    """The lists of a data set that there are below `root`; none for kinds of data that have no lists.

    Args:
        kind: name of the data module's class.
        split: which of UCF-101's three.

    Raises:
        DataError: a list that is there cannot be read.
    """
    reader = {"COCO": _coco, "JourneyDB": _journeydb, "UCF101": _ucf, "TaichiHD": _taichi}.get(kind)
    try:
        return [] if reader is None else reader(root, split)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"data.root: a list of {root} cannot be read: {error}") from error


def write_listings(kind: str, root: Path, target: Path, kept: Collection[str]) -> list[Path]:
    """Write the lists of `root` into `target`, cut down to the samples that are kept; return the files.

    Args:
        kept: the samples' paths below `root`.
    """
    kept = frozenset(kept)
    if kind == "COCO":
        return [_part_of_coco(file, root, target, kept) for file in _coco_files(root)]
    written = []
    if kind == "JourneyDB":
        for name in ("train", "valid"):
            keys = {_below_imgs(path.partition("/")[2]) for path in kept if path.startswith(f"{name}/")}
            for file in _last(root / name):
                lines = [line for line in _lines(file) if _below_imgs(json.loads(line)["img_path"]) in keys]
                written.append(_write_lines(target / file.relative_to(root), lines))
    if kind == "UCF101" and (lists := _ucf_folder(root)) is not None:
        names = set(map(_stem, kept))
        for file in sorted(lists.glob("*.txt")):
            lines = list(_lines(file))
            if file.name != "classInd.txt":
                lines = [line for line in lines if _stem(line.split()[0]) in names]
            written.append(_write_lines(target / file.relative_to(root), lines))
    if kind == "TaichiHD":
        names = set(map(_stem, kept))
        for file in _taichi_files(root):
            first, *lines = _lines(file)
            rows = [line for line, row in zip(lines, _rows(file), strict=True) if _taichi_name(row) in names]
            written.append(_write_lines(target / file.relative_to(root), [first, *rows]))
    return written


def _coco_files(root: Path) -> list[Path]:
    year = "2014" if (root / "train2014").is_dir() and not (root / "train2017").is_dir() else "2017"
    files = (root / "annotations" / f"captions_{part}{year}.json" for part in ("train", "val"))
    return [file for file in files if file.is_file()]


def _coco(root: Path, split: int) -> list[Listing]:
    found = []
    for file in _coco_files(root):
        folder = root / file.stem.removeprefix("captions_")
        names = [image["file_name"] for image in json.loads(file.read_text(encoding="utf-8"))["images"]]
        there = _entries(folder)
        missing = [f"{folder.name}/{name}" for name in names if name not in there]
        found.append(Listing(file, folder.name.rstrip("0123456789"), len(names), missing, counts=True))
    return found


def _part_of_coco(file: Path, root: Path, target: Path, kept: frozenset[str]) -> Path:
    folder = file.stem.removeprefix("captions_")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    content["images"] = [image for image in content["images"] if f"{folder}/{image['file_name']}" in kept]
    numbers = {image["id"] for image in content["images"]}
    content["annotations"] = [said for said in content["annotations"] if said["image_id"] in numbers]
    path = target / file.relative_to(root)
    write_text(path, json.dumps(content))
    return path


def _last(folder: Path) -> list[Path]:
    """The list that `JourneyDB` reads: the last one by name."""
    return sorted(folder.glob("*.jsonl"))[-1:]


def _below_imgs(path: str) -> str:
    return path.removeprefix("./").removeprefix("imgs/")


def _journeydb(root: Path, split: int) -> list[Listing]:
    found = []
    for name, kind in (("train", "train"), ("valid", "val")):
        folder = root / name
        images = folder / "imgs" if (folder / "imgs").is_dir() else folder
        for file in _last(folder):
            paths = [_below_imgs(json.loads(line)["img_path"]) for line in _lines(file)]
            missing = [f"{name}/{images.relative_to(folder) / p}" for p in paths if not (images / p).is_file()]
            found.append(Listing(file, kind, len(paths), missing, counts=True))
    return found


def _ucf_folder(root: Path) -> Path | None:
    return next((path.parent for path in sorted(root.rglob("classInd.txt"))), None)


def _ucf(root: Path, split: int) -> list[Listing]:
    lists = _ucf_folder(root)
    if lists is None:
        return []
    there = _videos(root)
    found = []
    for part, kind in (("train", "train"), ("test", "val")):
        file = lists / f"{part}list0{split}.txt"
        if file.is_file():
            names = [line.split()[0] for line in _lines(file)]
            missing = [name for name in names if _stem(name) not in there]
            found.append(Listing(file, kind, len(names), missing))
    return found


def _taichi_files(root: Path) -> list[Path]:
    """The tables of clips among the csv files beside the clips: those with a column `partition`."""
    return [file for file in sorted(root.glob("*.csv")) if "partition" in next(_lines(file), "").split(",")]


def _taichi_name(row: dict[str, str]) -> str:
    """How first-order-model's load_videos.py names the clip of a row, without its ending."""
    return f"{row['video_id']}#{row['start'].zfill(6)}#{row['end'].zfill(6)}"


def _taichi(root: Path, split: int) -> list[Listing]:
    found, there = [], _videos(root)
    for file in _taichi_files(root)[:1]:
        rows = _rows(file)
        for part, kind in (("train", "train"), ("test", "val")):
            names = [_taichi_name(row) for row in rows if row["partition"] == part]
            found.append(Listing(file, kind, len(names), [f"{part}/{name}" for name in names if name not in there]))
    return found


def _videos(root: Path) -> set[str]:
    return {_stem(path.as_posix()) for path in find_videos(root)}


def _stem(path: str) -> str:
    """The name of a video without the ending of a video file; a folder of frames may have a dot in its name."""
    name = path.rpartition("/")[2]
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in VIDEO_SUFFIXES else name


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_lines(file)))


def _entries(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _lines(file: Path) -> Iterator[str]:
    """The lines of a list that are not blank, one at a time, whatever ends them.

    They end at line feeds alone: a caption may hold other characters that `str.splitlines` would split it at.
    """
    with file.open(encoding="utf-8", newline="\n") as text:
        yield from (line.rstrip("\r\n") for line in text if line.strip())


def _write_lines(path: Path, lines: Iterable[str]) -> Path:
    write_text(path, "".join(f"{line}\n" for line in lines))
    return path
