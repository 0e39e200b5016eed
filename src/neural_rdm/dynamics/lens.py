"""Depth as time, shown: what would the network predict if it stopped at unit i?

The units behind i are left out (their branches do not run), so the stream of unit i reaches the final layer as it is.
That works for every network: long skips, resampling and the reshapes of clips stay where they are. Leaving out one unit
alone gives what it is worth. The first-order importance of `dynamics.statistics` costs one backward pass for all units
together, and is a poor stand-in for it in a trained network: there <s_{i+1}, w_i> = alpha . dL/dalpha + beta . dL/dbeta
is near 0 by itself, because the gates are where the loss is least.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from neural_rdm.residual import units


@contextmanager
def left_out(model: nn.Module, indices: Collection[int]) -> Iterator[None]:
    """Leave out some units of `model` (by their place in run order) while the context is open: the stream passes them,
    through its shortcut where there is one, as if their branches did not exist.
    """
    found = [unit for i, (_, unit) in enumerate(units(model)) if i in indices]
    try:
        for unit in found:
            unit.off = True
        yield
    finally:
        for unit in found:
            unit.off = False


@torch.no_grad()
def stopped_early(model: nn.Module, run: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Yield `run()` [any shape] with the first 0, 1, ..., N of the N units: N + 1 results, the last that of the whole
    network.

    Args:
        run: runs the network, on the same inputs every time.
    """
    count = len(list(units(model)))
    for kept in range(count + 1):
        with left_out(model, range(kept, count)):
            result = run()
        yield result


@torch.no_grad()
def each_left_out(model: nn.Module, run: Callable[[], Tensor]) -> Iterator[Tensor]:
    """Yield `run()` [any shape] without unit 0, without unit 1, ...: N results."""
    for index in range(len(list(units(model)))):
        with left_out(model, (index,)):
            result = run()
        yield result
