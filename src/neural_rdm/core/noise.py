"""DDPM's tables of noise and the timesteps that samplers visit, in plain Python: the preflight needs both before torch
is loaded, and whatever it lets through must be what the samplers do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from operator import mul

from neural_rdm.core.errors import ArgumentError

#: the samplers that step through a DDPM, and those that follow a flow
DDPM_SAMPLERS = ("ddim", "dpm++", "ddpm")
FLOW_SAMPLERS = ("euler", "heun")
#: the first and the last beta of a schedule of 1000 steps where no others are given: DDPM's, LDM's; `cosine` has none
ENDS = {"linear": (1e-4, 2e-2), "scaled_linear": (0.0015, 0.0195)}
#: a schedule is linear in this power of beta
POWERS = {"linear": 1.0, "scaled_linear": 0.5}
#: alpha_bar where log(signal / noise) is -5.1. Below it x_0 read from a predicted epsilon, (x_t - noise * eps) /
#: signal, is beyond all bounds; 1000 steps of the linear schedules end above it, those of the cosine do not. The value
#: is diffusers' own advice for DPM-Solver (`lambda_min_clipped`). A sampler that starts there from pure noise misses a
#: signal of 0.006.
LEAST_ALPHA_BAR = 1 / (1 + math.exp(2 * 5.1))
#: alpha_bar of the last timestep above which a process never reaches the noise that samplers start from (Stable
#: Diffusion's ends at 0.0047)
MOST_LEFT = 0.01


def linear_betas(count: int, first: float, last: float, power: float) -> list[float]:
    """`count` betas evenly spaced in beta^power, both ends included; not rescaled for counts other than 1000."""
    start, stop = first**power, last**power
    return [(start + (stop - start) * i / max(count - 1, 1)) ** (1 / power) for i in range(count)]


def cosine_betas(count: int, s: float = 0.008) -> list[float]:
    """1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), at most 0.999 (Improved DDPM, eq. 17)."""
    bars = [math.cos(0.5 * math.pi * (i / count + s) / (1 + s)) ** 2 for i in range(count + 1)]
    return [min(1 - after / before, 0.999) for before, after in pairwise(bars)]


def alpha_bars(schedule: str, count: int, first: float | None = None, last: float | None = None) -> list[float]:
    """alpha_bar at each of `count` timesteps of a schedule, ascending in noise; None for the schedule's own ends."""
    if schedule == "cosine":
        betas = cosine_betas(count)
    else:
        own = ENDS[schedule]
        first, last = own[0] if first is None else first, own[1] if last is None else last
        betas = linear_betas(count, first, last, POWERS[schedule])
    return list(accumulate((1 - beta for beta in betas), mul))


def usable(bars: Iterable[float]) -> int:
    """How many timesteps, from 0 on, a sampler may visit: those above `LEAST_ALPHA_BAR`."""
    return sum(bar >= LEAST_ALPHA_BAR for bar in bars)


def even(total: int, steps: int) -> list[int]:
    """`steps` timesteps spread evenly from 0 to total - 1, ascending, rounded as the official DiT code does.

    Raises:
        ValueError: steps outside [1, total].
    """
    if not 1 <= steps <= total:
        raise ValueError(f"cannot take {steps} steps of a process with {total} timesteps")
    stride = (total - 1) / max(steps - 1, 1)
    return [round(i * stride) for i in range(steps)]


def visited(name: str, steps: int, bars: Sequence[float], offset: int = 0) -> list[int]:
    """The timesteps at which a DDPM's sampler calls the network, descending, all distinct and usable.

    `ddpm` and `dpm++` spread them over the usable ones; `ddim` takes every T // steps, plus `offset`, and leaves out
    those that are not usable.

    Args:
        name: `ddim`, `ddpm` or `dpm++`.
        bars: alpha_bar at each timestep.

    Raises:
        ArgumentError: more steps than there are.
    """
    total, last = len(bars), usable(bars)
    # dpm++ ends its last step at 0, so that timestep 0 is one that it does not call the network at
    most = {"ddim": total - offset, "ddpm": last, "dpm++": last - 1}[name]
    if steps > most:
        problem = f"steps={steps} is too many: {name} takes at most {most} of these {total} timesteps"
        raise ArgumentError(problem, key="steps")
    if name == "ddim":
        times = [i * (total // steps) + offset for i in reversed(range(steps))]
        return [t for t in times if t < last]
    return even(last, steps)[::-1] if name == "ddpm" else even(last, steps + 1)[:0:-1]


def flow_times(steps: int, total: float) -> list[float]:
    """The times at which the steps of a flow begin: evenly from T down to T / steps."""
    return [total * (steps - i) / steps for i in range(steps)]


def check_interval(interval: Sequence[float], times: Sequence[float]) -> None:
    """Guidance that never acts is a mistake.

    Raises:
        ArgumentError: none of the times at which the network is called lies in [low, high].
    """
    if not any(interval[0] <= t <= interval[1] for t in times):
        problem = f"interval={interval} holds none of the timesteps that are visited, {min(times):g} to {max(times):g}"
        raise ArgumentError(problem, key="interval")
