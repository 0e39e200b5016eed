"""AdamW for weights that are kept in bfloat16, and for moments that are kept in the memory of the host.

A bfloat16 weight has 8 bits of mantissa: an update below 1/512 of it is lost when the sum is rounded to the nearest.
Here the sum is formed in float32 and rounded at random, up as often as it lies near the upper neighbour, so that its
mean is the sum itself (Gupta et al. 2015, arXiv 1502.02551; Zamirai et al. 2020, arXiv 2010.06192) and no copy of the
weights in float32 is needed. The moments are float32. What is drawn depends on the run's seed, the number of the
parameter, its step and the place in the whole tensor alone: it is the same for any sharding and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from neural_rdm.core.seeding import keys
from neural_rdm.core.weights import local

MOMENTS = ("exp_avg", "exp_avg_sq")


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of an optimizer's step returns, with the gradients that it makes; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class AdamW(torch.optim.AdamW):
    """torch's fused AdamW, parameter by parameter, on the parts that this rank holds.

    Args:
        groups: parameter groups.
        seed: of the run, for rounding.
        offload: keep the moments in the memory of the host; each goes to the device for the moment of its update, so
            that numbers are those of an optimizer on the device, and 16 bytes a parameter cross the bus in a step.
        options: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], seed: int = 0, offload: bool = False, **options: Any) -> None:
        super().__init__(groups, fused=True, **options)
        self.seed, self.offload = seed, offload

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; one that `found_inf` marks changes nothing."""
        loss = loss_of(closure)
        numbered = [(group, p) for group in self.param_groups for p in group["params"]]
        for number, (group, parameter) in enumerate(numbered):
            if parameter.grad is not None:
                self._update(number, parameter, group)
        return loss

    def _update(self, number: int, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        assert parameter.grad is not None
        weight, grad = local(parameter), local(parameter.grad)
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        narrow = weight.dtype != torch.float32
        work = weight.float() if narrow else weight
        moments = [local(state[name]).to(weight.device) for name in MOMENTS]
        adamw(
            [work], [grad.float()], [moments[0]], [moments[1]], [], [state["step"]],
            fused=True, amsgrad=False, maximize=False, lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1],
            weight_decay=group["weight_decay"], eps=group["eps"],
            grad_scale=getattr(self, "grad_scale", None), found_inf=getattr(self, "found_inf", None),
        )  # fmt: skip
        if narrow:
            key = int(keys(self.seed, "rounding", [number])[0] >> 33)
            weight.copy_(rounded(work, noise(parameter, key, state["step"])))
        if self.offload:
            for name, moment in zip(MOMENTS, moments, strict=True):
                state[name] = _on_host(state[name], moment)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state as it is: torch would round moments to the precision of their weights."""
        super().load_state_dict(state_dict)
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        mine = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(saved, mine, strict=True):
            for name in MOMENTS:
                if number in state_dict["state"]:
                    moment = state_dict["state"][number][name].float()
                    self.state[parameter][name] = moment.clone() if self.offload else moment.to(parameter.device)


def _on_host(old: Any, moment: Tensor) -> Tensor:
    """A moment in pinned memory of the host, in the form (sharded or not) that it had."""
    held = local(old)
    if held.device.type != "cpu":
        held = torch.empty_like(moment, device="cpu", pin_memory=moment.is_cuda)
    held.copy_(moment)
    if not hasattr(old, "to_local"):
        return held
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        held, old.device_mesh, old.placements, run_check=False, shape=old.shape, stride=old.stride()
    )


# -- rounding


def rounded(x: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16, up where the 16 bits that are cut off and `bits` (int32, uniform in 0 ... 65535, of its
    shape) add up to a carry. Numbers that bfloat16 has stay as they are, and so does what is not finite.
    """
    moved = (x.view(torch.int32) + bits).bitwise_and_(-65536).view(torch.float32)
    return torch.where(x.isfinite(), moved, x).bfloat16()


def noise(tensor: Any, key: int, step: Tensor) -> Tensor:
    """16 random bits (int32) for each entry of this rank's part of a tensor.

    Args:
        key: what the draw is for, below 2**31.
        step: [] on the device, so that nobody waits for its value.
    """
    mixed = _hash(_hash(step.to(torch.int32)) + key)
    return _hash(_hash(_places(tensor)) ^ mixed).bitwise_and_(65535)


def _hash(x: Tensor) -> Tensor:
    """Every bit of an int32 mixed into all others (C. Wellons' lowbias32)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
        x = (x ^ _down(x, shift)) * factor
    return x ^ _down(x, 16)


def _down(x: Tensor, by: int) -> Tensor:
    """The bits of an int32 moved down, zeros coming in."""
    return (x >> by) & ((1 << (32 - by)) - 1)


def _places(tensor: Any) -> Tensor:
    """The place of each entry of this rank's part in the whole tensor, row by row: int32 of the part's shape."""
    part, starts = local(tensor), [0] * tensor.ndim
    if hasattr(tensor, "to_local"):
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as found

        starts = list(found(tensor.shape, tensor.device_mesh, tensor.placements)[1])
    places, size = torch.zeros((), dtype=torch.int32, device=part.device), 1
    for axis in reversed(range(tensor.ndim)):
        along = torch.arange(starts[axis], starts[axis] + part.shape[axis], dtype=torch.int32, device=part.device)
        places = places + (along * size).view(-1, *(1,) * (tensor.ndim - 1 - axis))
        size *= tensor.shape[axis]
    return places.expand(part.shape)
