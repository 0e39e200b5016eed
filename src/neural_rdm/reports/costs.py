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
from neural_rdm.reports.runs import node
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
        reached: seed -> optimizer steps until the quality; None where it was not reached.
        steps: over the seeds that reached it, with interval.
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


def costs(found: Sequence[Group], quality: float | None, counted: Counted | None = None) -> dict[str, Cost]:
    """label -> what the group costs.

    Args:
        quality: a validation loss to reach; None where there is none.
        counted: counts the network of a configuration.
    """
    told = {}
    for group in found:
        runs = group.runs.items()
        size: Mapping[str, float | None] = counted(group.config) if counted and group.config else {}
        flops = size.get("flops")
        reached = {s: first_below(run, quality) for s, run in runs} if quality is not None else {}
        steps = [step for step in reached.values() if step is not None]
        batch = _batch(group.config)
        images = [step * batch for step in steps] if batch is not None else []
        told[group.label] = Cost(
            parameters=size.get("parameters"),
            flops=flops,
            seconds=interval([s for _, run in runs if (s := _seconds(run)) is not None]),
            memory=max((m for _, run in runs for m in _column(run, "peak_memory_gib")), default=None),
            reached=reached,
            steps=interval(steps),
            images=interval(images),
            train_flops=interval([image * flops for image in images]) if flops is not None else None,
        )
    return told


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


def _batch(config: Mapping[str, Any]) -> int | None:
    """Training samples of an optimizer step."""
    size = node(config, "data").get("batch_size")
    return size if isinstance(size, int) else None


def _seconds(run: Path) -> float | None:
    values = _column(run, "seconds_per_step")
    return statistics.median(values) if values else None


def _column(run: Path, name: str) -> list[float]:
    try:
        values = [number(row.get(name)) for row in read_csv(run / "throughput.csv")]
    except DataError:
        return []
    return [value for value in values if math.isfinite(value)]
