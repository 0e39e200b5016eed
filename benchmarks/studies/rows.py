"""The committed lines of the studies: `results/studies/NAME.csv`, a run a line, with its seed, commit and machine."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks.training import Row
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import csv_text

RESULTS = Path(__file__).parents[1] / "results" / "studies"
#: columns that are no numbers
TEXT = ("rule", "target", "optimizer", "gates", "case", "stage", "broken", "commit", "machine")


def read(name: str) -> list[Row]:
    """The runs of a study that are done, in the order of the file: numbers as numbers, vectors as lists, None where
    there is nothing.
    """
    path = RESULTS / f"{name}.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def add(name: str, row: Row) -> None:
    """Put a run behind the others; the file is whole at every moment."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    rows = [*read(name), row]
    columns = list(dict.fromkeys(key for each in rows for key in each))
    write_text(RESULTS / f"{name}.csv", csv_text([{key: _text(each.get(key)) for key in columns} for each in rows]))


def _text(value: object) -> object:
    if isinstance(value, list):
        return " ".join(f"{number:.5g}" for number in value)
    return f"{value:.7g}" if isinstance(value, float) else value


def _value(key: str, text: str) -> object:
    if key in TEXT:
        return text
    if not text:
        return None
    if " " in text:
        return [float(part) for part in text.split()]
    return int(text) if text.lstrip("-").isdigit() else float(text)
