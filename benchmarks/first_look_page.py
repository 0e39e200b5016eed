"""`docs/results/rules.md` and its figure, made of `results/first_look.csv`: no number is typed."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks import first_look, gains
from benchmarks.first_look import PARTS, RULES, SEEDS, STEPS, SWEEP_STEPS, UNITS, best_rate
from benchmarks.pages import PAGES, percent
from benchmarks.studies.noise import rows_of
from neural_rdm.core.files import write_atomically, write_text
from neural_rdm.reports.statistics import signs as settled
from neural_rdm.reports.tables import markdown_table

BASE = "resnet"
RESULTS = Path(__file__).parent / "results"
PICTURE, TIMES = RESULTS / "first_look.png", RESULTS / "first_look.json"
#: rules whose branches start closed, or nearly
IDENTITIES = ("rezero", "layerscale", "sandwich")
NOTE = "<!-- written by `python -m benchmarks.first_look_page` from benchmarks/results/first_look.*: change those, not this -->\n\n"
Row = dict[str, Any]


class Study:
    """The runs, by depth and case; a case counts at a depth once two of its seeds are there."""

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows = first_look.read() if rows is None else rows
        self.runs: dict[tuple[int, str], dict[int, Row]] = {}
        for row in self.rows:
            if row["stage"] == "run":
                self.runs.setdefault((row["units"], row["case"]), {})[row["seed"]] = row

    def cases(self, units: int) -> list[str]:
        """Those that are complete at a depth, in the order of the study."""
        names = dict.fromkeys(case.name for part in PARTS for case in part.cases)
        return [name for name in names if len(self.runs.get((units, name), {})) > 1]

    def values(self, units: int, name: str, key: str) -> dict[int, float]:
        """A number of a case by seed; NaN for a run that broke."""
        runs = self.runs[units, name]
        return {seed: math.nan if runs[seed][key] is None else runs[seed][key] for seed in SEEDS if seed in runs}

    def less(self, units: int, name: str, other: str, key: str = "val_loss") -> list[float]:
        """Differences to another case, paired by seed."""
        ours, theirs = self.values(units, name, key), self.values(units, other, key)
        return [value - theirs[seed] for seed, value in ours.items() if seed in theirs]

    def rate(self, units: int, name: str) -> tuple[float, str]:
        """The learning rate of a case, and whether it is an edge of its grid."""
        best = best_rate(self.rows, units, name)
        swept = [r["lr"] for r in self.rows if (r["units"], r["case"], r["stage"]) == (units, name, "sweep")]
        return best, "lowest tried" if best == min(swept) else "highest tried" if best == max(swept) else ""

    def signs(self, units: int) -> dict[str, str]:
        """case -> what its paired differences to the base tell, see `reports.statistics.signs`; for all cases of a depth together."""
        return settled({name: self.less(units, name, BASE) for name in self.cases(units) if name != BASE})

    def of_sign(self, units: int, word: str) -> list[str]:
        """The cases whose sign begins with a word, in the order of the study."""
        signs = self.signs(units)
        return [name for name in self.cases(units) if signs.get(name, "").startswith(word)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the 95 % interval (Student's t)."""
    found = gains.interval(values)
    assert found is not None
    mean, _, high = found
    return mean, high - mean


def told(values: Sequence[float], digits: int = 4, sign: bool = False) -> str:
    """`mean ± half`, or that a run broke."""
    mean, half = interval(values)
    return f"{mean:{'+' if sign else ''}.{digits}f} ± {half:.{digits}f}" if math.isfinite(mean) else "broke"


def table(study: Study, units: int, costs: dict[tuple[int, str], float]) -> str:
    """All cases at a depth."""
    signs, rows = study.signs(units), []
    for name in study.cases(units):
        rate, edge = study.rate(units, name)
        row: Row = {"rule": f"`{name}`", "learning rate": f"{rate:g}" + (f" ({edge})" if edge else "")}
        row["validation loss"] = told([*study.values(units, name, "val_loss").values()])
        row["less `resnet`, paired"] = "" if name == BASE else told(study.less(units, name, BASE), sign=True)
        row["sign"] = signs.get(name, "")
        row["Frechet distance"] = told([*study.values(units, name, "frechet_pixels").values()], 2)
        row["recognised"] = percent(statistics.fmean(study.values(units, name, "accuracy").values()))
        row["seeds"] = str(len(study.runs[units, name]))
        row["parameters"] = f"{next(iter(study.runs[units, name].values()))['parameters']:,}"
        row["step time"] = f"{costs[units, name]:.2f}" if (units, name) in costs else ""
        rows.append(row)
    return markdown_table(rows)


def plot(study: Study, path: Path = PICTURE) -> None:
    """Loss and Frechet distance less those of the base: a dot a seed, the mean with its 95 % interval, a row a case."""
    names = [name for name in dict.fromkeys(n for units in UNITS for n in study.cases(units)) if name != BASE]
    figure = Figure(figsize=(11, 1.4 + 0.62 * len(names)), dpi=110, layout="constrained")
    keys = {"val_loss": "validation loss less resnet's", "frechet_pixels": "Frechet distance less resnet's"}
    grid = figure.subplots(len(keys), len(UNITS), sharey=True, squeeze=False)
    for line, (key, label) in zip(grid, keys.items(), strict=True):
        for axes, units in zip(line, UNITS, strict=True):
            signs, here = study.signs(units), study.cases(units)
            for place, name in enumerate(names):
                if name not in here:
                    axes.text(0, place, " not run", va="center", fontsize=7, color="0.5")
                    continue
                differences = study.less(units, name, BASE, key)
                mean, half = interval(differences)
                shown = signs[name].rstrip("?") if key == "val_loss" else ""
                colour = {"better": "C2", "worse": "C3"}.get(shown, "0.45")
                axes.errorbar([mean], [place], xerr=[half], fmt="o", color=colour, capsize=3, markersize=5)
                axes.plot(differences, [place] * len(differences), "|", color=colour, markersize=9, alpha=0.7)
            axes.axvline(0, color="black", linewidth=0.8)
            axes.set_xlabel(label)
            axes.set_title(f"{units} units", fontsize=10)
            axes.set_yticks(range(len(names)), names, fontsize=8)
            axes.grid(axis="x", alpha=0.3, linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].invert_yaxis()
    figure.suptitle(
        "Below 0: better than plain addition. Bars: 95 %, paired seeds; green, red: 0 is outside of it",
        fontsize=10,
    )
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def names_of(cases: Sequence[str]) -> str:
    """`a`, `b` and `c`, or none."""
    quoted = [f"`{case}`" for case in cases]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]])) or "none"


def costs() -> dict[tuple[int, str], float]:
    """A training step's time over that of the base, by depth and case; empty where it was not measured."""
    if not TIMES.is_file():
        return {}
    rows = json.loads(TIMES.read_text(encoding="utf-8"))["costs"]
    return {(row["units"], row["case"]): row["over_first"] for row in rows}


#: rules and their controls at the first depth
CONTROLLED = {
    "gated": BASE,
    "rezero": "rezero (folded)",
    "layerscale": "layerscale (folded)",
    "ihc": "resnet +MLP as ihc",
}


def controls(study: Study, units: int) -> str:
    """Each rule less its control."""
    signs = against_controls(study, units)
    rows = [
        {
            "rule": f"`{name}`",
            "control": f"`{other}`" + (", which `gated (folded)` is to the last bit" if other == BASE else ""),
            "validation loss": told(study.less(units, name, other), sign=True),
            "sign": signs[name],
            "Frechet distance": told(study.less(units, name, other, "frechet_pixels"), 1, sign=True),
        }
        for name, other in CONTROLLED.items()
        if name in signs
    ]
    return markdown_table(rows)


def against_controls(study: Study, units: int) -> dict[str, str]:
    """rule -> what its paired differences to its control tell, for all of them together."""
    done = study.cases(units)
    return settled({name: study.less(units, name, other) for name, other in CONTROLLED.items() if other in done})


def rates(study: Study, units: int) -> str:
    """How many rules like which learning rate at a depth."""
    found = Counter(study.rate(units, name)[0] for name in study.cases(units))
    return ", ".join(f"{rate:g} for {found[rate]}" for rate in sorted(found))


def rules() -> str:
    """Every rule at two depths, with what speaks against the paper's first."""
    study, times = Study(), costs()
    small, deep = UNITS
    runs = [row for row in study.rows if row["stage"] == "run"]
    missing = [name for name in study.cases(small) if name in RULES and name not in study.cases(deep)]

    def mean(units: int, name: str, key: str) -> float:
        return statistics.fmean(study.values(units, name, key).values())

    def change(name: str) -> str:
        """How the difference to the base changes from the first depth to the second, paired by seed."""
        few, many = study.less(small, name, BASE), study.less(deep, name, BASE)
        return told([b - a for a, b in zip(few, many, strict=False)], sign=True)

    def beside(name: str, key: str = "val_loss", digits: int = 4) -> str:
        """The paired differences to the base at both depths."""
        both = [told(study.less(units, name, BASE, key), digits, sign=True) for units in UNITS]
        return f"{both[0]} at {small} units, {both[1]} at {deep}"

    for units in UNITS:  # what the text below says
        assert study.signs(units)["gated"] == "open"
        assert study.of_sign(units, "better") == []
        assert mean(units, "rezero", "frechet_pixels") < mean(units, BASE, "frechet_pixels")
    for name in ("rezero", "layerscale"):
        assert against_controls(study, small)[name] == "worse"
        assert np.mean(study.less(small, name, f"{name} (folded)")) > np.mean(study.less(small, name, BASE)) / 2
    for name in IDENTITIES:
        assert np.mean(study.less(deep, name, BASE)) < np.mean(study.less(small, name, BASE))
    assert np.mean(study.less(deep, "mvsplit", BASE)) > np.mean(study.less(small, "mvsplit", BASE))
    whole = np.mean([row["accuracy"] for row in rows_of("digits_gated")])
    spread = sorted(study.values(small, "dar", "val_loss").values())
    assert all(
        np.ptp([*study.values(small, name, "val_loss").values()]) <= np.ptp(spread) for name in study.cases(small)
    )
    return f"""{NOTE}# Every rule on the digits: a first look

`python -m benchmarks first_look` trains, `python -m benchmarks.first_look_page` writes this page of
[first_look.csv](../../benchmarks/results/first_look.csv), a line a run ({len(study.rows)} runs, {len(runs)} of them compared).

**What was done.** The default experiment at width 32 and batch 48 (class-conditional DiT, hybrid loss, AdamW, EMA), at {small} and
{deep} units, each rule at its own learning rate: the best of a sweep of {SWEEP_STEPS} steps of another seed. Then {STEPS} steps, the
same for all, seeds {", ".join(map(str, SEEDS))}. Within a seed all rules share data, noise, timesteps and the draws of their
initial weights. The loss is that of the EMA weights on all held-out digits at four timesteps and noises each, the same for
every run; distance and share recognised are of 250 digits drawn without guidance. `±` is half the 95 % interval (Student's t).
The sign against `resnet`: *better* or *worse* where a paired t test settles it for all rules of the depth together (Holm, 5 %),
with a *?* where it does so only for this rule by itself, else *open*. Step time is that of `resnet` times this, all rules timed in
turns (`first_look.json`); on the busy machine that it was measured on, less than a tenth is noise.

## What speaks against the paper's rule

- **Its gates are not seen to help.** `gated` less `resnet`, paired by seed: {beside("gated")}. Neither sign is settled.
- **The path of its optimisation is not seen to help either.** Its alpha starts at 1 and its beta at 0, so that the folded control of
  `gated` is `resnet` from the same weights, to the last bit: the differences above are those to the control.
- **No rule is seen to beat plain addition** at either depth, at three seeds and {STEPS} steps. Behind it, if only by themselves: {names_of(study.of_sign(small, "worse"))} at
  {small} units, {names_of(study.of_sign(deep, "worse"))} at {deep}.

## {small} units

{table(study, small, times)}
## {deep} units

{table(study, deep, times)}
{f"Not run at {deep} units, for want of time: {names_of(missing)}." if missing else ""}

![differences](../../benchmarks/results/first_look.png)

## Rules less their controls, {small} units

{controls(study, small)}
The sign is that of the rule against its control, for these four together. Rule and folded control compute the same function at
the start and can express the same ones (but for the beta of `gated`).

## What surprised

- **Gates that start at or near zero cost, and it is their path, not their function.** `rezero` is {told(study.less(small, "rezero", "rezero (folded)"))} worse than the
  plain network that starts as it does, with alpha in the weights, and `layerscale` {told(study.less(small, "layerscale", "layerscale (folded)"))}: more than half of what
  they are behind `resnet`.
- **What starts as the identity, or nearly, is closer to plain addition at {deep} units than at {small}.** Less `resnet`: `rezero`
  {beside("rezero")} (a change of {change("rezero")}); `layerscale` {beside("layerscale")} ({change("layerscale")});
  `sandwich` {beside("sandwich")} ({change("sandwich")}).
- **Loss, distance and class do not go together.** `rezero` has the higher loss, but its Frechet distance less that of `resnet` is {beside("rezero", "frechet_pixels", 1)},
  while a classifier recognises {percent(mean(small, "rezero", "accuracy"))} and {percent(mean(deep, "rezero", "accuracy"))} of its digits, where chance is 10 %, and {percent(mean(small, BASE, "accuracy"))} and {percent(mean(deep, BASE, "accuracy"))} of those of `resnet`: pixels that
  are right on average, and hardly a class. None of the three stands for another this early.
- **The best learning rate moves little with depth**: {rates(study, small)} of the rules at {small} units, {rates(study, deep)} at {deep}.
- **`mvsplit` is no closer at depth**: {beside("mvsplit")} (a change of {change("mvsplit")}), though depth is what it was made for. Its evidence is of a network
  without adaLN, which this is not.
- **One seed's short sweep is a poor judge.** `dar` took {study.rate(small, "dar")[0]:g} at {small} units, and its three seeds then lie between {spread[0]:.3f} and
  {spread[-1]:.3f}, the widest of all.

## What limits this

{STEPS} steps of 8x8 digits are the very beginning of training: of the digits that the default experiment draws (1200 steps, width
80, guidance) a classifier recognises {percent(whole, 1)}, of these of `resnet` {percent(mean(small, BASE, "accuracy"))}. Rules that begin near the identity begin
later. One width, one objective, one optimizer; learning rates a factor of three apart, chosen by one seed. Where the
table says *open* or has a question mark, this study has settled nothing.
"""


def write() -> None:
    """Write the figure and the page."""
    plot(Study())
    write_text(PAGES / "rules.md", rules())


if __name__ == "__main__":
    write()
