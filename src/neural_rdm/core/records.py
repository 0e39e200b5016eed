"""CSV files that grow by rows keyed by the optimizer step, and that a resumed run cuts back to where it goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import WriteError
from neural_rdm.core.files import cannot_write, write_text


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
            with path.open(newline="", encoding="utf-8") as file:
                self._header = next(csv.reader(file), [])
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
            write_text(self.path, self._text(read_rows(self.path), header=True))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(self._text(rows, header=fresh))
        except OSError as error:
            raise WriteError(cannot_write(self.path, error)) from error
        self._header = self.columns

    def _text(self, rows: Sequence[Mapping[str, Any]], header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a records file; a last line that a kill cut short is left out."""
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = list(csv.DictReader(lines))
    return [row for row in rows if None not in row and None not in row.values() and row.get("step", "").isdigit()]


def truncate(path: Path, step: int) -> None:
    """Keep only the rows up to and including optimizer step `step`; a file without such rows is removed."""
    if not path.is_file():
        return
    kept = [row for row in read_rows(path) if int(row["step"]) <= step]
    if not kept:
        path.unlink()
        return
    records = StepRecords(path)
    used = [c for c in records.columns if any(row[c] != "" for row in kept)]
    records.columns = used
    write_text(path, records._text([{c: row[c] for c in used} for row in kept], header=True))
