"""Each rule at the learning rate that suits it: what a sweep over `optimizer.lr` says, rule by rule.

A comparison at one learning rate for all compares the rules with the rate that one of them likes. A *case* here is what
groups share that differ in the learning rate alone: a residual rule (or its control) and its settings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neural_rdm.core.errors import DataError
from neural_rdm.reports.figures import log_if_wide, look, new_figure, number, save
from neural_rdm.reports.groups import Group, label, setting
from neural_rdm.reports.plots import read_series
from neural_rdm.reports.runs import generated, node, progress
from neural_rdm.reports.statistics import paired, signs

if TYPE_CHECKING:
    from neural_rdm.reports.results import Metric, Result

RATE = "optimizer.lr"
BEST_BY = "val/loss"
#: numbers of a report that are better the larger they are, by the beginnings of their names; all others are distances
HIGHER = ("accuracy", "consistency", "precision", "recall", "inception_score", "clip_score")


def is_higher(best_by: str) -> bool:
    """Whether larger values of a metric are better; `evaluation/accuracy` is an accuracy as well."""
    return best_by.rpartition("/")[2].startswith(HIGHER)


@dataclass(frozen=True)
class Case:
    """A rule and its settings: what was measured at each learning rate.

    Attributes:
        name: the label of its groups without the rate.
        results: rate -> the metric there, ascending.
        higher: whether larger values are better.
    """

    name: str
    results: dict[float, Result]
    higher: bool

    @property
    def seeds(self) -> int:
        """The most seeds that any rate has: rates with fewer are not compared with it."""
        return max(len(result.values) for result in self.results.values())

    def mean(self, rate: float) -> float:
        """Over seeds; NaN where a run has no value or is missing, and where it is not finite."""
        result = self.results[rate]
        whole = not result.missing and len(result.values) == self.seeds
        return result.interval.mean if whole and result.interval is not None else math.nan

    def best(self) -> float | None:
        """The learning rate with the best mean; None where no rate has one."""
        finite = [rate for rate in self.results if math.isfinite(self.mean(rate))]
        return min(finite, key=lambda rate: -self.mean(rate) if self.higher else self.mean(rate), default=None)

    def open(self) -> list[float]:
        """The rates that may be as good as the best: no paired t test settles it for all of them together."""
        best = self.best()
        if best is None:
            return []
        ours = self.results[best].values
        others = [rate for rate in self.results if rate != best and math.isfinite(self.mean(rate))]
        pairs = {str(rate): [*paired(self.results[rate].values, ours).values()] for rate in others}
        told = signs(pairs, self.higher)
        return [rate for rate in others if told[str(rate)] != "worse"]

    def edge(self) -> str:
        """What to do where the best rate is the lowest or highest of the grid; "" where it is inside."""
        best, rates = self.best(), list(self.results)
        if best is None or best not in (rates[0], rates[-1]):
            return ""
        return f"edge: widen the grid {'below' if best == rates[0] else 'above'} {best:g}"


def cases(groups: Sequence[Group], metric: Metric) -> list[Case]:
    """The cases among groups that were trained at two learning rates or more, in the order of the groups."""
    found: dict[Any, dict[float, Group]] = {}
    for group in groups:
        rate = node(group.config, "optimizer").get("lr")
        if isinstance(rate, int | float):
            found.setdefault(setting(group.config, but=(RATE,)), {})[float(rate)] = group
    made = []
    for by_rate in found.values():
        if len(by_rate) > 1:
            own = next(iter(by_rate.values())).settings
            name = label({key: value for key, value in own.items() if key != "lr"})
            results = {rate: metric.results[by_rate[rate].label] for rate in sorted(by_rate)}
            made.append(Case(name, results, metric.higher))
    return made


def metric(run: Path, name: str) -> float | None:
    """The last value of a column of `metrics.csv` (`val/loss`), or a number of the run's report; None for an unfinished
    run and where it is not recorded.
    """
    if progress(run).finished is False:
        return None
    if "/" not in name:
        value = generated(run).get(name)
        return None if value is None else number(str(value))
    try:
        return next(reversed(read_series(run / "metrics.csv", name)[1]), None)
    except DataError:
        return None


def rows_of(case: Case, best_by: str) -> list[dict[str, Any]]:
    """A row for each learning rate: `case`, `lr`, the metric's mean, its `std` over seeds, `seeds`, `missing`, `best`,
    `open` (it may be as good as the best), `edge`.
    """
    best, undecided = case.best(), case.open()
    rows = []
    for rate, result in case.results.items():
        mean, found = case.mean(rate), result.interval
        rows.append(
            {
                "case": case.name,
                "lr": rate,
                best_by: None if math.isnan(mean) else mean,
                "std": found.sd if found is not None and math.isfinite(found.sd) else None,
                "seeds": len(result.values),
                "missing": len(result.missing),
                "best": rate == best,
                "open": rate in undecided,
                "edge": case.edge() if rate == best else "",
            }
        )
    return rows


def summary(cases: Sequence[Case], best_by: str) -> list[dict[str, Any]]:
    """A row a case: the learning rate with the best mean, the metric there, which rates may be as good, whether it is
    at the edge, and the metric at every rate.
    """
    rates = sorted({rate for case in cases for rate in case.results})
    rows = []
    for case in cases:
        best = case.best()
        row: dict[str, Any] = {"case": case.name, "best lr": None if best is None else f"{best:g}"}
        row[best_by] = None if best is None else case.mean(best)
        row["seeds"] = None if best is None else len(case.results[best].values)
        row["may be as good"] = ", ".join(f"{rate:g}" for rate in case.open()) or None
        row["note"] = case.edge() or (_nothing(case, best_by) if best is None else None)
        row |= {f"at {r:g}": _cell(case, r) if r in case.results else None for r in rates}
        rows.append(row)
    return rows


def _nothing(case: Case, best_by: str) -> str:
    reasons = {why for result in case.results.values() for why in result.missing.values()}
    return f"no run has {best_by}" if "not recorded" in reasons else "no finished run"


def _cell(case: Case, rate: float) -> str:
    mean, result = case.mean(rate), case.results[rate]
    if not math.isnan(mean):
        return f"{mean:.4g}"
    for why in ("not recorded", "not finite"):
        if why in result.missing.values():
            return why
    return "not finished" if result.missing else f"{len(result.values)} of {case.seeds} seeds"


def plot_rates(cases: Sequence[Case], best_by: str, png_path: str | Path) -> Path:
    """Draw the metric against the learning rate, a line a case; a large mark is its best rate, a hollow one is at the
    edge of its grid.
    """
    figure, axes = new_figure(wide=7.6)
    shown = []
    for index, case in enumerate(cases):
        rates = [rate for rate in case.results if math.isfinite(case.mean(rate))]
        means = [case.mean(rate) for rate in rates]
        colour, dashes = look(index)["color"], look(index)["linestyle"]
        axes.plot(rates, means, color=colour, linestyle=dashes, marker="o", markersize=3, label=case.name)
        if (best := case.best()) is not None:
            face = "none" if case.edge() else colour
            axes.plot([best], [case.mean(best)], "o", markersize=9, markeredgecolor=colour, markerfacecolor=face)
        shown += means
    axes.set_xscale("log")
    log_if_wide(axes, shown, decades=1, zero=False)
    axes.set(xlabel="learning rate", ylabel=best_by, title="The best learning rate of each rule (hollow: at the edge)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save(figure, png_path)
