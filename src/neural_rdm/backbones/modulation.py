"""Sampling knows its times and conditions beforehand: the modulation of every adaLN block is computed for many of its
steps in one product, so that the weights that make it are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT

BYTES = 2**28  # of the tables of all blocks, at a time


class Table(nn.Module):
    """Stands where a block makes its modulation, and gives that of the step that is being taken.

    Args:
        layer: what it stands for.
    """

    rows: Tensor  # [R, 6 D]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, c: Tensor) -> Tensor:
        return self.rows[: len(c)]  # where guidance does not act the conditional half runs alone, and stands in front


@contextmanager
def modulated(
    net: nn.Module, times: Sequence[float], condition: Mapping[str, Tensor], rows: int
) -> Iterator[Callable[[float], None]]:
    """While open, a network of adaLN blocks (DiT, Latte) takes their modulation from tables. Any other is left alone,
    and so are compiled blocks, which hold on to the layers that they were compiled with.

    Args:
        times: of all the steps to come.
        condition: what every row of a batch is shown, see `diffusion.guidance.Condition`.
        rows: of a batch, R.

    Yields:
        To be told the time before each forward pass.
    """
    blocks: list[Any] = list(net.blocks) if isinstance(net, DiT) else []
    blocks = [
        block
        for block in blocks
        if isinstance(block.adaLN_modulation[-1], nn.Linear) and block._compiled_call_impl is None
    ]
    if not blocks:
        yield lambda time: None
        return
    assert isinstance(net, DiT)
    device = net.pos_embed.device
    tables = [Table(block.adaLN_modulation) for block in blocks]
    at_once = max(1, BYTES // (4 * rows * 6 * net.hidden_size * len(blocks)))
    held: dict[float, list[Tensor]] = {}

    def conditioned(time: float) -> Tensor:
        e = net.t_embedder(torch.tensor([time], device=device)).expand(rows, -1)
        return net.conditioned(e, condition.get("y"), condition.get("context"))

    @torch.no_grad()
    def tell(time: float) -> None:
        if time not in held:
            ahead = list(dict.fromkeys(times[times.index(time) :]))[:at_once]
            c = torch.cat([conditioned(each) for each in ahead])
            made = [table.layer(c).split(rows) for table in tables]
            held.clear()
            held.update({each: [of[place] for of in made] for place, each in enumerate(ahead)})
        for table, rows_now in zip(tables, held[time], strict=True):
            table.rows = rows_now

    for block, table in zip(blocks, tables, strict=True):
        block.adaLN_modulation = table
    try:
        yield tell
    finally:
        for block, table in zip(blocks, tables, strict=True):
            block.adaLN_modulation = table.layer
