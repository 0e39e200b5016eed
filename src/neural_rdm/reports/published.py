"""Tables 1 and 2 of the paper (arXiv 2406.13215) with all their baselines, and one's own evaluated runs in them.

The numbers live in `published.yaml` beside this file, each with the source in which it was read. A number of one's own
stands in a column only with a mark and a footnote that says in what it was made by another protocol than the column's
(other features, another count of samples, guidance, other data, another size, raw weights, or one that was not
recorded), and always what the paper states for no number: the sampler, and the statistics of real samples.

Which of a run's numbers belong to a column is told by their names in `report/metrics.json`, row `generated`; SPACE is
the feature network. How they were made is told by its `facts`.

| column | names |
|---|---|
| FID, sFID, IS of images | `frechet_SPACE`, `frechet_SPACE_spatial`, `inception_score_SPACE` |
| Frame FID, Frame IS | `frechet_SPACE_frames`, `inception_score_SPACE_frames` |
| FVD | `frechet_i3d`, `frechet_SPACE_video` |
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import Footnotes, csv_text, generated, labels, markdown_table, read_mapping, read_report

DATA_FILE = Path(__file__).with_name("published.yaml")
DASH, NOT_FOUND = "–", "not found"
#: kind of a column -> names of the numbers that may stand in it; the first group is the feature network
METRICS = {
    "clips": re.compile(r"frechet_(i3d|.+_video)"),
    "spatial": re.compile(r"frechet_(.+?)(_frames)?_spatial"),
    "score": re.compile(r"inception_score_(?!.*_std)(.+?)(_frames)?"),
    "frechet": re.compile(r"frechet_(.+?)(_frames)?"),
}
#: last part of `data._target_` -> the name of that choice, for runs that do not say which they made
DATA = {"SkyTimelapse": "sky", "TaichiHD": "taichi", "UCF101": "ucf101", "JourneyDB": "journeydb", "COCO": "coco"}
GUIDANCE = ("cfg_scale", "channels", "interval")
#: what a report knows of its real samples, `facts["reference_..."]`
REFERENCE = ("format", "hash", "count", "data", "split", "size", "frames", "interval")
CSV_COLUMNS = ("table", "kind", "architecture", "method", "column", "metric", "value", "source", "also_in", "notes")


@dataclass(frozen=True)
class OwnRun:
    """What the tables need to know of one's own run; None where it was not recorded.

    Attributes:
        name: its label.
        task: "class", "text" or "video".
        conditional: whether it is told a class or a text; None without a configuration.
        data: name of its data set, as in `data=`.
        size: height and width of its images.
        frames: length of its clips.
        guidance: the keys of its sampler that are in `GUIDANCE`.
        weights: "ema" or "raw".
        protocol: the line that says how its numbers were made.
        numbers: the row `generated` of its report.
        facts: the facts of its report.
    """

    name: str
    task: str
    conditional: bool | None
    data: str | None
    size: int | None
    frames: float | None
    guidance: dict[str, Any]
    weights: str | None
    protocol: str
    numbers: dict[str, Any]
    facts: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str, numbers: dict[str, Any]) -> OwnRun:
        """Read a run or an evaluation: its `config.yaml` and `report/metrics.json`."""
        config, report = read_mapping(folder / "config.yaml"), read_report(folder)
        data, backbone = _node(config, "data"), _node(config, "backbone")
        frames = _number(backbone.get("num_frames")) or _number(data.get("num_frames"))
        clips = (frames or 1) > 1 or any(METRICS["clips"].fullmatch(key) for key in numbers)
        task = "video" if clips else "text" if config.get("condition") else "class"
        kind = str(data.get("_target_", "")).rpartition(".")[2]
        facts = report["facts"]
        conditional = bool(config.get("condition")) or (
            any((_number(backbone.get(key)) or 0) > 0 for key in ("num_classes", "num_context_classes"))
            and backbone.get("extras") != "unconditional"
        )
        return cls(
            name=name,
            task=task,
            conditional=conditional if config else None,
            data=_node(config, "choices").get("data") or DATA.get(kind) or kind.lower() or None,
            size=data.get("image_size"),
            frames=frames,
            guidance={k: v for k, v in {**_node(config, "sampler"), **facts, **numbers}.items() if k in GUIDANCE},
            weights=numbers.get("weights") or facts.get("weights"),
            protocol=" ".join(report["protocol"].split()),
            numbers=numbers,
            facts=facts,
        )

    def cell(self, column: dict[str, Any]) -> tuple[str, float, str] | None:
        """(name, value, note) of the number that stands in a column; None for a column of another task or data set.

        Among several feature networks the column's own is preferred. Columns of FVD are of one data set each: another
        set's number has no place in them, with or without a mark.
        """
        if column["task"] != self.task or (self.task == "video" and column.get("data") not in (None, self.data)):
            return None
        numbers = [key for key, value in self.numbers.items() if _number(value) is not None]
        found = [(key, space) for key in numbers if (space := _space(key, column)) is not None]
        if not found:
            return None
        key, space = min(found, key=lambda pair: pair[1] != column.get("network"))
        return key, float(self.numbers[key]), "; ".join(self.differences(column, space) + self.made(column, space))

    def differences(self, column: dict[str, Any], space: str) -> list[str]:
        """In what a number in the features of `space` was made otherwise than the column's protocol says."""
        kinds = {True: "conditional", False: "unconditional", None: None}
        facts = {
            "features": (space, "network", "features of {}, not of {}"),
            "count of samples": (_number(self.numbers.get("count")), "count", "{:,.0f} samples, not {:,.0f}"),
            "data": (self.data, "data", "data {}, not {}"),
            "image size": (self.size, "size", "{} pixels, not {}"),
            "clip length": (self.frames, "frames", "{} frames, not {}"),
            "condition": (kinds[self.conditional], "condition", "{}, not {}"),
            "weights": (self.weights, "weights", "{} weights, not {}"),
        }
        found = []
        for what, (mine, key, text) in facts.items():
            theirs = column.get(key, "ema" if key == "weights" else None)
            if theirs is not None and mine != theirs:
                found.append(f"{what} not recorded" if mine is None else text.format(mine, theirs))
        if _of_frames(column):
            count = _number(self.numbers.get("count_frames"))
            found.append("single frames of clips" if count is None else f"{count:,.0f} single frames of clips")
        if column.get("unstated"):
            found.append("the paper does not state the data and the count of this column")
        scale, channels, interval = map(self.guidance.get, GUIDANCE)
        if _number(scale) is None:
            found.append("guidance not recorded")
        elif scale != 1:
            part = "" if channels in (None, "all") else f" on {channels} channels"
            part += f" at timesteps {interval[0]} to {interval[-1]}" if isinstance(interval, list) else ""
            found.append(f"guided, cfg_scale {scale:g}{part}")
        return found

    def made(self, column: dict[str, Any], space: str) -> list[str]:
        """How a number in the features of `space` was made, in what no column states."""
        facts = self.facts
        if not facts:
            return ["sampler and statistics not recorded"]
        sampler, stage, precision = (facts.get(key) for key in ("sampler", "first_stage", "precision"))
        found = [f"{sampler}, {facts.get('sampler_steps')} steps" if sampler else "sampler not recorded"]
        found += [f"first stage {stage}"] if stage not in (None, "none") else []
        found += [f"precision {precision}"] if precision not in (None, "32-true") else []
        if facts.get("container") and not facts.get("lossless"):
            found.append(f"samples read from {facts['container']}, which is lossy")
        ending = "_frames" if _of_frames(column) else ""
        if facts.get(f"features_official{ending}") is False:
            found.append(f"not the published weights of {space}")
        real = {key: facts.get(f"reference_{key}{ending}") for key in REFERENCE}
        return [*found, _statistics(real, column.get("data"))]


@functools.cache
def published() -> dict[str, Any]:
    """The content of `published.yaml`: `sources`, `notes` and `tables`."""
    return yaml.safe_load(DATA_FILE.read_text(encoding="utf-8"))


def own_runs(folders: Iterable[str | Path]) -> list[OwnRun]:
    """The runs in `folders`, labelled as in the comparison of runs."""
    paths = [Path(folder) for folder in folders]
    return [OwnRun.read(path, name, generated(path)) for path, name in zip(paths, labels(paths), strict=True)]


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
        columns = dict(table["columns"])
        if any(run.cell(column) for run in runs if (column := _other(table, run))):
            columns["other_fvd"] = {"title": "FVD, other data", "metric": "clips", "task": "video"}
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
    pages.append(_own_protocols(runs, placed) + _sources(content, lines))
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
    for key, column in columns.items():
        wanted = _other(table, run) if key == "other_fvd" else column
        found = run.cell(wanted) if wanted else None
        cells[column["title"]] = DASH
        if found is not None:
            metric, value, note = found
            if key == "other_fvd":
                note = "; ".join(filter(None, [f"data {run.data or 'not recorded'}", note]))
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


def _other(table: dict[str, Any], run: OwnRun) -> dict[str, Any] | None:
    """A column for the FVD of clips that are in no column of the table: that of a run's own data set."""
    fvd = [column for column in table["columns"].values() if column["metric"] == "clips"]
    if not fvd or run.task != "video" or run.data in [column["data"] for column in fvd]:
        return None
    return {**fvd[0], "data": run.data, "condition": None}


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


def _space(key: str, column: dict[str, Any]) -> str | None:
    """The feature network of a number's name if it is of the column's kind, else None."""
    for kind, pattern in METRICS.items():
        if match := pattern.fullmatch(key):
            belongs = kind == column["metric"] and ("_frames" in key) == _of_frames(column)
            return match.group(1) if belongs else None
    return None


def _of_frames(column: dict[str, Any]) -> bool:
    """Whether its numbers are of the single frames of clips."""
    return column["task"] == "video" and column["metric"] != "clips"


def _statistics(real: dict[str, Any], data: str | None) -> str:
    """The real samples of a number in a few words.

    Args:
        real: what is known of them, by the names in `REFERENCE`.
        data: the data set to which the column belongs.
    """
    if not real["format"]:
        return "statistics not recorded"
    count = f"{real['count']:,}" if real["count"] else "an unknown count of"
    told = " ".join(str(real[key]) for key in ("data", "split", "size") if real[key])
    words = f"of {told}" if told else f"({real['format']} {str(real['hash'])[:8]})"
    words += f", not of {data}" if data and real["data"] not in (None, data) else ""
    words += f", clips of {real['frames']} frames at interval {real['interval']}" if real["frames"] else ""
    return f"statistics of {count} samples {words}"


def _node(config: dict[str, Any], key: str) -> dict[str, Any]:
    node = config.get(key)
    return node if isinstance(node, dict) else {}


def _number(value: Any) -> float | None:
    """The texts of NaN and infinities in a JSON report are no numbers here: they stand in no table."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
