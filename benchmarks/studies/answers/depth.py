"""Over depth: sensitivity (Fig. 5) and quality (Fig. 7)."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.studies import figures, needs, plan
from benchmarks.studies.answers.answer import Answer, by_rule, complete, mean_of, seeds_of
from benchmarks.studies.compare import compare, grouped, signed, slope, told
from benchmarks.studies.rows import read
from benchmarks.training import Row
from neural_rdm.reports.tables import markdown_table


def fig5(pictures: Path) -> Answer | None:
    """Sensitivity over depth and training."""
    rows = complete(read("fig5"), lambda row: f"{row['rule']} {row['target']}")
    if len({row["seed"] for row in rows}) < 2:
        return None
    steps = plan.STUDIES["fig5"].steps
    units = range(len(rows[0][f"norm_{steps[-1]}"]))
    panels = {}
    for target in plan.TARGETS:
        of = {
            rule: [_by_last(r[f"norm_{steps[-1]}"]) for r in rows if (r["rule"], r["target"]) == (rule, target)]
            for rule in plan.PAPER
        }
        panels[f"target {target}, step {steps[-1]}"] = (list(units), of)
    figures.curves(panels, pictures / "fig5.png", "unit, from the input", "norm over that of the last unit", "y")
    table_rows, decays, grows, rises, falls = [], 0, 0, 0, 0
    for target in plan.TARGETS:
        for rule in plan.PAPER:
            mine = [r for r in rows if (r["rule"], r["target"]) == (rule, target)]
            row: dict[str, str] = {"target": target, "rule": f"`{rule}`"}
            for step in steps:
                row[f"step {step}"] = f"{mean_of([_decades(r[f'norm_{step}']) for r in mine]):+}"
            end = [_decades(r[f"norm_{steps[-1]}"]) for r in mine]
            change = [_decades(r[f"norm_{steps[-1]}"]) - _decades(r[f"norm_{steps[1]}"]) for r in mine]
            row["batches"] = f"{np.mean([r[f'between_{steps[-1]}'][0] for r in mine]):.2f}"
            row[f"change since step {steps[1]}"] = f"{mean_of(change):+}"
            decays += signed(end) == "below 0"
            grows += signed(end) == "above 0"
            rises += signed(change) == "above 0"
            falls += signed(change) == "below 0"
            table_rows.append(row)
    cases = len(table_rows)
    absolute = _absolute(rows, steps)
    short = (
        f"Of {cases} pairs of rule and target, sensitivity at the first unit is above that of the last in {grows}, below it "
        f"(decay) in {decays}; from step {steps[1]} to {steps[-1]} that ratio rises in {rises} and falls in {falls}, each by its own interval."
    )
    body = f"""A DiT of width 32 with {len(units)} units, {steps[-1]} steps, {seeds_of(rows)}; `||s_i||` on {8} batches of held-out digits under the same
noise for all. The table has log10 of the first unit's norm over the last one's: 0 is isometry, below 0 the decay that the paper
expects, above 0 growth towards the input. *batches* is the standard deviation of that number over the batches of one run.

{markdown_table(table_rows)}

{short} {absolute}

With the norm by the largest of the stack instead (the paper's figure), decay towards the input would have the last unit at 1; growth
has the first.

![Norm over that of the last unit, over depth](fig5.png)"""
    verdict = (
        f"does not hold: grows towards the input in {grows} of {cases} cases"
        if grows > decays
        else f"holds in {decays} of {cases} cases"
        if decays
        else "not seen"
    )
    return Answer(
        "Does sensitivity decay with depth? (Sec. 2.3, Fig. 5)",
        "without gates sensitivity decays with depth; gates raise it as training advances (Sec. 2.3, 3.4)",
        verdict,
        short,
        body,
        f"Latte-XL and its plain twin, `exp=paper/fig5_sensitivity`: {needs.told('fig5')}",
        "python -m benchmarks.studies fig5",
        "fig5.csv",
    )


def _absolute(rows: Sequence[Row], steps: Sequence[int]) -> str:
    """Whether the norms themselves rise: the geometric mean over units, late over early."""
    parts = []
    for rule in plan.PAPER:
        mine = [r for r in rows if r["rule"] == rule]
        ratio = [float(np.mean(np.log10(r[f"norm_{steps[-1]}"]) - np.log10(r[f"norm_{steps[1]}"]))) for r in mine]
        parts.append(f"`{rule}` {10 ** float(np.mean(ratio)):.2f}")
    return (
        f"The norms themselves, step {steps[-1]} over step {steps[1]} (geometric mean over units, targets and seeds): "
        f"{', '.join(parts)}."
    )


def _decades(norm: Sequence[float]) -> float:
    return math.log10(norm[0] / norm[-1])


def _by_last(norm: Sequence[float]) -> list[float]:
    return [value / norm[-1] for value in norm]


def fig7(pictures: Path) -> Answer | None:
    """Quality against depth."""
    rows = read("fig7")
    equal = complete([r for r in rows if r["stage"] == "equal steps"], lambda r: f"{r['rule']} {r['units']}")
    flops = complete([r for r in rows if r["stage"] == "equal FLOPs"], lambda r: f"{r['rule']} {r['units']}")
    if len({row["seed"] for row in equal}) < 2:
        return None
    panels, sentences = {}, []
    slopes: dict[tuple[str, str], dict[int, float]] = {}
    for stage, mine in (("equal steps", equal), ("equal FLOPs", flops)):
        if len({row["seed"] for row in mine}) < 2:
            continue
        units = sorted({row["units"] for row in mine})
        found: dict[str, list[list[float]]] = {}
        for rule in dict.fromkeys(row["rule"] for row in mine):
            seeds = sorted({row["seed"] for row in mine})
            each = {
                seed: [next(r for r in mine if (r["rule"], r["units"], r["seed"]) == (rule, n, seed)) for n in units]
                for seed in seeds
            }
            found[rule] = [[r["val_loss"] for r in run] for run in each.values()]
            slopes[stage, rule] = {
                seed: slope([math.log2(r["units"]) for r in run], [r["val_loss"] for r in run])
                for seed, run in each.items()
            }
        panels[stage] = (units, found)
        per = ", ".join(f"`{rule}` {mean_of(list(slopes[stage, rule].values())):+}" for rule in found)
        word = signed(list(slopes[stage, "gated"].values()), "deeper is worse", "deeper is better")
        apart = [slopes[stage, "gated"][s] - slopes[stage, "resnet"][s] for s in slopes[stage, "gated"]]
        sentences.append(
            f"At {stage} the loss changes by {per} for each doubling of the depth ({word} for `gated`); `gated` less `resnet`: "
            f"{mean_of(apart):+}, {signed(apart)}."
        )
    figures.curves(panels, pictures / "fig7.png", "units", "validation loss", "x")
    by_depth = [
        {"units": str(n), "difference of": f"`{line.name}`", "validation loss, less `resnet`": f"{line.less:+}", "sign": line.sign}
        for n in plan.UNITS
        for line in compare(grouped([r for r in equal if r["units"] == n], "val_loss", by_rule), "resnet")[1:]
    ]  # fmt: skip
    rates = _rates([r for r in rows if r["stage"] == "rate"])
    distances = compare(
        grouped([r for r in equal if r["rule"] == "gated"], "frechet_pixels", lambda r: f"{r['units']} units"),
        f"{plan.UNITS[1]} units",
    )
    body = f"""A DiT of width 32; {plan.DEPTH_STEPS} steps at every depth, then as many as make units times steps {plan.BUDGET:,}; {seeds_of(equal)}.

{" ".join(sentences)}

![Validation loss over depth](fig7.png)

{markdown_table(by_depth)}

**Distance by depth**, `gated`, at equal steps: {told(distances)}

**The learning rate and depth.** The best of {", ".join(f"{rate:g}" for rate in plan.RATES)} by mean loss of two other seeds after {plan.RATE_STEPS} steps:

{markdown_table(rates)}

{_longer()}"""
    steps_word = signed(list(slopes["equal steps", "gated"].values()), "deeper is worse", "deeper is better")
    verdict = {"deeper is better": "holds at equal steps", "deeper is worse": "does not hold at equal steps"}.get(
        steps_word, "not seen at equal steps"
    )
    plain = signed(list(slopes["equal steps", "resnet"].values()), "deeper is worse", "deeper is better")
    if plain == steps_word != "not settled":
        verdict += ", for plain addition too"
    if ("equal FLOPs", "gated") in slopes:
        word = signed(list(slopes["equal FLOPs", "gated"].values()), "worse", "better")
        verdict += "; at equal FLOPs " + (f"deeper is {word}" if word != "not settled" else word)
    return Answer(
        "Is deeper better? (Fig. 7)",
        "quality grows with the number of residual units (Sec. 3.6, Fig. 7)",
        verdict,
        f"{' '.join(sentences)} ({len({row['seed'] for row in equal})} seeds.)",
        body,
        f"Latte at 14 to 56 blocks, `exp=paper/fig7_depth`: {needs.told('fig7')}",
        "python -m benchmarks.studies fig7",
        "fig7.csv",
    )


def _longer() -> str:
    """What a rate that is the best after few steps does in many: one seed that was trained at the lower rate."""
    lower = {(r["units"], r["rule"]): r["val_loss"] for r in read("fig7_lower_rate") if r["stage"] == "equal FLOPs"}
    chosen = {
        (r["units"], r["rule"]): r["val_loss"] for r in read("fig7") if r["stage"] == "equal FLOPs" and r["seed"] == 0
    }
    pairs = [
        f"{units} units and {plan.BUDGET // units:,} steps of `{rule}` {loss:.4f} instead of {chosen[units, rule]:.4f}"
        for (units, rule), loss in lower.items()
        if units < plan.UNITS[2]
    ]
    return (
        f"The best of {plan.RATE_STEPS} steps is not the best of many: at 0.01, seed 0 reached with {', '.join(pairs)} "
        "([rows](../../benchmarks/results/studies/fig7_lower_rate.csv)). At equal FLOPs shallow networks, which make more "
        "steps, are therefore better still than above."
    )


def _rates(rows: Sequence[Row]) -> list[dict[str, str]]:
    found = []
    for units in plan.UNITS:
        for rule in ("resnet", "gated"):
            row = {"units": str(units), "rule": f"`{rule}`"}
            losses = {}
            for lr in plan.RATES:
                values = [r["val_loss"] for r in rows if (r["units"], r["rule"], r["lr"]) == (units, rule, lr)]
                if values and None not in values:
                    losses[lr] = float(np.mean(values))
                row[f"{lr:g}"] = f"{losses[lr]:.4f}" if lr in losses else "broke" if values else ""
            row["best"] = f"{min(losses, key=lambda r: losses[r]):g}" if losses else ""
            found.append(row)
    return found
