"""The lists that UCF-101 and Taichi-HD ship: which clips there are, of which class and split."""

from __future__ import annotations

import csv
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.core.given import regular
from neural_rdm.core.listing import walk


def clip_table(root: Path) -> Path | None:
    """Taichi-HD's table of clips: the first csv file in the folder that has a column `partition`."""
    tables = sorted(root.glob("*.csv"))
    return next((file for file in tables if "partition" in next(iter(list_lines(file)), "").split(",")), None)


def clip_rows(file: Path) -> list[tuple[str, str, dict[str, str]]]:
    """(name of the clip as load_videos.py of first-order-model gives it, train or test, row) of a table of clips.

    Raises:
        DataError: it is no such table.
    """
    try:
        rows = list(csv.DictReader(list_lines(file)))
        found = [(f"{r['video_id']}#{int(r['start']):06d}#{int(r['end']):06d}", r["partition"], r) for r in rows]
        if strange := {part for _, part, _ in found} - {"train", "test"}:
            raise ValueError(f"partition {min(map(str, strange))}")
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"data.root: {file} is not a table of clips (video_id, start, end, partition train or test): {error}"
        ) from error
    return found


def list_folder(root: Path) -> Path | None:
    """The folder of UCF-101's official lists."""
    return next((Path(folder) for folder, _, files in walk(root) if "classInd.txt" in files), None)


def class_numbers(file: Path) -> dict[str, int]:
    """{name: label from 0 on} of a list that counts from 1."""
    try:
        found = {name: int(number) - 1 for number, name in (line.split() for line in list_lines(file))}
    except ValueError as error:
        raise DataError(f"data.root: a line of {file} is not a number and a name: {error}") from error
    if sorted(found.values()) != list(range(len({name.casefold() for name in found}))):
        raise DataError(f"data.root: {file} does not number its classes from 1 on")
    return found


def list_lines(path: Path) -> list[str]:
    """The lines of an official list that are not blank, whatever ends them."""
    try:
        return [line for line in Path(regular(path)).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.root: cannot read {path}: {getattr(error, 'strerror', error)}") from error
