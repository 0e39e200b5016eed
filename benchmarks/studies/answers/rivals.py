"""The order of eight rules under two optimizers and two targets."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmarks.studies import figures, needs, plan
from benchmarks.studies.answers.answer import Answer, by_rule, rank, seeds_of
from benchmarks.studies.compare import Line, Seeds, compare, grouped, told
from benchmarks.studies.rows import read
from benchmarks.training import Row
from neural_rdm.reports.tables import markdown_table


def rivals(pictures: Path) -> Answer | None:
    """The order of the rules under two optimizers and two targets."""
    rows = read("rivals")
    wheres = [(o, t) for o in plan.OPTIMIZERS for t in ("v", "x0")]
    best: list[Row] = []
    for optimizer, target in wheres:
        for rule in plan.RIVALS:
            mine = [r for r in rows if (r["optimizer"], r["target"], r["rule"]) == (optimizer, target, rule)]
            by_rate = {lr: [r for r in mine if r["lr"] == lr] for lr in plan.RATES}
            if any(len(each) < 2 for each in by_rate.values()):
                return None
            best += min(by_rate.values(), key=lambda each: float(np.mean([_number(r["val_loss"]) for r in each])))
    summary, places = [], {}
    panels: dict[str, list[Line]] = {}
    for optimizer, target in wheres:
        mine = [r for r in best if (r["optimizer"], r["target"]) == (optimizer, target)]
        lines = compare(grouped(mine, "val_loss", by_rule), "resnet")
        panels[f"{optimizer}, {target}: loss"] = lines
        places[optimizer, target] = [line.values.mean for line in sorted(lines, key=lambda each: each.name)]
        for line in lines:
            rate = next(r["lr"] for r in mine if r["rule"] == line.name)
            summary.append(
                {
                    "optimizer": optimizer, "target": target, "rule": f"`{line.name}`", "best rate": f"{rate:g}",
                    "validation loss": f"{line.values}", "less `resnet`": f"{line.less:+}" if line.less else "",
                    "sign": line.sign,
                }
            )  # fmt: skip
    pairs = [(a, b) for i, a in enumerate(wheres) for b in wheres[i + 1 :]]
    ranks = [
        {"one": f"{a[0]}, {a[1]}", "other": f"{b[0]}, {b[1]}", "rank correlation of the rules": f"{rank(places[a], places[b]):+.2f}"}
        for a, b in pairs
    ]  # fmt: skip
    low, high = (f([rank(places[a], places[b]) for a, b in pairs]) for f in (min, max))
    signs = {
        rule: [line.sign for lines in panels.values() for line in lines if line.name == rule] for rule in plan.RIVALS
    }
    count = {word: sum(each.count(word) for each in signs.values()) for word in ("better", "worse")}
    alike = [f"`{rule}` {each[0]}" for rule, each in signs.items() if len(set(each)) == 1 and each[0] in count]
    over_all = told(compare(_over_all(best), "resnet"))
    short = (
        f"The order of eight rules by mean loss correlates by {low:+.2f} to {high:+.2f} between two optimizers and two targets. Of "
        f"{len(wheres) * (len(plan.RIVALS) - 1)} comparisons with plain addition {count['better']} are settled as better and {count['worse']} as worse; "
        f"settled alike everywhere: {', '.join(alike) or 'none'}. Loss over that of `resnet`, a mean of the four for each seed: {over_all}"
    )
    body = f"""Eight rules at 48 units (width 32, 150 steps), each at its own best of three learning rates, {seeds_of(best)}. The rate
is chosen by the runs that are then compared, which flatters every rule alike.

{markdown_table(summary)}

{markdown_table(ranks)}

{short}

![Loss of each rule less plain addition, at each its own best rate, with 95 % intervals](rivals.png)"""
    figures.differences(panels, pictures / "rivals.png")
    return Answer(
        "Does the order of the rules survive the optimizer and the target?",
        "(the paper has one optimizer and one target)",
        f"rank correlations {low:+.2f} to {high:+.2f}",
        short,
        body,
        f"the same with DiT-B/2 on ImageNet for 400K steps, each rule at one rate: {needs.told('rivals')}",
        "python -m benchmarks.studies rivals",
        "rivals.csv",
    )


def _over_all(best: list[Row]) -> dict[str, Seeds]:
    """Each rule's loss over plain addition's under the same optimizer, target and seed: its mean by seed, of seeds that
    are done under all of them.
    """
    losses = {(r["optimizer"], r["target"], r["rule"], r["seed"]): _number(r["val_loss"]) for r in best}
    ratios: dict[str, dict[int, list[float]]] = {}
    for (optimizer, target, rule, seed), loss in losses.items():
        if (base := losses.get((optimizer, target, "resnet", seed))) is not None:
            ratios.setdefault(rule, {}).setdefault(seed, []).append(loss / base)
    every = len({(optimizer, target) for optimizer, target, _, _ in losses})
    return {
        rule: {seed: float(np.mean(each)) for seed, each in seeds.items() if len(each) == every}
        for rule, seeds in ratios.items()
    }


def _number(value: float | None) -> float:
    return math.inf if value is None else value
