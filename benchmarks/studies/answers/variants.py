"""The five rules of the paper side by side, and what surrounds them: Fig. 6, supervision, objectives."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies import figures, needs, plan
from benchmarks.studies.answers.answer import Answer, by_case, by_rule, complete, mean_of, seeds_of
from benchmarks.studies.compare import Line, Seeds, compare, compared, grouped, pairs_for, signed, table, told
from benchmarks.studies.rows import RESULTS, read
from benchmarks.training import Row
from neural_rdm.reports.tables import markdown_table


def against_plain(lines: list[Line], gated: str = "gated") -> str:
    """The verdict for "the paper's rule is the best"."""
    by_name = {line.name: line for line in lines}
    sign = by_name[gated].sign if gated in by_name else ""
    if sign.startswith("better"):
        return "holds against plain addition" + (" by itself" if sign.endswith("?") else "")
    if sign.startswith("worse"):
        return "does not hold: worse than plain addition" + (" by itself" if sign.endswith("?") else "")
    return "not seen"


def fig6(pictures: Path) -> Answer | None:
    """The five rules on the digits."""
    rows = complete(read("fig6"), by_case)
    if len({row["seed"] for row in rows}) < 2:
        return None
    loss = compare(grouped(rows, "val_loss", by_case), "resnet")
    distance = compare(grouped(rows, "frechet_pixels", by_case), "resnet")
    early = compare(grouped(rows, "frechet_pixels_200", by_case), "resnet")
    figures.differences(
        {"validation loss": loss, "Frechet distance": distance, "the same, step 200": early}, pictures / "fig6.png"
    )
    gated = {line.name: line for line in distance}["gated"]
    assert gated.less is not None
    steps = rows[0]["steps"]
    one_percent = pairs_for(gated.less.sd, 0.01 * distance[0].values.mean)
    body = f"""The default experiment ({steps} steps, learning rate 0.01, which is the best of three for each of the rules,
[45 runs](../../benchmarks/results/fig6_rates.csv)), {seeds_of(rows)}, which share data, noise and the draws of their weights. Controls:
`gamma=0.35` is the paper's supervision; `control=mlp_widened` has the parameters of the gates in wider MLPs instead. The folded
control of `gated`, the plain network with the same start, is `resnet` to the last bit: alpha starts at 1 and beta at 0.

{compared(loss, "Loss", "validation loss")}

{compared(distance, "Distance", "Frechet distance of 500 digits")}

Pairs of `gated` and plain addition differ by {gated.less.sd:.2g} (standard deviation): {one_percent} seeds would find a difference of 1 % of the distance four times in five.

**Early, at step 200** (100 digits): {told(early)}

![Differences to plain addition, with 95 % intervals](fig6.png)
{_controls(pictures)}"""
    return Answer(
        "Which rule is the best? (Fig. 6)",
        "Variant-0, `z + alpha * F(z) + beta`, is the best of five rules (Sec. 3.5, Fig. 6)",
        against_plain(distance),
        f"On the digits `gated` less plain addition is {gated.less:+} in Frechet distance ({gated.values.n} seeds, paired; plain addition: "
        f"{distance[0].values}); a true difference of {gated.found:.2g} would have been found four times in five.",
        body,
        f"Latte-XL on SkyTimelapse, Taichi-HD and UCF-101, `exp=paper/fig6_variants` and its two sisters: {needs.told('fig6')}",
        "make sweep exp=small/fig6 seeds=10 jobs=2",
        "fig6.csv",
    )


def _controls(pictures: Path) -> str:
    """What of a rule is its start, and what the rate of its gates; nothing where there are fewer than two seeds."""
    rows = complete(read("fig6_controls"), by_case)
    if len({row["seed"] for row in rows}) < 2:
        return ""
    loss = compare(grouped(rows, "val_loss", by_case), "resnet")
    distances = grouped(rows, "frechet_pixels", by_case)
    distance = compare(distances, "resnet")
    figures.differences({"validation loss": loss, "Frechet distance": distance}, pictures / "fig6_controls.png")
    opened = {name: distances[f"{name}, adaLN gates start at 1"] for name in ("resnet", "gated")}
    return f"""
**Start and rate of the gates.** `python -m benchmarks.studies fig6_controls`, the same experiment, {seeds_of(rows)}
([fig6_controls.csv](../../benchmarks/results/studies/fig6_controls.csv)). `folded` is plain addition from the weights of the gated network,
its gates folded into them; with adaLN gates that start at 1 the branches are open from the first step.

{compared(loss, "Loss", "validation loss")}

{compared(distance, "Distance", "Frechet distance of 500 digits")}

{_against_folded(distances)} With open branches: {told(compare(opened, "resnet"))}

![Differences of the controls to plain addition, with 95 % intervals](fig6_controls.png)
"""


def _against_folded(distances: Mapping[str, Seeds]) -> str:
    """What of `rezero` is not its start: beside plain addition from the same one."""
    started = {name: distances[name] for name in ("rezero, folded", "rezero")}
    return f"Against its folded control, Frechet distance: {told(compare(started, 'rezero, folded'))}"


def fig6_elsewhere(pictures: Path, name: str, where: str) -> Answer | None:
    """The five rules on another network."""
    rows = complete(read(name), by_rule)
    if len({row["seed"] for row in rows}) < 2:
        return None
    loss = compare(grouped(rows, "val_loss", by_rule), "resnet")
    distance = compare(grouped(rows, "frechet_pixels", by_rule), "resnet")
    command = f"python -m benchmarks.studies {name}"
    rates: dict[float, list[str]] = {}
    for row in sorted(rows, key=lambda each: plan.PAPER.index(each["rule"])):
        if f"`{row['rule']}`" not in rates.setdefault(row["lr"], []):
            rates[row["lr"]].append(f"`{row['rule']}`")
    told_rates = "; ".join(f"{lr:g} for {', '.join(rules)}" for lr, rules in rates.items())
    body = f"""`{command}`: {rows[0]["steps"]} steps, learning rate {told_rates}, {seeds_of(rows)}.

{compared(loss, "Loss", "validation loss")}

{compared(distance, "Distance", "Frechet distance")}

![Differences to plain addition on {where}, with 95 % intervals]({name}.png)
{_elsewhere_controls(pictures, name, where, rows)}"""
    figures.differences({"validation loss": loss, "Frechet distance": distance}, pictures / f"{name}.png")
    return Answer(
        f"Fig. 6 on {where}",
        "(Fig. 6 on another network)",
        against_plain(distance),
        told(distance),
        body,
        "",
        command,
        f"{name}.csv",
    )


def _elsewhere_controls(pictures: Path, name: str, where: str, rules: Sequence[Row]) -> str:
    """The controls beside the rules of the same seeds; nothing where there are fewer than two seeds."""
    controls = read(f"{name}_controls")
    rows = complete([{**row, "case": row["rule"]} for row in rules] + controls, by_case) if controls else []
    if len({row["seed"] for row in rows}) < 2:
        return ""
    kept = [row for row in rows if row["case"] in ("resnet", "gated", "rezero") or "rule" not in row]
    loss = compare(grouped(kept, "val_loss", by_case), "resnet")
    distances = grouped(kept, "frechet_pixels", by_case)
    distance = compare(distances, "resnet")
    file = f"{name}_controls"
    figures.differences({"validation loss": loss, "Frechet distance": distance}, pictures / f"{file}.png")
    return f"""
**Start, rate of the gates and supervision.** `python -m benchmarks.studies {file}`, {seeds_of(rows)} ([{file}.csv](../../benchmarks/results/studies/{file}.csv)).

{compared(loss, "Loss", "validation loss")}

{compared(distance, "Distance", "Frechet distance")}

{_against_folded(distances)}

![Differences of the controls on {where} to plain addition, with 95 % intervals]({file}.png)
"""


def supervision(pictures: Path) -> Answer | None:
    """Supervision from the normal start."""
    rows = complete(read("supervision"), lambda r: f"{r['rule']} {r['case']} {r['steps']}")
    if len({row["seed"] for row in rows}) < 2:
        return None
    parts, summary = [], []
    at_steps: list[float] = []  # the supervised rules' settled differences at equal steps
    at_time: list[str] = []  # and their signs at equal time
    for rule in plan.SUPERVISED:
        mine = [r for r in rows if r["rule"] == rule]
        same = [r for r in mine if r["steps"] == 200]
        lines = compare(grouped(same, "val_loss", by_case), "gamma 0")
        cost = {
            case: mean_of([r["step_ms"] / _plain(mine, r["seed"])["step_ms"] for r in same if r["case"] == case])
            for case in plan.SUPERVISION
        }
        for line in lines:
            summary.append(
                {
                    "rule": f"`{rule}`", "case": line.name, "validation loss": f"{line.values}",
                    "less gamma 0": f"{line.less:+}" if line.less else "", "sign": line.sign,
                    "time of a step over gamma 0's": f"{cost[line.name]}",
                }
            )  # fmt: skip
        (supervised,) = (line for line in lines if line.name == "gamma 0.35")
        if supervised.sign in ("better", "worse") and supervised.less:
            at_steps.append(supervised.less.mean)
        longer = grouped(
            [{**r, "case": "longer" if r["steps"] == 260 else r["case"]} for r in mine], "val_loss", by_case
        )
        later = [longer["gamma 0.35"][s] - longer["longer"][s] for s in longer["longer"]]
        at_time.append(signed(later, "worse", "better"))
        parts.append(f"`{rule}`: gamma 0.35 after 200 steps less gamma 0 after 260 {mean_of(later):+}")
    better, worse = (sum(value < 0 for value in at_steps), sum(value > 0 for value in at_steps))
    count = {word: at_time.count(word) for word in ("better", "worse")}
    rules = len(plan.SUPERVISED)
    short = (
        f"At equal steps supervision lowers the loss for {better} of {rules} rules and raises it for {worse}"
        + (f", by {max(map(abs, at_steps)):.2g} at most" if at_steps else "")
        + f"; at equal time it is better for {count['better']} and worse for {count['worse']}."
    )
    if count["worse"] == rules:
        verdict = f"does not hold from the normal start: at equal time worse for all {rules} rules"
    elif count["better"] == rules:
        verdict = "holds, at equal time too"
    else:
        verdict = "holds for some rules at equal steps" if better else "not seen from the normal start"
    body = f"""A DiT of width 32 with 48 units, 200 steps, {seeds_of(rows)}. Controls: ten times the gates' learning rate without supervision, and
longer training without it, which is what supervision's time would buy at most (a supervised step takes up to 1.3 times as long here).

{markdown_table(summary)}

Signs are tested for each rule's three cases together. **At equal time**, {"; ".join(parts)}. {short}

From a start that was damaged on purpose it repairs a part: [What supervision of the gates does](supervision.md)."""
    return Answer(
        "Does the supervision of sensitivity help? (Sec. 3.1, 3.4)",
        "explicit supervision of the gates (gamma = 0.35) corrects sensitivity and helps deep training (Sec. 3.1)",
        verdict,
        short,
        body,
        "`exp=paper/fig6_variants`, which has the cases with gamma 0.35 beside those without",
        "python -m benchmarks.studies supervision",
        "supervision.csv",
    )


def _plain(rows: Sequence[Row], seed: int) -> Row:
    return next(r for r in rows if (r["case"], r["steps"], r["seed"]) == ("gamma 0", 200, seed))


def objectives(pictures: Path) -> Answer | None:
    """What the network predicts, and how its errors weigh."""
    rows = complete(read("objectives"), by_case)
    if len({row["seed"] for row in rows}) < 2:
        return None
    lines = compare(grouped(rows, "frechet_pixels", by_case), next(iter(plan.OBJECTIVES)))
    shares = grouped(rows, "accuracy", by_case)
    told_rows = [
        {**row, "recognised": f"{100 * mean_of(list(shares[line.name].values())).mean:.1f} %"}
        for row, line in zip(table(lines, "Frechet distance of 500 digits"), lines, strict=True)
    ]
    figures.differences({"Frechet distance of 500 digits": lines}, pictures / "objectives.png")
    body = f"""The default experiment under each objective, {rows[0]["steps"]} steps, dpm++ with 20 steps (the flow: Heun with 10, 19 evaluations),
guidance 1.5 for all, 500 digits a run, {seeds_of(rows)}.

{markdown_table(told_rows)}

{told(lines)}

![Differences of the objectives, with 95 % intervals](objectives.png)

{_perfect()} `learned schedule` is importance sampling of the training timesteps: the
expected gradient is exactly that of uniform ones, and no sampler reads what was learned; it is not the paper's mean-variance scheduler."""
    return Answer(
        "Which objective draws the best digits?",
        "(not of the paper: what surrounds the rules)",
        "ranked where the sign is settled",
        told(lines),
        body,
        "",
        "python -m benchmarks.studies objectives",
        "objectives.csv",
    )


def _perfect() -> str:
    """What the distances are to be compared with."""
    equal = json.loads((RESULTS.parent / "equal_count.json").read_text(encoding="utf-8"))
    held, drawn = equal["rows"]
    return f"""**What the distances are to be compared with.** A distance of n samples is above 0 for any n: a perfect sampler of a Gaussian with the
digits' moments scores {drawn["gaussian"]:.2f} with {drawn["samples"]} and {held["gaussian"]:.2f} with {held["samples"]} ([equal_count.json](../../benchmarks/results/equal_count.json)); the {held["samples"]} real digits that were held
out score {equal["held_out"]["frechet_pixels"]:.2f}, no more than the bias of their number. So the rows above stand against {drawn["gaussian"]:.2f}, not against the held-out digits."""
