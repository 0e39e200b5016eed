"""Each rule at the learning rate that suits it: what a sweep over `optimizer.lr` says, rule by rule.

A comparison at one learning rate for all compares the rules with the rate that one of them likes. A *case* here is a
residual rule (or its control) with those settings in which runs of that rule differ beside learning rate and seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import log_if_wide, new_figure, number, save
from neural_rdm.reports.plots import read_series
from neural_rdm.reports.runs import flat, generated, progress, read_mapping, rule_of

RATE = "optimizer.lr"
BEST_BY = "val/loss"
#: numbers of a report that are better the larger they are, by the beginnings of their names; all others are distances
HIGHER = ("accuracy", "consistency", "precision", "recall", "inception_score", "clip_score")
#: never a setting that makes a case: what every run has of its own, and what the rule's name says already
_NOT_A_CASE = ("choices", "control", "resume", "seed", RATE, "residual.rule")


def is_higher(best_by: str) -> bool:
    """Whether larger values of a metric are better; `evaluation/accuracy` is an accuracy as well."""
    return best_by.rpartition("/")[2].startswith(HIGHER)


@dataclass
class Case:
    """A rule and its settings: the values of the metric at every learning rate, one a seed."""

    name: str
    values: dict[float, list[float]] = field(default_factory=dict)
    #: runs without a value: not finished, failed, or without this number
    missing: dict[float, int] = field(default_factory=dict)
    #: whether some of these are finished, and have no such number
    unrecorded: bool = False

    @property
    def seeds(self) -> int:
        """The most seeds that any rate has: rates with fewer are not compared with it."""
        return max(map(len, self.values.values()), default=0)

    def mean(self, rate: float) -> float:
        """Over seeds; NaN where a run has no value or is missing, and where it is not finite."""
        values = self.values.get(rate, [])
        return math.nan if len(values) < max(1, self.seeds) or rate in self.missing else statistics.fmean(values)

    def rates(self) -> list[float]:
        """The grid, ascending."""
        return sorted({*self.values, *self.missing})

    def best(self, higher: bool) -> float | None:
        """The learning rate with the best mean; None where no rate has one."""
        finite = [rate for rate in self.rates() if math.isfinite(self.mean(rate))]
        return min(finite, key=lambda rate: -self.mean(rate) if higher else self.mean(rate), default=None)

    def edge(self, higher: bool) -> str:
        """What to do where the best rate is the lowest or highest of the grid; "" where it is inside."""
        best, rates = self.best(higher), self.rates()
        if best is None or best not in (rates[0], rates[-1]):
            return ""
        return f"edge: widen the grid {'below' if best == rates[0] else 'above'} {best:g}"


def read_cases(runs: Iterable[Path], best_by: str) -> list[Case]:
    """The cases among runs that were trained at two learning rates or more, in the order of the runs."""
    found = []
    for run in runs:
        config = read_mapping(run / "config.yaml")
        settings, rule = flat(config), rule_of(config)
        if rule is not None and isinstance(settings.get(RATE), (int, float)):
            found.append((run, rule, settings))
    cases: dict[str, Case] = {}
    seen: set[tuple[str, float, Any]] = set()  # a seed that ran twice is one seed
    for run, rule, settings in found:
        name = ", ".join([rule, *_apart(settings, [other for _, its, other in found if its == rule])])
        case, rate, value = cases.setdefault(name, Case(name)), float(settings[RATE]), metric(run, best_by)
        if value is None:
            case.missing[rate] = case.missing.get(rate, 0) + 1
            case.unrecorded |= progress(run).finished is not False
        elif (key := (name, rate, settings.get("seed"))) not in seen:
            seen.add(key)
            case.values.setdefault(rate, []).append(value)
    return [case for case in cases.values() if len(case.rates()) > 1]


def _apart(settings: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings of a run in which runs of the same rule differ, as `key=value`."""
    keys = [k for k in settings if not k.startswith(_NOT_A_CASE) and not k.endswith("_target_")]
    return [f"{key}={settings[key]}" for key in keys if len({repr(other.get(key)) for other in others}) > 1]


def metric(run: Path, name: str) -> float | None:
    """The last value of a column of `metrics.csv` (`val/loss`), or a number of the run's report; None for an unfinished
    run and where it is not recorded.
    """
    return None if progress(run).finished is False else recorded(run, name)


def recorded(run: Path, name: str) -> float | None:
    """The same of a run in whose report it stands already, whether or not that is all of the run."""
    if "/" not in name:
        value = generated(run).get(name)
        return None if value is None else number(str(value))
    try:
        return next(reversed(read_series(run / "metrics.csv", name)[1]), None)
    except DataError:
        return None


def rows_of(case: Case, best_by: str) -> list[dict[str, Any]]:
    """A row for each learning rate: `case`, `lr`, the metric's mean, its `std` over seeds, `seeds`, `missing`, `best`,
    `edge`.
    """
    higher = is_higher(best_by)
    best = case.best(higher)
    rows = []
    for rate in case.rates():
        values, mean = case.values.get(rate, []), case.mean(rate)
        rows.append(
            {
                "case": case.name,
                "lr": rate,
                best_by: None if math.isnan(mean) else mean,
                "std": statistics.stdev(values) if len(values) > 1 and math.isfinite(sum(values)) else None,
                "seeds": len(values),
                "missing": case.missing.get(rate, 0),
                "best": rate == best,
                "edge": case.edge(higher) if rate == best else "",
            }
        )
    return rows


def summary(cases: Sequence[Case], best_by: str) -> list[dict[str, Any]]:
    """A row a case: its best learning rate, the metric there, whether it is at the edge, and the metric at every other
    rate.
    """
    higher = is_higher(best_by)
    rates = sorted({rate for case in cases for rate in case.rates()})
    rows = []
    for case in cases:
        best = case.best(higher)
        row: dict[str, Any] = {"case": case.name, "best lr": None if best is None else f"{best:g}"}
        row[best_by] = None if best is None else case.mean(best)
        row["seeds"] = None if best is None else len(case.values[best])
        row["note"] = case.edge(higher) or (_nothing(case, best_by) if best is None else None)
        means = {rate: case.mean(rate) for rate in case.rates()}
        row |= {f"at {r:g}": _cell(case, r, means[r]) if r in means else None for r in rates}
        rows.append(row)
    return rows


def _nothing(case: Case, best_by: str) -> str:
    return f"no run has {best_by}" if case.unrecorded else "no finished run"


def _cell(case: Case, rate: float, mean: float) -> str:
    if not math.isnan(mean):
        return f"{mean:.4g}"
    if rate in case.missing:
        return "not recorded" if case.unrecorded else "not finished"
    count = len(case.values[rate])
    return f"{count} of {case.seeds} seeds" if count < case.seeds else "not finite"


def plot_rates(cases: Sequence[Case], best_by: str, png_path: str | Path) -> Path:
    """Draw the metric against the learning rate, a line a case; a large mark is its best rate, a hollow one is at the
    edge of its grid.
    """
    higher = is_higher(best_by)
    figure, axes = new_figure(wide=7.6)
    shown = []
    for index, case in enumerate(cases):
        rates = [rate for rate in case.rates() if math.isfinite(case.mean(rate))]
        means = [case.mean(rate) for rate in rates]
        colour, dashes = f"C{index % 10}", ("-", "--", ":", "-.")[index // 10 % 4]
        axes.plot(rates, means, color=colour, linestyle=dashes, marker="o", markersize=3, label=case.name)
        if (best := case.best(higher)) is not None:
            face = "none" if case.edge(higher) else colour
            axes.plot([best], [case.mean(best)], "o", markersize=9, markeredgecolor=colour, markerfacecolor=face)
        shown += means
    axes.set_xscale("log")
    log_if_wide(axes, shown, decades=1, zero=False)
    axes.set(xlabel="learning rate", ylabel=best_by, title="The best learning rate of each rule (hollow: at the edge)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, png_path)
