"""Groups of runs against a base of the same seeds, and what can be said of that in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from benchmarks.training import Row
from neural_rdm.reports.statistics import Interval, Sign, interval, paired, resolvable, signs
from neural_rdm.reports.tables import markdown_table

Seeds = dict[int | None, float]


@dataclass(frozen=True)
class Line:
    """A group: its mean, its paired differences to the base, their sign, and the difference that so many pairs of such
    spread find four times in five.
    """

    name: str
    values: Interval
    less: Interval | None
    sign: Sign
    found: float


def grouped(rows: Iterable[Row], number: str, by: Callable[[Row], str]) -> dict[str, Seeds]:
    """The number of each run, by group and seed, in the order of the rows; a run that broke has infinity."""
    groups: dict[str, Seeds] = {}
    for row in rows:
        if number in row:
            value = row[number]
            groups.setdefault(by(row), {})[row["seed"]] = math.inf if value is None else value
    return groups


def compare(groups: Mapping[str, Seeds], base: str, higher: bool = False) -> list[Line]:
    """A line a group with two seeds or more, the base first; signs are tested for all of them together. What two pairs
    say rests on their normality alone: their sign stays open.
    """
    groups = {name: values for name, values in groups.items() if len(values) > 1}
    if base not in groups:
        return []
    less = {name: list(paired(values, groups[base]).values()) for name, values in groups.items() if name != base}
    of_signs = signs(less, higher)
    lines = []
    for name in sorted(groups, key=lambda each: each != base):
        values, differences = interval(list(groups[name].values())), interval(less.get(name, []))
        assert values is not None
        found = math.nan if differences is None else resolvable(differences.sd, differences.n)
        sign = of_signs.get(name, "")
        few = len(less.get(name, [])) < 3 and sign not in ("", "equal")
        lines.append(Line(name, values, differences, "open" if few else sign, found))
    return lines


def pairs_for(sd: float, difference: float) -> int:
    """How many pairs of such spread find a true difference four times in five."""
    return next(n for n in itertools.count(2) if resolvable(sd, n) <= difference)


def told(lines: list[Line], unit: str = "") -> str:
    """What the lines say against their base, as a sentence: which differ, and how much would have been seen."""
    if not lines:
        return "Nothing can be said yet: fewer than two seeds."
    base, others = lines[0].name, lines[1:]
    parts = []
    for word in ("better", "worse", "better?", "worse?"):
        if chosen := [line for line in others if line.sign == word]:
            alone = " by itself, not for all together" if word.endswith("?") else ""
            each = ", ".join(f"`{line.name}` ({line.less:+}{unit})" for line in chosen)
            parts.append(f"{word.rstrip('?').capitalize()} than `{base}`{alone}: {each}.")
    if still := [line for line in others if line.sign == "open"]:
        largest = max((line.found for line in still if math.isfinite(line.found)), default=math.nan)
        names = ", ".join(f"`{line.name}`" for line in still)
        parts.append(
            f"Open: {names}; a true difference of {largest:.2g}{unit} would have been found four times in five."
        )
    if same := [line for line in others if line.sign == "equal"]:
        parts.append(f"The same to the last bit: {', '.join(f'`{line.name}`' for line in same)}.")
    return " ".join(parts)


def table(lines: list[Line], what: str) -> list[dict[str, str]]:
    """The lines for a page."""
    return [
        {
            "": f"`{line.name}`",
            what: f"{line.values}",
            "less the first, paired": f"{line.less:+}" if line.less else "",
            "sign": line.sign,
            "seeds": str(line.values.n),
        }
        for line in lines
    ]


def compared(lines: list[Line], heading: str, what: str) -> str:
    """The table of a number, and below it what it says."""
    return f"{markdown_table(table(lines, what))}\n\n**{heading}.** {told(lines)}"


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line of least squares."""
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / sum((a - x_mean) ** 2 for a in x)


def signed(values: list[float], more: str = "above 0", less: str = "below 0") -> str:
    """`above 0`, `below 0` or `not settled`: whether the interval of a mean has 0 in it. Two values rest on their
    normality alone, and settle nothing (see `compare`).
    """
    found = interval(values)
    if found is None or found.n < 3 or not found.half > 0 or found.low <= 0 <= found.high:
        return "not settled"
    return more if found.low > 0 else less
