"""What another seed does to each embedded default, and how many seeds resolve which difference."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.studies.rows import read
from benchmarks.training import Row
from neural_rdm.reports.statistics import interval, resolvable

#: experiment -> the study that has its default settings, and the rows of it that are the default
DEFAULTS = {
    "digits_gated": ("objectives", "epsilon, hybrid (DiT)"),
    "digits_unet_gated": ("noise_unet", None),
    "digits_text_gated": ("noise_text", None),
    "digits_video_gated": ("noise_video", None),
}
METRICS = ("val_loss", "frechet_pixels", "accuracy", "consistency")
COUNTS = (3, 5, 10)


def floor() -> list[dict[str, str]]:
    """A line a default and metric: its standard deviation over seeds, and the smallest difference of two settings that
    so many seeds each, unpaired, find four times in five. Pairs of the same seeds find smaller ones; how much smaller
    stands beside each comparison.
    """
    return [line for exp in DEFAULTS for line in _lines(exp)]


def rows_of(exp: str) -> list[Row]:
    """The runs of a default, a seed each."""
    study, case = DEFAULTS[exp]
    return [row for row in read(study) if case is None or row["case"] == case]


def _lines(exp: str) -> Iterator[dict[str, str]]:
    rows = rows_of(exp)
    for metric in METRICS:
        values = [row[metric] for row in rows if row.get(metric) is not None]
        found = interval(values)
        if found is None or found.n < 2:
            continue
        low, high = _bounds(found.sd, found.n)
        yield {
            "default": f"`{exp}`",
            "number": metric,
            "mean": f"{found}",
            "standard deviation": f"{found.sd:.2g} [{low:.2g}, {high:.2g}]",
            "seeds": str(found.n),
            **{f"{n} seeds find": f"{resolvable(math.sqrt(2) * found.sd, n):.2g}" for n in COUNTS},
        }


def _bounds(sd: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation (chi-squared)."""
    from scipy import stats

    low, high = stats.chi2.ppf((0.975, 0.025), n - 1)
    return sd * math.sqrt((n - 1) / low), sd * math.sqrt((n - 1) / high)
