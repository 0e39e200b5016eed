"""Classifier-free guidance (Ho and Salimans 2022), on all the channels or as the official DiT code does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from neural_rdm.core.arguments import Count, checked
from neural_rdm.diffusion import constraints

Predict = Callable[[Tensor, Tensor], Tensor]  # (x, t) -> network output
#: what a network is shown beside x and t, by the names of its arguments, one row a sample: labels `y` [B], a text's
#: `context` [B, L, E] and `context_mask` [B, L]
Condition = Mapping[str, Tensor]


@checked(constraints.interval_ascends)
@dataclass(frozen=True)
class Guidance:
    """How strongly, on which channels and when to guide.

    Args:
        cfg_scale: s in eps = eps_uncond + s (eps_cond - eps_uncond); 1 is no guidance.
        channels: "all", or how many of the first channels are guided. The official DiT code guides 3 of 4; scale 1.5
            there is about 1.375 on all four.
        interval: (lo, hi): guide only at timesteps lo <= t <= hi (Kynkaanniemi et al. 2024), so that a flow, whose
            steps begin at T, can be guided up to T; None is always.

    Raises:
        ValueError: channels below 1 or another word than "all", or an interval that is empty.
    """

    cfg_scale: float = 1.0
    channels: Count | Literal["all"] = "all"
    interval: tuple[float, float] | None = None


def guided_model(
    model: Callable[..., Tensor], guidance: Guidance, condition: Condition | None = None, null: Condition | None = None
) -> Predict:
    """The network with its condition and guidance bound: (x, t) -> output, all that a sampler needs.

    Where guidance acts, conditional and unconditional halves run as one batch of 2B; elsewhere only the conditional B
    runs. Unguided channels and the learned variance come from the conditional half.

    Args:
        model: `model(x, t, **condition)` for x [B, C, H, W] or [B, F, C, H, W] and t int64 [B]; its output has C or
            2C channels at dimension -3.
        condition: see `Condition`; None or empty for an unconditional network.
        null: what stands for "no condition", under the same names, one row for all samples; None where the network was
            not trained without its condition.

    Returns:
        A function of x and t [B]. Leave t on the CPU, as the samplers do: whether it lies in the interval is then known
        without waiting for the device. It gives outputs in x's dtype.

    Raises:
        ValueError: guidance without a condition or without a null one, or (when called) on more channels than x has.
    """
    condition = condition or {}
    if guidance.cfg_scale != 1 and not (condition and null):
        missing = "a null condition (train with class_dropout_prob > 0)" if condition else "labels or a text"
        raise ValueError(f"cfg_scale={guidance.cfg_scale} needs {missing}; use cfg_scale=1 for this network")
    both = halves(condition, null) if null else {}

    def run(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return model(x, t.to(x.device, non_blocking=True), **condition).to(x.dtype)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        inside = _inside(t, guidance)
        if not inside.any():
            return run(x, t, condition)
        cond, uncond = run(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        output = _combine(cond, uncond, guidance, x.shape[-3])
        if inside.all():
            return output
        return torch.where(inside.to(x.device).view(-1, *[1] * (x.dim() - 1)), output, cond)

    return predict


def halves(condition: Condition, null: Condition) -> Condition:
    """A batch's condition with no condition behind it, as often."""
    return {k: torch.cat([v, null[k].to(v).expand_as(v)]) for k, v in condition.items()}


def _inside(t: Tensor, guidance: Guidance) -> Tensor:
    """Whether guidance acts at each t: bool [B]."""
    if guidance.cfg_scale == 1:
        return torch.zeros(len(t), dtype=torch.bool)
    if guidance.interval is None:
        return torch.ones(len(t), dtype=torch.bool)
    return (t >= guidance.interval[0]) & (t <= guidance.interval[1])


def _combine(cond: Tensor, uncond: Tensor, guidance: Guidance, channels: int) -> Tensor:
    """Guide the first channels of epsilon; the rest of the output is the conditional one."""
    count = channels if guidance.channels == "all" else int(guidance.channels)
    if count > channels:
        raise ValueError(f"guidance channels={count}, but the samples have {channels}")
    base, target = uncond.narrow(-3, 0, count), cond.narrow(-3, 0, count)
    guided = base + guidance.cfg_scale * (target - base)
    return torch.cat([guided, cond.narrow(-3, count, cond.shape[-3] - count)], dim=-3)
