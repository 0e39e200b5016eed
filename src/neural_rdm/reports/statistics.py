"""What a few seeds say: means with intervals, paired differences, and whether their sign is settled.

Intervals are Student's t at 95 %. Differences are of runs of the same seed, which share data, noise and the draws of
their weights: what the seeds have in common cancels. Signs are tested for all groups of a comparison together (Holm
1979), so that one false "better" among many comparisons is as rare as in one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95
#: `better?` and `worse?`: the test of this group alone settles it, that of all together does not; `equal`: the numbers
#: are the same, seed by seed; "" where fewer than two pairs leave nothing to test
Sign = Literal["better", "worse", "better?", "worse?", "open", "equal", ""]


@dataclass(frozen=True)
class Interval:
    """A mean over `n` values, its interval and their standard deviation; NaN where one value has none."""

    mean: float
    low: float
    high: float
    sd: float
    n: int

    @property
    def half(self) -> float:
        """Half the width; NaN of a single value."""
        return (self.high - self.low) / 2

    def __format__(self, spec: str) -> str:
        """`mean ± half`, the mean as precise as its interval; `+` gives it a sign."""
        sign = "+" if "+" in spec else ""
        if not self.half > 0:
            return f"{self.mean:{sign}.4g}"
        if abs(self.mean) >= 1e5:
            return f"{self.mean:{sign}.4g} ± {self.half:.2g}"
        digits = max(0, 1 - math.floor(math.log10(self.half)))
        return f"{self.mean:{sign}.{digits}f} ± {self.half:.{digits}f}"

    def __str__(self) -> str:
        return format(self)


def interval(values: Sequence[float]) -> Interval | None:
    """The mean with its 95 % interval; None without a value. A single one has a mean and nothing else."""
    if not values:
        return None
    n, mean = len(values), statistics.fmean(values)
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, math.nan, math.nan, math.nan, n)
    sd = statistics.stdev(values)
    half = _critical(n) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def paired(ours: Mapping[int | None, float], base: Mapping[int | None, float]) -> dict[int | None, float]:
    """Ours less the base's, for the seeds that both have."""
    return {seed: value - base[seed] for seed, value in ours.items() if seed in base and seed is not None}


def p_value(differences: Sequence[float]) -> float:
    """Of the two-sided t test that they are 0 on average; 1 where it cannot be made: of one value, or of values that
    are all the same but for rounding.
    """
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return 1.0
    if statistics.stdev(differences) <= 1e-9 * max(map(abs, differences)):
        return 1.0
    from scipy import stats

    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def signs(differences: Mapping[str, Sequence[float]], higher: bool = False) -> dict[str, Sign]:
    """What the differences to a base say of each name, tested for all names together (Holm) at 5 %.

    Args:
        differences: name -> paired differences. Names without two pairs are not part of the family.
        higher: whether larger values are better.
    """
    family = {name: values for name, values in differences.items() if len(values) > 1}
    p = {name: p_value(values) for name, values in family.items()}
    found: dict[str, Sign] = dict.fromkeys(differences, "")
    together = True
    for place, name in enumerate(sorted(p, key=lambda n: p[n])):
        together = together and p[name] * (len(p) - place) < 1 - LEVEL
        alone = p[name] < 1 - LEVEL
        if not any(family[name]):
            found[name] = "equal"
        elif not alone:
            found[name] = "open"
        elif (statistics.fmean(family[name]) > 0) == higher:
            found[name] = "better" if together else "better?"
        else:
            found[name] = "worse" if together else "worse?"
    return found


def resolvable(sd: float, n: int, power: float = 0.8) -> float:
    """The smallest true difference that a t test of `n` pairs with this standard deviation finds with this probability.

    NaN for fewer than two pairs. Above it a study of this size is likely to settle a sign; below it an open sign says
    little.
    """
    if n < 2 or not math.isfinite(sd):
        return math.nan
    import numpy as np
    from scipy import optimize, stats

    # scipy's noncentral t has gaps, so its tails are a mean of the normal's over the deviations that n values can have
    shares = (np.arange(4096) + 0.5) / 4096
    bounds = _critical(n) * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))

    def lacking(shift: float) -> float:
        return float(np.mean(stats.norm.sf(bounds - shift) + stats.norm.cdf(-bounds - shift))) - power

    return float(optimize.brentq(lacking, 0.0, 100.0)) * sd / math.sqrt(n)


def extrapolated(large: float, n_large: float, small: float, n_small: float) -> float:
    """A Frechet distance at infinitely many samples, from those at two numbers of them, of which one is larger.

    The distance of n samples is too large by about c / n (Chong and Forsyth, "Effectively Unbiased FID", CVPR 2020).
    """
    return (n_large * large - n_small * small) / (n_large - n_small)


def _critical(n: int) -> float:
    """Student's t at 95 % for `n` values."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, n - 1))
