"""A report's numbers worked out again from the files of its runs, by NumPy and by hand: nothing of the package is used.

    python -m tests.reports.recompute SWEEP      (prints them; compare with SWEEP/summary.csv)

It knows less than the report: groups are the values of `residual.rule`, the base is that of `sweep.json`, and numbers
are those of finished runs.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Numbers = dict[int, float]  # by seed


def read(sweep: Path, metric: str) -> tuple[dict[str, Numbers], str]:
    """rule -> seed -> the number of a finished run; and the rule of the base."""
    record = json.loads((sweep / "sweep.json").read_text())
    groups: dict[str, Numbers] = {}
    for job in record["jobs"]:
        folder = sweep / job
        if not (folder / "config.yaml").is_file():
            continue
        config = yaml.safe_load((folder / "config.yaml").read_text())
        values = groups.setdefault(config["residual"]["rule"], {})
        if not (folder / "finished.json").is_file():
            continue
        if "/" in metric:
            with open(folder / "metrics.csv", newline="") as file:
                column = [row[metric] for row in csv.DictReader(file) if row[metric]]
            values[config["seed"]] = float(column[-1])
        else:
            rows = json.loads((folder / "report" / "metrics.json").read_text())["rows"]
            values[config["seed"]] = float(next(row for row in rows if row["name"] == "generated")[metric])
    return groups, record["base"].partition("=")[2]


def tail(t: float, df: int) -> float:
    """P(T > t) of Student's t, by integrating its density (Simpson's rule)."""
    x = np.linspace(0.0, abs(t), 4001)
    height = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    density = height * (1 + x**2 / df) ** (-(df + 1) / 2)
    inside = float(density[0] + density[-1] + 4 * density[1::2].sum() + 2 * density[2:-1:2].sum()) * abs(t) / 12_000
    return 0.5 - inside if t > 0 else 0.5 + inside


def critical(df: int) -> float:
    """The t that 2.5 % exceed, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 0.025 else (low, middle)
    return low


def summed(values: list[float]) -> dict[str, float]:
    """n, mean, low, high, sd."""
    x = np.array(values)
    if len(x) < 2:
        return {"n": len(x), **({"mean": float(x[0])} if len(x) else {})}
    sd = math.sqrt(float(((x - x.mean()) ** 2).sum()) / (len(x) - 1))
    half = critical(len(x) - 1) * sd / math.sqrt(len(x))
    return {
        "n": len(x),
        "mean": float(x.mean()),
        "low": float(x.mean()) - half,
        "high": float(x.mean()) + half,
        "sd": sd,
    }


def bootstrap_half(values: list[float], draws: int = 200_000) -> float:
    """Half a 95 % interval of the mean from resampled seeds: Student's t times the spread of their means, which is too
    small by the factor sqrt((n - 1) / n).
    """
    x, n = np.array(values), len(values)
    means = x[np.random.default_rng(0).integers(0, n, size=(draws, n))].mean(axis=1)
    return critical(n - 1) * float(means.std()) * math.sqrt(n / (n - 1))


def recompute(sweep: Path, metric: str, higher: bool) -> dict[str, dict[str, Any]]:
    """rule -> its numbers, and those of the differences to the base, `less`, with `p` and `sign`."""
    groups, base = read(sweep, metric)
    found: dict[str, dict[str, Any]] = {rule: summed([*values.values()]) for rule, values in groups.items()}
    p = {}
    for rule, values in groups.items():
        pairs = [values[seed] - groups[base][seed] for seed in values if seed in groups[base]]
        if rule == base or not pairs:
            continue
        less = found[rule]["less"] = summed(pairs)
        if less["n"] > 1:
            p[rule] = less["p"] = 2 * tail(abs(less["mean"]) / (less["sd"] / math.sqrt(less["n"])), less["n"] - 1)
    still = True
    for place, rule in enumerate(sorted(p, key=lambda r: p[r])):
        still = still and p[rule] < 0.05 / (len(p) - place)
        word = "better" if (found[rule]["less"]["mean"] > 0) == higher else "worse"
        found[rule]["less"]["sign"] = word if still else f"{word}?" if p[rule] < 0.05 else "open"
    return found


if __name__ == "__main__":
    for name in sys.argv[2:] or ["val/loss"]:
        print(name, json.dumps(recompute(Path(sys.argv[1]), name, name.startswith("accuracy")), indent=1))
