"""Options of a network beside any residual rule, each off by default: the first attention's values in all others, long
skips, scaled norms, stochastic depth.

They change what a branch reads or writes, or join blocks; the rule itself stays as it is. `docs/rules.md` says where
each exists and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from neural_rdm.core import seeding
from neural_rdm.core.arguments import Fraction, Positive
from neural_rdm.residual import Residual, Stack, Stream, Unit

#: the parameters of the options, by a part of their name; all are zero at the start
PARAMETERS = {"value_lambda": "value_residual", "skip_linear": "long_skip"}
#: why blocks cannot be put into a trained network
NO_GROWTH = {
    "value_residual": "value_residual: a copy of its first block would have no weight for the first block's values",
    "long_skip": "long_skip: its blocks are joined in pairs, and new ones would be joined to others",
    "lns": "lns: what scales a norm is the number of its block, which new blocks in front of it would change",
}
#: a long skip on its way: the stack that closes and opens the stream, and what is joined to it, [B, N, D]
Skip = tuple[Stack, Tensor]


@dataclass(frozen=True)
class Options:
    """What a network does beside its residual rule.

    Args:
        value_residual: every self-attention but the first of its kind reads `lam V_1 + (1 - lam) V` for its values V,
            V_1 those of the first (Zhou et al. 2024, *Value Residual Learning*); lam is learned and starts at 0, the
            plain network. Latte has two kinds, over places and over frames.
        long_skip: the k of ScaleLong (Huang et al. 2023; 0.5 in its code); None for no long skips. Block D-1-j reads
            `W [x; k^j s_j]`, s_j the stream behind block j < D // 2; W is learned and starts as [I, 0], the plain
            network.
        lns: LayerNorm scaling (Sun et al. 2025, *The Curse of Depth*): what the norms in front of the branches of block
            l = 1, 2, ... give is divided by sqrt(l).
        stochastic_depth: how often the last unit's branch is left out of a sample's training step (Huang et al. 2016);
            that of unit i of U is left out i / (U - 1) times as often, and what is left is scaled up.
    """

    value_residual: bool = False
    long_skip: Positive | None = None
    lns: bool = False
    stochastic_depth: Fraction = 0.0

    def check(self, residual: Residual) -> None:
        """Refuse long skips under a rule whose stream cannot be closed and opened again.

        Raises:
            ValueError: it cannot, and why.
        """
        if self.long_skip is not None and (reason := residual.unit_class.no_reopening):
            raise ValueError(f"long_skip={self.long_skip} with residual={residual.rule!r}: {reason}")

    @property
    def changes(self) -> str | None:
        """The first option that makes the network another than the published one; None for none. (Stochastic depth does
        not: in evaluation it is off.)
        """
        return next((name for name in NO_GROWTH if getattr(self, name)), None)

    def norm_scale(self, number: int) -> nn.Module:
        """What stands behind the norms of a block, counted from 0."""
        return DepthScale(number) if self.lns else nn.Identity()


def options_of(net: nn.Module) -> Options:
    """The options of a network; those of one that has none are all off."""
    found: Options = getattr(net, "options", Options())
    return found


def option_of(key: str) -> str | None:
    """The option that a parameter belongs to, by its name in a state dict; None for any other parameter."""
    return next((PARAMETERS[part] for part in key.split(".") if part in PARAMETERS), None)


def added(net: nn.Module) -> set[str]:
    """The names of the parameters that a network has for its options."""
    options = options_of(net)
    return {name for name, _ in net.named_parameters() if getattr(options, option_of(name) or "", None)}


# -- LayerNorm scaling


class DepthScale(nn.Module):
    """`x / sqrt(l)` behind the norms of block l = number + 1. It is the block that counts, as in the authors' code
    (lmsdss/LayerNorm-Scaling): both of its norms are scaled alike.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.factor = 1 / math.sqrt(number + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:.4g}"


def without_scales(net: nn.Module) -> None:
    """Take LayerNorm scaling out of a network, in place: to see what it changes."""
    for module in net.modules():
        if isinstance(module, DepthScale):
            module.factor = 1.0


# -- long skips


class LongSkip(nn.Linear):
    """`W [x; s]` of two tensors [B, N, D]. What is stored is W - [I, 0]: its start, zero, is the plain network in every
    precision, and weight decay pulls towards that. It draws nothing at random, so that a seed gives the same body.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(2 * dim, dim)

    def reset_parameters(self) -> None:
        """W = [I, 0]."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        return x + super().forward(torch.cat([x, skip], dim=-1))


class Skips:
    """The long skips of one forward pass: what the first blocks hand to the last.

    Args:
        stack: closes the stream, so that a skip is one tensor whatever the rule keeps.
        pairs: how many blocks hand on a skip.
        k: ScaleLong's constant: the skip of block j is multiplied by k^j.
    """

    def __init__(self, stack: Stack, pairs: int, k: float = 1.0) -> None:
        self.stack, self.pairs, self.k = stack, pairs, k
        self.kept: list[Tensor] = []
        self.seen = 0

    def keep(self, stream: Stream) -> None:
        """Be told of the stream behind a block."""
        if self.seen < self.pairs:
            factor, z = self.k**self.seen, self.stack.close(stream)
            self.kept.append(z if factor == 1 else factor * z)
        self.seen += 1

    def take(self, block: Any) -> Skip | None:
        """What a block joins to its stream: the last skip that is left; None for a block that joins none."""
        return None if block.skip_linear is None else (self.stack, self.kept.pop())


def joined(stream: Stream, skip: Skip, mix: Callable[[Tensor, Tensor], Tensor]) -> Stream:
    """The stream, closed, mixed with a long skip and opened again."""
    stack, other = skip
    return stack.open(mix(stack.close(stream), other))


# -- stochastic depth

_KEYS: ContextVar[tuple[int, ArrayLike | Tensor] | None] = ContextVar("keys of stochastic depth", default=None)


@contextmanager
def keyed(seed: int, positions: ArrayLike | Tensor) -> Iterator[None]:
    """While it is open, stochastic depth is drawn by (seed, position of the sample in the run, unit), so that a draw
    depends neither on ranks and micro-steps nor on where a run was resumed. Otherwise torch's generator draws.

    Args:
        positions: [B], see `core.seeding`.
    """
    token = _KEYS.set((seed, positions))
    try:
        yield
    finally:
        _KEYS.reset(token)


def draws(net: nn.Module, blocks: Iterable[nn.Module], rows: int, device: torch.device) -> list[Tensor | None]:
    """For each block what the output of its units' branches is multiplied by, [rows, units of the block]: 0 where a
    branch is left out, else 1 / (1 - rate); None where there is nothing to draw.

    They are drawn here for the whole network and handed to the blocks, so that a block which is computed again in the
    backward pass (activation checkpointing) is given the same ones.

    Args:
        rows: samples of the batch; the frames of a clip are one.

    Raises:
        ValueError: the batch is not that whose positions `keyed` was told.
    """
    rate = options_of(net).stochastic_depth
    if rate == 0 or not net.training:
        return [None for _ in blocks]
    sizes = [sum(isinstance(module, Unit) for module in block.modules()) for block in blocks]
    count, key = sum(sizes), _KEYS.get()
    if key is None:
        drawn = torch.rand(rows, count, device=device)
    else:
        columns = [seeding.uniform(key[0], f"stochastic depth {unit}", key[1]) for unit in range(count)]
        drawn = torch.stack([torch.from_numpy(column) for column in columns], dim=1).to(device, non_blocking=True)
        if len(drawn) != rows:
            raise ValueError(f"stochastic_depth was told the positions of {len(drawn)} samples, and given {rows}")
    rates = torch.linspace(0, rate, count, dtype=drawn.dtype, device=device)
    kept = (drawn >= rates) / (1 - rates).clamp(min=1e-12)
    return list(kept.float().split(sizes, dim=1))


def thinned(f: Tensor, drawn: Tensor | None, unit: int) -> Tensor:
    """A branch's output [R, N, D] times what was drawn for its unit, the column `unit` of [R, units]."""
    return f if drawn is None else f * drawn[:, unit, None, None].to(f.dtype)
