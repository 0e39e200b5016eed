"""What a group of runs costs: parameters, time, memory, FLOPs, and how much of them a quality takes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import number, read_csv
from neural_rdm.reports.groups import Group, Seed
from neural_rdm.reports.plots import read_series
from neural_rdm.reports.results import comparable
from neural_rdm.reports.runs import node, progress
from neural_rdm.reports.statistics import Interval, interval

#: of a configuration: the network's `parameters`, and `flops` of a training step for one sample; None where unknown
Counted = Callable[[Mapping[str, Any]], Mapping[str, float | None]]


@dataclass(frozen=True)
class Cost:
    """What a group costs.

    Attributes:
        parameters: of the network; None where it was not counted.
        flops: of forward and backward for one sample; None where they were not counted.
        seconds: a step, the median of each run; None where it was not recorded. Machines and their load differ.
        memory: the device's peak in GiB, the largest of the runs; None without a GPU.
        reached: seed -> optimizer steps until the quality; None where it was not reached. Seeds without one to reach
            are left out.
        steps: of `reached`, with interval; None unless every seed reached it, for the others would only seem cheap.
        images, train_flops: the same in training samples, and in FLOPs of all of them.
    """

    parameters: float | None
    flops: float | None
    seconds: Interval | None
    memory: float | None
    reached: dict[Seed, float | None]
    steps: Interval | None
    images: Interval | None
    train_flops: Interval | None

    @property
    def told(self) -> str:
        """Which seeds reached the quality, in words; "" where all did or there was none."""
        count = sum(step is not None for step in self.reached.values())
        if count == len(self.reached):
            return ""
        return f"reached by {count} of {len(self.reached)} seeds" if count else "not reached"


def costs(
    found: Sequence[Group], bases: Mapping[str, str], quality: float | None, counted: Counted | None = None
) -> dict[str, Cost]:
    """label -> what the group costs.

    Args:
        bases: label -> label of the base.
        quality: a validation loss to reach; None for the one with which the base's run of the same seed ends.
        counted: counts the network of a configuration.
    """
    by_label = {group.label: group for group in found}
    told = {}
    for group in found:
        size: Mapping[str, float | None] = counted(group.config) if counted and group.config else {}
        base = by_label[bases.get(group.label, group.label)]
        known = group.label in bases or group.label in bases.values()
        reached = {}
        for seed, run in group.runs.items():
            aim = quality
            if aim is None and known and seed in base.runs and comparable(group, base):
                aim = _last_loss(base.runs[seed])
            if aim is not None:
                reached[seed] = first_below(run, aim)
        steps = [step for step in reached.values() if step is not None]
        steps = steps if len(steps) == len(reached) else []
        batch, flops = node(group.config, "data").get("batch_size"), size.get("flops")
        images = [step * batch for step in steps] if isinstance(batch, int) else []
        told[group.label] = Cost(
            parameters=size.get("parameters"),
            flops=flops,
            seconds=interval([s for run in group.runs.values() if (s := _seconds(run)) is not None]),
            memory=max((m for run in group.runs.values() for m in _column(run, "peak_memory_gib")), default=None),
            reached=reached,
            steps=interval(steps),
            images=interval(images),
            train_flops=interval([image * flops for image in images]) if flops is not None else None,
        )
    return told


def rows(found: Mapping[str, Cost]) -> list[dict[str, Any]]:
    """A row a group: what it costs, in words where an interval belongs to it; columns that are empty for all are left
    out.
    """
    table = [
        {
            "group": label,
            "parameters": cost.parameters,
            "FLOPs a sample": cost.flops,
            "seconds a step": None if cost.seconds is None else str(cost.seconds),
            "peak memory, GiB": cost.memory,
            "steps": str(cost.steps) if cost.steps else cost.told or None,
            "images": str(cost.images) if cost.images else None,
            "FLOPs": str(cost.train_flops) if cost.train_flops else None,
        }
        for label, cost in found.items()
    ]
    used = [key for key in (table[0] if table else ()) if any(row[key] is not None for row in table)]
    return [{key: row[key] for key in used} for row in table]


def _last_loss(run: Path) -> float | None:
    """The validation loss at the end of a finished run."""
    if progress(run).finished is False:
        return None
    try:
        return next(reversed(read_series(run / "metrics.csv", "val/loss")[1]), None)
    except DataError:
        return None


def first_below(run: Path, quality: float) -> float | None:
    """The optimizer step at which the validation loss is first at most `quality`, linear between two records; None
    where it never is.
    """
    try:
        steps, values = read_series(run / "metrics.csv", "val/loss")
    except DataError:
        return None
    before: tuple[int, float] | None = None
    for step, value in zip(steps, values, strict=True):
        if value <= quality:
            if before is None or not math.isfinite(before[1]):
                return float(step)
            share = (before[1] - quality) / (before[1] - value)
            return before[0] + share * (step - before[0])
        before = step, value
    return None


def _seconds(run: Path) -> float | None:
    values = _column(run, "seconds_per_step")
    return statistics.median(values) if values else None


def _column(run: Path, name: str) -> list[float]:
    try:
        values = [number(row.get(name)) for row in read_csv(run / "throughput.csv")]
    except DataError:
        return []
    return [value for value in values if math.isfinite(value)]
