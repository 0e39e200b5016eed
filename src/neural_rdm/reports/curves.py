"""Curves of groups of runs: the mean over seeds with its interval, over training steps and over depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neural_rdm.core.errors import DataError
from neural_rdm.reports.groups import Group, Seed, label
from neural_rdm.reports.plots import read_sensitivity, read_series, stages_of
from neural_rdm.reports.results import Metric, comparable
from neural_rdm.reports.statistics import interval
from neural_rdm.reports.units import read_quantities

SENSITIVITY = Path("sensitivity") / "sensitivity.csv"


@dataclass(frozen=True)
class Line:
    """One group's mean at each place, with its 95 % interval; `low` and `high` are NaN where one seed is all.

    Attributes:
        label: of the group.
        x: ascending.
        n: seeds behind each place.
    """

    label: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: list[int]


@dataclass(frozen=True)
class Chart:
    """Lines on one pair of axes, before anything is drawn.

    Attributes:
        name: also of its file, such as `val_loss_steps`.
        names: unit index -> name, where x is depth.
        note: what has to be said below it.
        zero: whether 0 is a line to compare with.
    """

    name: str
    title: str
    xlabel: str
    ylabel: str
    lines: list[Line]
    names: dict[int, str]
    note: str = ""
    zero: bool = False


def line(name: str, series: Sequence[Mapping[float, float]]) -> Line:
    """The mean over series {x: value}, one a seed, at every place where one has a finite value."""
    found: dict[float, list[float]] = {}
    for each in series:
        for x, value in each.items():
            if math.isfinite(value):
                found.setdefault(x, []).append(value)
    told = [(x, interval(found[x])) for x in sorted(found)]
    kept = [(x, i) for x, i in told if i is not None]
    return Line(
        name,
        [x for x, _ in kept],
        [i.mean for _, i in kept],
        [i.low for _, i in kept],
        [i.high for _, i in kept],
        [i.n for _, i in kept],
    )


def charts(found: Sequence[Group], metrics: Sequence[Metric], bases: Mapping[str, str]) -> dict[str, Chart]:
    """Every chart that these runs have recorded, by name; runs that are not finished count as far as they are.

    Args:
        bases: label -> label of the group that it is compared with.
    """
    by_label = {group.label: group for group in found}
    columns = {"val/loss": "Validation loss", "train/loss": "Training loss"}
    columns |= {name: f"{name.partition('/')[2]} during training" for name in _evaluated(found)}
    made: list[Chart] = []
    for column, title in columns.items():
        alike = {n: base for n, base in bases.items() if comparable(by_label[n], by_label[base], column)}
        made += [over_steps(found, column, title), less_base(found, column, title, alike)]
    made += [*over_depth(found), *(by_depth(found, metric) for metric in metrics)]
    return {chart.name: chart for chart in made if chart.lines}


def over_steps(found: Sequence[Group], column: str, title: str) -> Chart:
    """A column of metrics.csv against the optimizer step."""
    lines = _lines(found, lambda run: _steps(run, column))
    return Chart(column.replace("/", "_") + "_steps", title, "optimizer step", column, lines, {})


def less_base(found: Sequence[Group], column: str, title: str, bases: Mapping[str, str]) -> Chart:
    """A column of metrics.csv less that of the base, paired by seed, at the steps that both have recorded."""
    series = {g.label: {seed: _steps(run, column) for seed, run in g.runs.items()} for g in found}
    lines = []
    for name, base in bases.items():
        pairs = [(own, series[base][seed]) for seed, own in series[name].items() if seed in series[base]]
        lines.append(line(name, [{x: own[x] - other[x] for x in own if x in other} for own, other in pairs]))
    shown = [each for each in lines if each.x]
    return Chart(
        f"{column.replace('/', '_')}_less_base_steps",
        f"{title}, less the base's",
        "optimizer step",
        f"{column} less the base's",
        shown,
        {},
        zero=True,
    )


def over_depth(found: Sequence[Group]) -> list[Chart]:
    """Sensitivity and gates against depth, each a run's mean over the last stage of its training."""
    told = {
        "sensitivity": ("Sensitivity over depth, end of training", r"$\|s_i\| \,/\, \max_j \|s_j\|$"),
        "alpha_mean": ("Gates over depth, end of training", r"$\alpha$, mean over channels"),
        "beta_norm": ("Gates over depth, end of training", r"norm of beta  $\|\beta_i\|$"),
    }
    names: dict[int, str] = {}
    for group in found:
        for run in group.runs.values():
            try:
                names = {**read_sensitivity(run / SENSITIVITY)[1], **names}
            except DataError:
                continue
    made = []
    for column, (title, quantity) in told.items():
        lines = _lines(found, lambda run, column=column: _last_stage(run, column))  # type: ignore[misc]
        note = "a run's value is the mean over the batches recorded in the last stage of its training"
        made.append(
            Chart(f"{column}_depth", title, "unit, in the order in which they run", quantity, lines, names, note)
        )
    return made


def by_depth(found: Sequence[Group], metric: Metric) -> Chart:
    """A metric against the depth of the network: a line for groups that differ in their depth alone; without lines
    where there are no two depths, or where its numbers were made in several ways.
    """
    kinds: dict[str, dict[Seed, dict[float, float]]] = {}
    for group in found if len(metric.protocols) == 1 else ():
        if isinstance(depth := group.settings.get("depth"), int):
            rest = {key: value for key, value in group.settings.items() if key != "depth"}
            for seed, value in metric.results[group.label].values.items():
                kinds.setdefault(label(rest), {}).setdefault(seed, {})[float(depth)] = value
    lines = [line(name, [*series.values()]) for name, series in kinds.items()]
    name = metric.name.replace("/", "_") + "_by_depth"
    shown = [each for each in lines if len(each.x) > 1]
    return Chart(name, f"{metric.name} by the depth of the network", "blocks", metric.name, shown, {})


def _lines(found: Sequence[Group], read: Callable[[Path], Mapping[float, float]]) -> list[Line]:
    lines = [line(group.label, [read(run) for run in group.runs.values()]) for group in found]
    return [each for each in lines if each.x]


def _steps(run: Path, column: str) -> dict[float, float]:
    """step -> value of a column of metrics.csv; empty where there is none."""
    try:
        steps, values = read_series(run / "metrics.csv", column)
    except DataError:
        return {}
    return dict(zip(map(float, steps), values, strict=True))


def _evaluated(found: Sequence[Group]) -> list[str]:
    """The metrics that were evaluated during training, as columns of metrics.csv."""
    from neural_rdm.reports.figures import read_csv

    columns: dict[str, None] = {}
    for group in found:
        for run in group.runs.values():
            try:
                columns |= dict.fromkeys(next(iter(read_csv(run / "metrics.csv")), {}))
            except DataError:
                continue
    return [
        c for c in columns if c.startswith("evaluation/") and not c.startswith(("evaluation/count", "evaluation/at_"))
    ]


def _last_stage(run: Path, column: str) -> dict[float, float]:
    """unit -> mean over the records of the last stage."""
    try:
        if column == "sensitivity":
            records = read_sensitivity(run / SENSITIVITY)[0]
        else:
            records = read_quantities(run / SENSITIVITY, (column,))[0][column]
    except DataError:
        return {}
    if not records:
        return {}
    found: dict[float, list[float]] = {}
    for step in stages_of(sorted(records))[-1]:
        for unit, value in records[step].items():
            if math.isfinite(value):
                found.setdefault(float(unit), []).append(value)
    return {unit: sum(values) / len(values) for unit, values in found.items()}
