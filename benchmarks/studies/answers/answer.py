"""What an answer is made of, and what its sections share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.training import Row
from neural_rdm.reports.statistics import Interval, interval


@dataclass
class Answer:
    """A section of the page.

    Attributes:
        claim: what the paper says, and where.
        verdict: `holds`, `does not hold` or `not told`, with a few words.
        line: the answer for the README, with its number.
        body: design, numbers and figures, as Markdown.
        needs: what it would take to tell at the paper's scale.
    """

    title: str
    claim: str
    verdict: str
    line: str
    body: str
    needs: str = ""
    command: str = ""
    file: str = ""


def mean_of(values: Sequence[float]) -> Interval:
    """The mean with its interval."""
    found = interval(list(values))
    assert found is not None
    return found


def seeds_of(rows: Sequence[Row]) -> str:
    """`seeds 0 to 4`."""
    seeds = sorted({row["seed"] for row in rows})
    return f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}" if seeds else "no seed yet"


def by_case(row: Row) -> str:
    return str(row["case"])


def by_rule(row: Row) -> str:
    return str(row["rule"])


def complete(rows: Sequence[Row], by: Callable[[Row], str]) -> list[Row]:
    """The rows of the seeds that every group has: a study that still runs is read as a smaller one."""
    groups: dict[str, set[int]] = {}
    for row in rows:
        groups.setdefault(by(row), set()).add(row["seed"])
    shared = set.intersection(*groups.values()) if groups else set()
    return [row for row in rows if row["seed"] in shared]


def rank(a: Any, b: Any) -> float:
    """Spearman's correlation; 0 where one of both does not move."""
    from scipy import stats

    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.std() <= 1e-9 * abs(a).max() or b.std() <= 1e-9 * abs(b).max():
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def across(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The mean correlation of a seed of one and a different seed of the other, seeds in the same order."""
    found = [float(np.corrcoef(a, b)[0, 1]) for i, a in enumerate(one) for j, b in enumerate(other)
             if i != j and np.std(a) > 0 and np.std(b) > 0]  # fmt: skip
    return float(np.mean(found)) if found else math.nan
