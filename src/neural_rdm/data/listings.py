"""The lists that data sets ship: which samples they name, which of those are there, and the lists of a part of them.

They are read by what the data modules read them with; here `prepare` learns what is missing by name, and small subsets
get lists that name what they hold.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from neural_rdm.data.captions import COCO, Captioned, JourneyDB, absent
from neural_rdm.data.video import clip_rows, clip_table, list_folder, list_lines
from neural_rdm.data.video_files import clip_name, find_candidates

#: of which split the parts of the lists of videos are
_PARTS = {"train": "train", "test": "val"}


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
    if kind in _CAPTIONED:
        return list(_captioned(_CAPTIONED[kind], root))
    if kind == "UCF101":
        return list(_ucf(root, split))
    return list(_taichi(root)) if kind == "TaichiHD" else []


def write_listings(kind: str, root: Path, target: Path, kept: Collection[str]) -> None:
    """Write the lists of `root` into `target`, cut down to the samples that are kept.

    Args:
        kept: the samples' paths below `root`.

    Raises:
        DataError: a list cannot be read.
        OSError: one cannot be written.
    """
    parts = {
        "COCO": _part_of_coco,
        "JourneyDB": _part_of_journeydb,
        "UCF101": _part_of_ucf,
        "TaichiHD": _part_of_taichi,
    }
    for file, text in parts[kind](root, frozenset(kept)) if kind in parts else ():
        path = target / file.relative_to(root)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


_CAPTIONED: dict[str, type[Captioned]] = {"COCO": COCO, "JourneyDB": JourneyDB}


def _captioned(kind: type[Captioned], root: Path) -> Iterator[Listing]:
    for split, (folder, file) in kind.splits(root).items():
        if file.is_file():
            names = list(kind.read(folder, file).captions)
            missing = [f"{folder.name}/{name}" for name in absent(folder, names)]
            yield Listing(file, split, len(names), missing, counts=True)


def _part_of_coco(root: Path, kept: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """Images and annotations as they are, with all that the file says of them."""
    for folder, file in COCO.splits(root).values():
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8-sig"))
            content["images"] = [i for i in content["images"] if _below(folder, str(i["file_name"])) in kept]
            numbers = {str(image["id"]) for image in content["images"]}
            said = (entry for entry in content["annotations"] if isinstance(entry, dict))
            content["annotations"] = [entry for entry in said if str(entry.get("image_id")) in numbers]
            yield file, json.dumps(content)


def _part_of_journeydb(root: Path, kept: frozenset[str]) -> Iterator[tuple[Path, str]]:
    for folder, file in JourneyDB.splits(root).values():
        found = JourneyDB.lines(folder, file)
        lines = (line for line, entry in found if isinstance(entry, tuple) and _below(folder, entry[0]) in kept)
        yield file, _lines(line.decode("utf-8-sig").strip() for line in lines)


def _below(folder: Path, name: str) -> str:
    """An image of a split as a path below the root."""
    return PurePosixPath(folder.name, name).as_posix()


def _ucf(root: Path, split: int) -> Iterator[Listing]:
    lists, there = list_folder(root), _there(root)
    for part, kind in _PARTS.items():
        if lists is not None and (file := lists / f"{part}list0{split}.txt").is_file():
            names = [line.split()[0] for line in list_lines(file)]
            yield Listing(file, kind, len(names), [n for n in names if Path(n).stem.casefold() not in there])


def _part_of_ucf(root: Path, kept: frozenset[str]) -> Iterator[tuple[Path, str]]:
    lists, names = list_folder(root), _names(map(Path, kept))
    if lists is not None:
        yield lists / "classInd.txt", _lines(list_lines(lists / "classInd.txt"))
        for file in sorted(lists.glob("t*list0?.txt")):
            yield file, _lines(line for line in list_lines(file) if Path(line.split()[0]).stem.casefold() in names)


def _taichi(root: Path) -> Iterator[Listing]:
    if (file := clip_table(root)) is not None:
        rows, there = clip_rows(file), _there(root)
        for part, kind in _PARTS.items():
            names = [name for name, of, _ in rows if of == part]
            yield Listing(file, kind, len(names), [f"{part}/{n}" for n in names if n.casefold() not in there])


def _part_of_taichi(root: Path, kept: frozenset[str]) -> Iterator[tuple[Path, str]]:
    if (file := clip_table(root)) is not None:
        rows, names, text = clip_rows(file), _names(map(Path, kept)), io.StringIO()
        table = csv.DictWriter(text, list(rows[0][2]) if rows else [], extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(row for name, _, row in rows if name.casefold() in names)
        yield file, text.getvalue()


def _there(root: Path) -> set[str]:
    """Names of the videos below a folder."""
    found = find_candidates(root)
    return _names([*found.files, *found.folders])


def _names(paths: Iterable[Path]) -> set[str]:
    """The names by which lists call videos, in small letters."""
    return {clip_name(path).casefold() for path in paths}


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
