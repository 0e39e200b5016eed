"""The numbers of a run, and of several runs side by side, as Markdown, CSV and JSON.

A run's numbers live in `<run>/report/metrics.{md,csv,json}`. The JSON file, `{"protocol": text, "facts": {...},
"rows": [row, ...]}`, is what the comparison reads; of the rows, the one whose `name` is `generated` is the run's own.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_rdm.core.files import write_text
from neural_rdm.reports.groups import differences
from neural_rdm.reports.runs import (
    flat,
    generated,
    labels,
    node,
    progress,
    read_mapping,
    rule_of,
)

Row = Mapping[str, Any]
MISSING = "-"


def markdown_table(rows: Sequence[Row]) -> str:
    """A Markdown table, a line a row, ending in a line break; columns of numbers are aligned to the right.

    Args:
        rows: a missing key or None is an empty cell; the columns stand in the order in which they first appear.
    """
    columns = _columns(rows)
    if not columns:
        return ""
    numeric = [all(_is_number(row.get(column)) for row in rows if row.get(column) is not None) for column in columns]
    lines = [[as_markdown(column) for column in columns], ["---:" if right else "---" for right in numeric]]
    lines += [[as_markdown(_plain(row.get(column))) for column in columns] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


@dataclass
class Footnotes:
    """Notes of one table, lettered in the order in which they are first needed; equal notes share a letter.

    Args:
        same: what is compared of a note.
    """

    same: Callable[[str], str] = str
    texts: list[str] = field(default_factory=list)

    def mark(self, note: str) -> str:
        """The mark of a note, such as `[a]`; nothing for an empty one."""
        if not note:
            return ""
        known, wanted = [self.same(text) for text in self.texts], self.same(note)
        if wanted not in known:
            self.texts.append(note)
            known.append(wanted)
        return f"[{_letter(known.index(wanted))}]"

    def list(self) -> str:
        """The notes as a Markdown list."""
        return "".join(f"- {self.mark(text)} {text}\n" for text in self.texts)


def with_protocols(
    rows: Sequence[Row], protocols: Sequence[str], same: Callable[[str], str] = str
) -> tuple[list[Row], str]:
    """Rows whose numbers can be compared where they bear the same letter, and Markdown that says what it stands for.

    Args:
        protocols: how the numbers of each row were made; "" for a row without any.
        same: what two protocols that can be compared have in common.

    Returns:
        The rows, with a column `protocol` where there is more than one.
    """
    notes = Footnotes(same)
    marks = [notes.mark(protocol) for protocol in protocols]
    if len(notes.texts) <= 1:
        return list(rows), "".join(f"\n- {text}\n" for text in notes.texts)
    told = f"\nMeasured by different protocols; only numbers of one letter can be compared:\n\n{notes.list()}"
    return [{**row, "protocol": mark or None} for row, mark in zip(rows, marks, strict=True)], told


def write_metrics(
    folder: str | Path, rows: Sequence[Row], protocol: str, facts: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write a run's numbers as `metrics.md`, `metrics.csv` and `metrics.json`; return the three paths.

    Args:
        folder: `<run>/report`.
        rows: plain values; the row with `name="generated"` is what `compare_runs` shows. In the JSON file NaN and
            infinities are the texts "nan", "inf" and "-inf", for JSON has no such numbers.
        protocol: one line that says how the numbers were made.
        facts: the same as plain values, for programs; they stand in the JSON file alone.
    """
    folder = Path(folder)
    plain = [{str(key): _plain(value) for key, value in row.items()} for row in rows]
    content: dict[str, Any] = {"protocol": protocol}
    content |= {} if facts is None else {"facts": _strict(facts)}
    content["rows"] = [_strict(row) for row in plain]
    contents = {
        "metrics.md": f"# Metrics\n\n{protocol}\n\n{markdown_table(plain)}",
        "metrics.csv": csv_text(plain),
        "metrics.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
    }
    for name, text in contents.items():
        write_text(folder / name, text)
    return [folder / name for name in contents]


def compare_runs(run_folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One row a run: `run`, `exp`, `residual`, `gates`, `gamma`, `depth`, `steps` (those done), `seed`, where not all
    are finished `state` ("finished" or "unfinished: step 30 of 400"), up to eight further keys in which the runs differ
    (`choices.diffusion`, `optimizer.lr`; a dash where a run has no such key), then the numbers of its row `generated`.

    Reads `config.yaml`, `report/metrics.json` and how far the run is. What is missing or unreadable becomes an empty
    cell (None): a comparison of many runs must not fail over one that was cut. Runs are called as `labels` says.
    """
    folders = [Path(folder) for folder in run_folders]
    configs = [read_mapping(folder / "config.yaml") for folder in folders]
    differing = differences(configs)
    far = [progress(folder) for folder in folders]
    rows = []
    for folder, label, config, reached in zip(folders, labels(folders), configs, far, strict=True):
        row = {
            "run": label,
            "exp": node(config, "choices").get("exp"),
            "residual": rule_of(config),
            "gates": "none" if config.get("control") else _gates(config.get("residual")),
            "gamma": config.get("gamma"),
            "depth": node(config, "backbone").get("depth"),
            "steps": reached.done,
            "seed": config.get("seed"),
        }
        row |= {"state": str(reached)} if any(each.finished is False for each in far) else {}
        values = flat(config)
        row |= {key: values.get(key, MISSING if config else None) for key in differing}
        rows.append(row | {key: value for key, value in generated(folder).items() if key not in row and key != "name"})
    return rows


def _letter(index: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (_letter(index // 26 - 1) if index >= 26 else "") + chr(ord("a") + index % 26)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def csv_text(rows: Sequence[Row], columns: Sequence[str] | None = None) -> str:
    """Rows as CSV in full precision: the table is for reading, the CSV for computing.

    Args:
        columns: which keys, in which order; by default all, in the order in which they first appear.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns or _columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """A scalar tensor or NumPy number as a Python number; plain values as they are, anything else as text."""
    value = value.item() if hasattr(value, "item") else value
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


def _strict(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them: lists stay lists, and NaN and infinities become texts."""
    plain = {str(key): value if isinstance(value, list) else _plain(value) for key, value in values.items()}
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


def _is_number(value: Any) -> bool:
    value = _plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_markdown(value: Any) -> str:
    """A value as one line of Markdown; a name that somebody else gave is no column, no link, no picture that a viewer
    would fetch, and no HTML.
    """
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"\||(?<=\])\(|<(?=[a-zA-Z!/?])", r"\\\g<0>", " ".join(text.split()))


def _gates(residual: Any) -> str | None:
    """The shape of a run's gates in a few words; "none" for the plain rule."""
    if not isinstance(residual, dict):
        return None
    if residual.get("rule") == "resnet":
        return "none"
    words = [residual.get("granularity")]
    words += ["time-conditioned"] if residual.get("time_conditioned") else []
    words += {"linear": ["linear beta"], "none": ["no beta"]}.get(str(residual.get("beta_form")), [])
    return ", ".join(str(word) for word in words if word) or None
