"""CSV files that grow by rows keyed by the optimizer step, and that a resumed run cuts back to where it goes on.

What cannot be read of one that was damaged, or that a spreadsheet has saved, is kept beside it and said to be.
"""

from __future__ import annotations

import codecs
import csv
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import WriteError
from neural_rdm.core.files import cannot_write, write_atomically, write_text
from neural_rdm.core.given import regular

log = logging.getLogger(__name__)

_TAIL = 1 << 16  # bytes: many rows
_DIGITS = 18  # that a step has at most


class StepRecords:
    """An append-only CSV whose first column is `step`. Rows are on disk as soon as `append` returns.

    New columns may appear at any time; the file is then rewritten once, atomically, with the longer header: first
    `columns`, then the others in the order in which they first had a value. Floats are written by `repr`. So equal runs
    give equal bytes, also where one of them was killed, cut back and resumed.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ("step",)) -> None:
        self.path = path
        self._header: list[str] = []  # what the file holds
        if path.is_file():
            self._header = _repaired(path).columns
        self.columns = list(dict.fromkeys([*columns, *self._header]))

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (a missing or None value is an empty cell, and makes no new column).

        Raises:
            WriteError: the disk is full or the folder cannot be written.
        """
        valued = (name for row in rows for name, value in row.items() if value is not None)
        self.columns = list(dict.fromkeys([*self.columns, *valued]))
        fresh = not self.path.is_file() or self.path.stat().st_size == 0
        if not fresh and self._header != self.columns:
            write_text(self.path, _text(self.columns, _repaired(self.path).rows, header=True))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(_text(self.columns, rows, header=fresh))
        except OSError as error:
            raise WriteError(cannot_write(self.path, error)) from error
        self._header = self.columns


@dataclass
class _Content:
    """What a records file holds.

    columns: its header; rows: those that can be read; bad: the other lines, as they are; cut: the last line, where a
    kill cut it short; odd: the header is damaged, or no file of this project's begins like that.
    """

    columns: list[str]
    rows: list[dict[str, str]]
    bad: list[bytes]
    cut: bytes
    odd: bool


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a records file; a last line that a kill cut short is left out.

    Others that cannot be read are left out with a warning.
    """
    content = _parsed(Path(regular(path)).read_bytes())
    if content.bad:
        log.warning("%s: %d rows cannot be read and are left out", path, len(content.bad))
    return content.rows


def last_step(path: Path) -> int | None:
    """The optimizer step of the last whole row, read from the end of the file; None where it has none.

    Raises:
        OSError: it cannot be read.
    """
    with open(regular(path), "rb") as file:
        header, size, tail = file.readline(), path.stat().st_size, _TAIL
        while True:
            file.seek(begins := max(len(header), size - tail))
            end = file.read(size - begins)
            if begins > len(header):
                end = end.partition(b"\n")[2]  # without the row that it begins in
            step = max((int(row["step"]) for row in _parsed(header + end).rows), default=None)
            if step is not None or begins <= len(header):
                return step
            tail *= 8  # rows are longer than that, or damaged


def truncate(path: Path, step: int) -> None:
    """Keep only the rows up to and including optimizer step `step`; a file without such rows is removed.

    What cannot be read is kept in a file beside it, such as `metrics.unreadable-1.csv`, with a line that says so.
    """
    if not path.is_file():
        if os.path.lexists(path) and not path.is_dir():
            path.unlink()  # a link that leads nowhere yet: rows would make a file there; or a pipe, which nobody reads
        return
    content = _parsed(path.read_bytes())
    begins, comma, _ = content.cut.partition(b",")
    if comma and not (_is_step(begins) and int(begins) > step):  # of a later step it is written again
        content.bad.append(content.cut)
    _keep_unreadable(path, content)
    kept = [row for row in content.rows if int(row["step"]) <= step]
    if not kept:
        path.unlink()
        return
    used = [c for c in content.columns if any(row[c] != "" for row in kept)]
    write_text(path, _text(used, kept, header=True))


def _repaired(path: Path) -> _Content:
    """What a file holds, which is then what can be read of it."""
    content = _parsed(path.read_bytes())
    if content.bad or content.odd:
        _keep_unreadable(path, content)
        write_text(path, _text(content.columns, content.rows, header=True) if content.rows else "")
    return content


def _keep_unreadable(path: Path, content: _Content) -> None:
    if not content.bad and not content.odd:
        return
    number = 1
    while (aside := path.with_name(f"{path.stem}.unreadable-{number}{path.suffix}")).exists():
        number += 1
    whole = path.read_bytes()
    kept = whole if content.odd else b"\n".join([whole.partition(b"\n")[0], *content.bad, b""])
    write_atomically(aside, lambda file: file.write(kept))
    lines = f"{len(content.bad)} of its {len(content.bad) + len(content.rows)} rows cannot be read"
    what = f"its first line is damaged, and {lines}" if content.odd else lines
    print(f"{path}: {what}; {'the file as it was is' if content.odd else 'these are'} kept in {aside.name}", flush=True)


def _parsed(content: bytes) -> _Content:
    """Read a file line by line, so that what is damaged in one of them spoils no other."""
    text = content.removeprefix(codecs.BOM_UTF8)
    first, *lines = text.split(b"\n")
    cut = lines.pop() if lines else b""
    columns = _cells(first, "backslashreplace") or []
    parsed = [(line, _cells(line)) for line in lines if line.strip()]
    odd = bool(parsed) and (columns[:1] != ["step"] or len(set(columns)) < len(columns) or "\\x" in "".join(columns))
    if odd:  # the first column is the step, whatever it is called now; names that are there twice say nothing
        columns = ["step", *columns[1:]] if len(set(columns[1:]) | {"step"}) == len(columns) else []
    wrong = {
        i for i, (_, cells) in enumerate(parsed)
        if cells is None or len(cells) != len(columns) or not _is_step(cells[0].encode())
    }  # fmt: skip
    right = [i for i in range(len(parsed)) if i not in wrong]
    steps = {i: int(parsed[i][1][0]) for i in right}  # type: ignore[index]
    for before, i, after in zip(right, right[1:], right[2:], strict=False):
        if steps[before] <= steps[after] and not steps[before] <= steps[i] <= steps[after]:
            wrong.add(i)  # a digit of its step is another
    rows = [dict(zip(columns, parsed[i][1] or [], strict=True)) for i in right if i not in wrong]
    if odd and not rows:
        columns = []  # those of a first line under which nothing can be read
    return _Content(columns, rows, [parsed[i][0] for i in sorted(wrong)], cut, odd)


def _is_step(cell: bytes) -> bool:
    return cell.isdigit() and len(cell) <= _DIGITS


def _cells(line: bytes, errors: str = "strict") -> list[str] | None:
    try:
        return next(csv.reader([line.decode("utf-8", errors).removesuffix("\r")], strict=True), [])
    except (UnicodeDecodeError, csv.Error):
        return None


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
