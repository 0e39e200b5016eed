"""Devices that compute one batch together (tensor and context parallelism), and what they hand to one another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Group:
    """One device of a group, which all of them ask for the same in the same order.

    Args:
        processes: torch's group of their processes.

    Attributes:
        size: devices of the group.
        rank: which of them this is.
    """

    size: int
    rank: int

    def __init__(self, processes: Any) -> None:
        self._processes, self.size, self.rank = processes, processes.size(), processes.rank()

    def sum(self, x: Tensor) -> Tensor:
        """The sum of what all devices have, of x's shape."""
        total = x.contiguous().clone()
        self._call(torch.distributed.all_reduce, total)
        return total

    def join(self, x: Tensor, dim: int) -> Tensor:
        """The parts of all devices, one behind the other along the axis `dim`."""
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        self._call(torch.distributed.all_gather, parts, x.contiguous())
        return torch.cat(parts, dim=dim)

    def exchange(self, x: Tensor, split: int, dim: int) -> Tensor:
        """Each device's part of x along the axis `split` goes to that device; what comes is joined along `dim`."""
        sent = torch.stack(x.chunk(self.size, dim=split))
        came = torch.empty_like(sent)
        self._call(torch.distributed.all_to_all_single, came, sent)
        return torch.cat(came.unbind(), dim=dim)

    def _call(self, collective: Callable[..., Any], *tensors: Any) -> None:
        collective(*tensors, group=self._processes)


class Imagined(Group):
    """The first device of a group that does not exist: shapes and memory are those of a real one, values are not. With
    it, memory and traffic of a step are counted.

    Args:
        size: devices of the group.

    Attributes:
        sent: bytes that the device has sent until now, each collective in a ring: (n - 1) / n of what is put together
            or exchanged, twice as much for a sum (see `traffic`).
    """

    def __init__(self, size: int) -> None:
        self.size, self.rank, self.sent = size, 0, 0.0

    def _call(self, collective: Callable[..., Any], *tensors: Any) -> None:
        x, times = tensors[-1], {torch.distributed.all_reduce: 2, torch.distributed.all_gather: self.size}
        self.sent += times.get(collective, 1) * (self.size - 1) / self.size * x.numel() * x.element_size()


class Joined(torch.autograd.Function):
    """The parts of all devices along an axis, with which all of them go on alike; the gradient of this device's part,
    `times` as much of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int, times: int = 1) -> Tensor:
        ctx.part, ctx.times = (dim, group.rank * x.shape[dim], x.shape[dim]), times
        return group.join(x, dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The part of this device."""
        part = grad.narrow(*ctx.part)
        return part if ctx.times == 1 else ctx.times * part, None, None, None
