"""What the gates of a trained network have become, beside the schedule (Eq. 6)."""
# ruff: noqa: E501 - lines of Markdown, long before their numbers are filled in

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.studies import figures, needs, plan
from benchmarks.studies.answers.answer import Answer, across, complete, mean_of, rank, seeds_of
from benchmarks.studies.compare import compare, grouped, signed, told
from benchmarks.studies.measures import TIMES
from benchmarks.studies.rows import read
from benchmarks.training import Row
from neural_rdm.diffusion.schedules import Linear
from neural_rdm.reports.tables import markdown_table

LINEAR, OTHER = "time-conditioned, beta * z", ", cosine schedule"


def gates(pictures: Path) -> Answer | None:
    """The gates of a trained network beside f and g^2."""
    rows = complete(read("gates"), lambda row: row["gates"])
    if len({row["seed"] for row in rows}) < 2:
        return None
    units = len(rows[0]["alpha"])
    depth_time = np.linspace(1.0, 0.0, units)  # the first unit at the noise, the last at the picture
    schedule = Linear()
    t = torch.from_numpy(depth_time)
    g2, drift = schedule.g2(t).tolist(), (-schedule.f(t)).tolist()  # both times -dt, which is above 0
    over_depth, over_time, drawn = [], [], {}
    for name in plan.GATES:
        mine = [r for r in rows if r["gates"] == name]
        row: dict[str, str] = {"gates": name}
        effective = [_over_times(r, "effective") for r in mine]
        if not name.startswith("none"):
            alphas, betas = [r["alpha"] for r in mine], [r["beta"] for r in mine]
            row["alpha with g^2"] = f"{mean_of([ranks(each, g2) for each in alphas]):+}"
            row["beta with f dt"] = f"{mean_of([ranks(each, drift) for each in betas]):+}"
            row["range of alpha"] = f"{min(map(min, alphas)):.3g} to {max(map(max, alphas)):.3g}"
            row["between seeds, alpha, beta"] = f"{alike(alphas):+.2f}, {alike(betas):+.2f}"
            if under := [r for r in rows if r["gates"] == name + OTHER]:
                row["between schedules, alpha, beta"] = ", ".join(
                    f"{alike([r[gate] for r in mine], [r[gate] for r in under]):+.2f}" for gate in ("alpha", "beta")
                )
            drawn[name] = alphas if not name.startswith("time-conditioned, beta") else betas
        row["alpha * g with g^2"] = f"{mean_of([ranks(e.mean(0), g2) for e in effective]):+}"
        over_depth.append(row)
        along = [float(np.mean([rank(e[:, i], schedule_at(schedule)) for i in range(units)])) for e in effective]
        own = [_over_times(r, "own") for r in mine]
        moves = [float(np.mean(o.max(0) - o.min(0))) for o in own]
        alone = [float(np.mean([rank(o[:, i], schedule_at(schedule)) for i in range(units)])) for o in own]
        over_time.append(
            {
                "gates": name,
                "alpha * g over t with g^2(t)": f"{mean_of(along):+}",
                "alpha over t with g^2(t)": f"{mean_of(alone):+}" if max(moves) > 0 else "constant",
                "how far alpha moves over t": f"{mean_of(moves)}",
            }
        )
    figures.gates(drawn, g2, pictures / "gates.png")
    same = [r for r in rows if not r["gates"].endswith(OTHER)]  # another schedule has another loss
    quality = compare(grouped(same, "frechet_pixels", lambda r: r["gates"]), "none (resnet)")
    loss = compare(grouped(same, "val_loss", lambda r: r["gates"]), "none (resnet)")
    static = [ranks(r["alpha"], g2) for r in rows if r["gates"] == "static"]
    word = signed(static, "with it", "against it")
    seeds = alike([r["alpha"] for r in rows if r["gates"] == "static"])
    linear = [ranks(r["beta"], drift) for r in rows if r["gates"] == LINEAR]
    seeds_agree = alike([r["beta"] for r in rows if r["gates"] == LINEAR])
    schedules_agree = alike(*([r["beta"] for r in rows if r["gates"] == name] for name in (LINEAR, LINEAR + OTHER)))
    short = (
        f"The static alphas of `gated` over depth have a rank correlation of {mean_of(static):+} with g^2 of the schedule "
        f"({word if word != 'not settled' else 'its sign is not settled'}); those of two seeds correlate by {seeds:+.2f} with each other. "
        f"The beta of the drift form (`beta * z`) has {mean_of(linear):+} with f dt, but every schedule's f dt falls from the first unit to the "
        f"last, so that any falling profile would: under another schedule the profile correlates by {schedules_agree:+.2f} with this one, where two "
        f"seeds of one schedule have {seeds_agree:+.2f}."
    )
    body = f"""A DiT of width 32 with {units} units, {rows[0]["steps"]} steps of the linear schedule, {seeds_of(rows)}. Read as an ODE, unit i stands at
time 1 - i / (N - 1): the first at the noise, the last at the picture; Eq. 6 would have alpha follow -1/2 g^2 dt (dt < 0 when
denoising, so: rise and fall with g^2) and beta follow f dt (from above 0 down to 0). Only the shape can be compared, so the numbers are Spearman's rank
correlations within attentions and within MLPs, means over seeds; +1 is the schedule's order. In DiT the block's own adaLN gate g multiplies the branch too:
`alpha * g` is all that does, and the plain network has it as well, which is the control.

{markdown_table(over_depth)}

*between seeds*: the mean correlation (Pearson) of the profiles of two seeds, alpha and beta: what all networks share, whatever the
schedule. *between schedules*: the same between this schedule and the cosine one, different seeds: if the gates took the shape of
their schedule, it would be lower.

Over the timestep that a network is given (rather than over depth), the mean over units:

{markdown_table(over_time)}

{short}

**What other gates do to the result.** Loss: {told(loss)} Distance: {told(quality)}

![Static alphas over depth (beta where it multiplies z), a line a seed, attentions and MLPs apart; and what the schedule would have](gates.png)"""
    verdict = {
        "with it": "the order over depth agrees",
        "against it": "does not hold: the order over depth is the other way",
    }
    return Answer(
        "Do gates learn the schedule? (Sec. 2.2, Eq. 6)",
        "gates learn the mean and variance of the denoising ODE (Sec. 2.2)",
        verdict.get(word, "not seen"),
        f"Static alphas over depth: a rank correlation of {mean_of(static):+} with g^2. The drift form's beta follows f dt ({mean_of(linear):+}), and its "
        f"profile is the same under another schedule ({schedules_agree:+.2f}).",
        body,
        f"the same reading of a trained gated network, `exp=paper/table2_sky`: {needs.told('gates')}",
        "python -m benchmarks.studies gates",
        "gates.csv",
    )


def ranks(values: Any, other: Any) -> float:
    """The rank correlation within the attentions and within the MLPs, which take turns, the mean of both: the two kinds
    have gates of different sizes, which is nothing of depth.
    """
    return float(np.mean([rank(values[kind::2], other[kind::2]) for kind in (0, 1)]))


def alike(one: Any, other: Any = None) -> float:
    """The mean correlation of two different seeds, within each kind."""
    other = one if other is None else other
    return float(np.mean([across([a[kind::2] for a in one], [b[kind::2] for b in other]) for kind in (0, 1)]))


def schedule_at(schedule: Linear) -> list[float]:
    """g^2 at the timesteps at which gates are read."""
    return schedule.g2(torch.tensor(TIMES) / 999).tolist()


def _over_times(row: Row, key: str) -> Any:
    return np.array([row[f"{key}_{t}"] for t in TIMES])
