"""All that is told of a set of runs, as plain data: groups over seeds, their numbers, curves and costs.

The Markdown and CSV files, the figures and the page are made of a `Study`; none of them reads a run's numbers itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.reports import results
from neural_rdm.reports.costs import Cost, Counted, costs
from neural_rdm.reports.curves import Chart, charts
from neural_rdm.reports.groups import DEFAULT_BASE, Group, base_of, bases, by_reason, groups
from neural_rdm.reports.mixing import Mixing
from neural_rdm.reports.results import LOSS, Metric
from neural_rdm.reports.runs import progress


@dataclass(frozen=True)
class Study:
    """What is told of a set of runs.

    Attributes:
        runs: all of them, in the order given.
        groups: in the order of the plan, never of the score.
        bases: label -> label of the group that it is compared with.
        base: the base in words; None without one.
        metrics: first the one by which the study is judged.
        charts: by name; curves over steps and over depth.
        costs: label -> what the group costs.
        quality: the validation loss until which `costs` count; None for the last one of the base's run of the seed.
        mixing: label -> depth-mixing matrix of the group's first finished run, for rules that have one.
        notes: what a reader has to know before any number, a sentence each.
    """

    runs: list[Path]
    groups: list[Group]
    bases: dict[str, str]
    base: str | None
    metrics: list[Metric]
    charts: dict[str, Chart]
    costs: dict[str, Cost]
    quality: float | None
    mixing: dict[str, Mixing]
    notes: list[str]

    def group(self, label: str) -> Group:
        """The group of that label."""
        return next(group for group in self.groups if group.label == label)

    def metric(self, name: str) -> Metric:
        """The metric of that name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """A row a group, as in `summary.csv` (see `results.rows`)."""
        return results.rows(self.groups, self.metrics)


def study(
    folders: Iterable[str | Path],
    base: str | None = None,
    best_by: str | None = None,
    quality: float | None = None,
    counted: Counted | None = None,
    mixing: Callable[[Path], Mixing | None] | None = None,
) -> Study:
    """Read a set of runs.

    Args:
        folders: of runs, finished or not.
        base: what the groups are compared with, see `groups.bases`; None for the base of the sweep that they are of.
        best_by: the metric by which the study is judged, a column of metrics.csv or a number of the report; None for
            the `optimized_metric` of the runs, or else the validation loss.
        quality: the validation loss until which costs are told; None for the one with which the base's run of the same
            seed ends.
        counted: counts parameters and FLOPs of a configuration's network; None: they are not told.
        mixing: finds the depth-mixing matrix of a finished run, where its rule has one; None: none is told.

    Raises:
        DataError: no group is the base.
    """
    runs = [Path(folder) for folder in folders]
    found = groups(runs)
    named = base_of(runs) if base is None else base
    partners = bases(found, named)
    stated = {group.config.get("optimized_metric") for group in found}
    first = best_by or (stated.pop() if len(stated) == 1 else None) or LOSS
    metrics = [results.compared(metric, partners) for metric in results.read_metrics(found, first)]
    chosen = list(dict.fromkeys(partners.values()))
    return Study(
        runs=runs,
        groups=found,
        bases=partners,
        base=None if not chosen else chosen[0] if len(chosen) == 1 else named or DEFAULT_BASE,
        metrics=metrics,
        charts=charts(found, metrics, partners),
        costs=costs(found, partners, quality, counted),
        quality=quality,
        mixing=_mixing(found, mixing) if mixing else {},
        notes=notes(found, metrics, partners),
    )


def _mixing(found: Sequence[Group], look: Callable[[Path], Mixing | None]) -> dict[str, Mixing]:
    matrices = {}
    for group in found:
        done = [run for run in group.runs.values() if progress(run).finished]
        if done and (matrix := look(done[0])) is not None:
            matrices[group.label] = matrix
    return matrices


def notes(found: Sequence[Group], metrics: Sequence[Metric], partners: Mapping[str, str]) -> list[str]:
    """What a reader has to know before any number."""
    told = []
    runs = [(group, seed, run) for group in found for seed, run in group.runs.items()]
    unfinished = [f"{g.label}, seed {s} ({far})" for g, s, run in runs if (far := progress(run)).finished is False]
    failed = [f"{group.label}, {seeds} ({why})" for group in found for seeds, why in by_reason(group.failed)]
    if unfinished:
        told.append(f"Not finished, and in no mean: {'; '.join(unfinished)}.")
    if failed:
        told.append(f"Without a run to its end, and in no mean: {'; '.join(failed)}.")
    if single := [group.label for group in found if len(group.runs) == 1]:
        told.append(f"One seed has neither an interval nor a sign: {'; '.join(single)}.")
    if again := [f"{group.label}: {', '.join(map(str, group.again))}" for group in found if group.again]:
        told.append(f"A seed that ran more than once counts once; left out: {'; '.join(again)}.")
    if partners and (alone := [g.label for g in found if g.label not in partners and g.label not in partners.values()]):
        told.append(f"No single base is most like these, so they are compared with none: {'; '.join(alone)}.")
    for metric in metrics:
        counts = dict.fromkeys(r.count for r in metric.results.values() if r.values and r.count is not None)
        if len(counts) > 1:
            many = " and ".join(f"{count:g}" for count in counts)
            told.append(f"{metric.name} is of {many} samples; only numbers of equally many are compared.")
        elif len(metric.protocols) > 1:
            told.append(f"{metric.name} was made in {len(metric.protocols)} ways; only numbers of one are compared.")
    return told
