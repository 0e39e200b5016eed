"""One's own evaluated runs, as the tables of the paper see them: which numbers may stand in which column.

Which of a run's numbers belong to a column is told by their names in `report/metrics.json`, row `generated`; SPACE is
the feature network. How they were made is told by its `facts`.

| column | names |
|---|---|
| FID, sFID, IS of images | `frechet_SPACE`, `frechet_SPACE_spatial`, `inception_score_SPACE` |
| Frame FID, Frame IS | `frechet_SPACE_frames`, `inception_score_SPACE_frames` |
| FVD | `frechet_i3d`, `frechet_SPACE_video` |
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.reports.runs import generated, labels, node, progress, read_mapping, read_report

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


@dataclass(frozen=True)
class OwnRun:
    """What the tables need to know of one's own run; None where it was not recorded."""

    name: str  # its label
    task: str  # "class", "text" or "video"
    conditional: bool | None  # whether it is told a class or a text; None without a configuration
    data: str | None  # name of its data set, as in `data=`
    size: int | None  # height and width of its images
    frames: float | None  # length of its clips
    guidance: dict[str, Any]  # the keys of its sampler that are in `GUIDANCE`
    weights: str | None  # "ema" or "raw"
    protocol: str  # the line that says how its numbers were made
    numbers: dict[str, Any]  # the row `generated` of its report
    facts: dict[str, Any]  # the facts of its report
    unfinished: str  # how far it is, empty for a finished run

    @classmethod
    def read(cls, folder: Path, name: str, numbers: dict[str, Any]) -> OwnRun:
        """Read a run or an evaluation: its `config.yaml` and `report/metrics.json`."""
        config, report = read_mapping(folder / "config.yaml"), read_report(folder)
        data, backbone = node(config, "data"), node(config, "backbone")
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
            data=node(config, "choices").get("data") or DATA.get(kind) or kind.lower() or None,
            size=data.get("image_size"),
            frames=frames,
            guidance={k: v for k, v in {**node(config, "sampler"), **facts, **numbers}.items() if k in GUIDANCE},
            weights=numbers.get("weights") or facts.get("weights"),
            protocol=" ".join(report["protocol"].split()),
            numbers=numbers,
            facts=facts,
            unfinished=str(far) if (far := progress(folder)).finished is False else "",
        )

    def cell(self, column: dict[str, Any]) -> tuple[str, float, str] | None:
        """(name, value, note) of the number that stands in a column; None where none of its numbers may."""
        for key, space in self.candidates(column):
            if not self.barriers(column, space):
                return key, float(self.numbers[key]), "; ".join(self.differences(column) + self.made(column))
        return None

    def candidates(self, column: dict[str, Any]) -> list[tuple[str, str]]:
        """(name, feature network) of the numbers that are of a column's kind and task."""
        numbers = [key for key, value in self.numbers.items() if _number(value) is not None]
        found = [(key, space) for key in numbers if (space := _space(key, column)) is not None]
        return found if column["task"] == self.task else []

    def barriers(self, column: dict[str, Any], space: str) -> list[str]:
        """Why a number in the features of `space` cannot be compared with a column's at all; empty where it can."""
        ending = "_frames" if _of_frames(column) else ""
        sets, real = column.get("among") or [column["data"]], self.facts.get(f"reference_data{ending}")
        found = []
        if self.data not in sets:
            found.append("data not recorded" if self.data is None else f"data {self.data}, not {' or '.join(sets)}")
        elif real not in (None, self.data):
            found.append(f"real samples of {real}, not of {self.data}")
        if space != column["network"]:
            found.append(f"features of {space}, not of {column['network']}")
        elif self.facts.get(f"features_official{ending}") is False:
            found.append(f"not the published weights of {space}")
        return found

    def differences(self, column: dict[str, Any]) -> list[str]:
        """In what a number was made otherwise than the column's protocol says."""
        kinds = {True: "conditional", False: "unconditional", None: None}
        facts = {
            "count of samples": (_number(self.numbers.get("count")), "count", "{:,.0f} samples, not {:,.0f}"),
            "image size": (self.size, "size", "{} pixels, not {}"),
            "clip length": (self.frames, "frames", "{} frames, not {}"),
            "condition": (kinds[self.conditional], "condition", "{}, not {}"),
            "weights": (self.weights, "weights", "{} weights, not {}"),
        }
        found = [self.unfinished] if self.unfinished else []
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

    def made(self, column: dict[str, Any]) -> list[str]:
        """How a number was made, in what no column states."""
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
        real = {key: facts.get(f"reference_{key}{ending}") for key in REFERENCE}
        return [*found, _statistics(real)]


def own_runs(folders: Iterable[str | Path]) -> list[OwnRun]:
    """The runs in `folders`, labelled as in the comparison of runs."""
    paths = [Path(folder) for folder in folders]
    return [OwnRun.read(path, name, generated(path)) for path, name in zip(paths, labels(paths), strict=True)]


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


def _statistics(real: dict[str, Any]) -> str:
    """The real samples of a number in a few words.

    Args:
        real: what is known of them, by the names in `REFERENCE`.
    """
    if not real["format"]:
        return "statistics not recorded"
    count = f"{real['count']:,}" if real["count"] else "an unknown count of"
    told = " ".join(str(real[key]) for key in ("data", "split", "size") if real[key])
    words = f"of {told}" if told else f"({real['format']} {str(real['hash'])[:8]})"
    words += f", clips of {real['frames']} frames at interval {real['interval']}" if real["frames"] else ""
    return f"statistics of {count} samples {words}"


def _number(value: Any) -> float | None:
    """The texts of NaN and infinities in a JSON report are no numbers here: they stand in no table."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
