"""What the arguments of a process, an objective and a sampler must hold together. No torch (see `core.arguments`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neural_rdm.core import noise
from neural_rdm.core.arguments import Problem


def betas_ascend(schedule: str, beta_start: float | None, beta_end: float | None) -> Problem | None:
    """DDPM: the cosine schedule has no betas to choose; those of the others grow within (0, 1)."""
    if schedule == "cosine":
        if beta_start is None and beta_end is None:
            return None
        nulls = "{at}beta_start=null {at}beta_end=null"
        return Problem("schedule", f"cosine has no betas to choose; pass {nulls}, or diffusion=cosine")
    own = noise.ENDS[schedule]
    first, last = own[0] if beta_start is None else beta_start, own[1] if beta_end is None else beta_end
    if 0 < first <= last < 1:
        return None
    return Problem("beta_end", f"{last} and {{at}}beta_start={first} must be 0 < beta_start <= beta_end < 1")


def enough_timesteps(process: Any, learned_times: Any) -> Problem | None:
    """DDPMObjective: no piece of the learned distribution is narrower than a timestep; given are objects or nodes."""
    bins, total = getattr(learned_times, "bins", 0), getattr(process, "num_timesteps", None)
    if total is None or bins <= total:
        return None
    said = f"but {{at}}process.num_timesteps={total}; pass {{at}}learned_times.bins={total} or fewer"
    return Problem("learned_times.bins", said, bins)


def interval_ascends(interval: Sequence[float] | None) -> Problem | None:
    """Sampler: guidance from one timestep to a later one."""
    if interval is None or (len(interval) == 2 and interval[0] < interval[1]):
        return None
    return Problem("interval", f"{list(interval)} is not two timesteps [low, high], such as [200, 700]")


def of_ddim(name: str, eta: float, steps_offset: int) -> Problem | None:
    """Sampler: what DDIM alone has."""
    key, value = ("eta", eta) if eta else ("steps_offset", steps_offset)
    if name == "ddim" or not value:
        return None
    return Problem(key, f"belongs to ddim; pass sampler=ddim, or {{at}}{key}=0 with name={name}", value)
