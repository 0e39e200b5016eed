"""Tables 1 and 2 of the paper (arXiv 2406.13215) with all their baselines, and one's own evaluated runs in them.

The numbers live in `published.yaml` beside this file, each with the source in which it was read. A number of one's own
stands in a column only if it is of the column's data and in the features of the column's network. It bears a mark and
a footnote that says in what it was made by another protocol than the column's (another count of samples, guidance,
another size, raw weights, an unfinished run, or what was not recorded), and always what the paper states for no number:
the sampler, and the statistics of real samples. Numbers of other data or in other features have a table of their own,
which says why: they cannot be compared with any number of the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from neural_rdm.core.files import write_text
from neural_rdm.reports.own import OwnRun
from neural_rdm.reports.tables import Footnotes, csv_text, markdown_table

DATA_FILE = Path(__file__).with_name("published.yaml")
DASH, NOT_FOUND = "–", "not found"
CSV_COLUMNS = ("table", "kind", "architecture", "method", "column", "metric", "value", "source", "also_in", "notes")


@functools.cache
def published() -> dict[str, Any]:
    """The content of `published.yaml`: `sources`, `notes` and `tables`."""
    return yaml.safe_load(DATA_FILE.read_text(encoding="utf-8"))


def write_published(folder: str | Path, runs: Sequence[OwnRun] = ()) -> list[Path]:
    """Write `published.md`, the two tables to read, and `published.csv`, a line a number with its source.

    Args:
        runs: one's own, which stand below the paper's rows with their marks.
    """
    content, folder = published(), Path(folder)
    pages: list[str] = []
    lines: list[dict[str, Any]] = []
    placed: set[str] = set()
    for table in content["tables"]:
        columns = table["columns"]
        notes = Footnotes()
        rows = [_published_row(table, columns, row, notes, lines) for row in table["rows"]]
        for run in runs:
            if (row := _own_row(table, columns, run, notes, lines)) is not None:
                rows.append(row)
                placed.add(run.name)
        pages.append(
            f"## Table {table['number']}. {table['title']}\n\n{' '.join(table['says'].split())}\n\n"
            f"{markdown_table(rows)}\n{notes.list()}"
        )
    pages.append(_incomparable(runs, lines) + _own_protocols(runs, placed) + _sources(content, lines))
    head = f"# The tables of arXiv 2406.13215\n\n{DASH}: none there.\n\n"
    write_text(folder / "published.md", head + "\n".join(pages))
    write_text(folder / "published.csv", csv_text(lines, CSV_COLUMNS))
    return [folder / "published.md", folder / "published.csv"]


def _published_row(
    table: dict[str, Any], columns: dict[str, Any], row: dict[str, Any], notes: Footnotes, lines: list[dict[str, Any]]
) -> dict[str, str]:
    note = "; ".join(published()["notes"][key] for key in row.get("notes", ()))
    cite = f" [{row['cite']}]" if "cite" in row else ""
    cells = _first_cells(table, row["architecture"], f"{row['method']}{cite} {notes.mark(note)}", row["scalability"])
    for key, column in columns.items():
        entry = row["values"].get(key)
        cells[column["title"]] = entry[0] if entry else DASH
        if entry and entry[0] != NOT_FOUND:
            lines.append(
                _line(table, "published", row["architecture"], row["method"], column, entry[0], note, entry[1])
                | {"metric": column["title"].split()[-1], "also_in": " ".join(entry[2:])}
            )
    return cells


def _own_row(
    table: dict[str, Any], columns: dict[str, Any], run: OwnRun, notes: Footnotes, lines: list[dict[str, Any]]
) -> dict[str, str] | None:
    """A run's row, or None where none of its numbers has a column."""
    cells, empty = _first_cells(table, "own run", run.name, ""), True
    for column in columns.values():
        found = run.cell(column)
        cells[column["title"]] = DASH
        if found is not None:
            metric, value, note = found
            cells[column["title"]] = f"{value:.4g} {notes.mark(note)}"
            lines.append(
                _line(table, "own", "own run", run.name, column, value, note, "report/metrics.json")
                | {"metric": metric}
            )
            empty = False
    return None if empty else cells


def _first_cells(table: dict[str, Any], architecture: str, method: str, scalability: str) -> dict[str, str]:
    first = {"Architecture": architecture} if table["architecture"] else {}
    return {**first, "Method": method, "Scalability": scalability}


def _line(
    table: dict[str, Any], kind: str, architecture: str, method: str, column: dict[str, Any], *rest: Any
) -> dict[str, Any]:
    values = (table["number"], kind, architecture, method, column["title"], *rest)
    names = ("table", "kind", "architecture", "method", "column", "value", "notes", "source")
    return dict(zip(names, values, strict=True))


def _incomparable(runs: Sequence[OwnRun], lines: list[dict[str, Any]]) -> str:
    """The numbers that are of a column's kind and stand in none, in a table of their own with the reasons."""
    rows = []
    columns = [(table, column) for table in published()["tables"] for column in table["columns"].values()]
    for run in runs:
        reasons: dict[str, tuple[list[str], dict[str, Any], dict[str, Any]]] = {}
        for table, column in columns:
            for key, space in run.candidates(column):
                found = run.barriers(column, space)
                if key not in reasons or len(found) < len(reasons[key][0]):  # of several columns the nearest
                    reasons[key] = found, table, column
        for key, (why, table, column) in reasons.items():
            if why:
                value, how = float(run.numbers[key]), "; ".join(run.differences(column) + run.made(column))
                rows.append(
                    {"Run": run.name, "Number": key, "Value": f"{value:.4g}", "Not in the column": column["title"]}
                    | {"Because": "; ".join(why), "How it was made": how}
                )
                note = "; ".join([*why, how])
                line = _line(table, "not comparable", "own run", run.name, column, value, note, "report/metrics.json")
                lines.append(line | {"column": "", "metric": key})
    if not rows:
        return ""
    text = "## Own numbers that no number of the paper can be compared with\n\n"
    text += "Distances and scores of other data, or in other features, are other quantities.\n\n"
    return f"{text}{markdown_table(rows)}\n"


def _own_protocols(runs: Sequence[OwnRun], placed: set[str]) -> str:
    if not runs:
        return ""
    text = "## Own runs, as they were measured\n\n"
    text += (
        "The paper states neither the sampler nor the statistics of real samples behind its numbers; the notes above\n"
    )
    text += "tell those of one's own.\n\n"
    for run in runs:
        where = "" if run.name in placed else "no column of these tables fits its numbers. "
        text += f"- {run.name}: {where}{run.protocol or 'it has no report with a protocol.'}\n"
    return text + "\n"


def _sources(content: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    theirs = [line for line in lines if line["kind"] == "published"]
    checked = sum(bool(line["also_in"]) for line in theirs)
    missing = [
        f"Table {table['number']}, {row['method']}, {table['columns'][key]['title']}"
        for table in content["tables"]
        for row in table["rows"]
        for key, entry in row["values"].items()
        if entry and entry[0] == NOT_FOUND
    ]
    text = f"## Sources\n\n{checked} of the {len(theirs)} numbers of the paper were found in a second source as well "
    text += "(column `also_in` of published.csv); the others stand in the paper's tables alone.\n"
    text += f"Not found: {'; '.join(missing)}.\n" if missing else ""
    return text + "\n" + "".join(f"- {key}: {' '.join(name.split())}\n" for key, name in content["sources"].items())
