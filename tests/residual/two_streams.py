"""A rule of two streams, as a package outside would write it: its stream is a pair, its stack has a parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.residual import Place, Stack, Unit, rule


class Pair(Stack):
    """Two copies of z; closed as a weighted mean of them."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def open(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return z, z

    def close(self, stream: tuple[Tensor, Tensor], e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.weight * stream[0] + (1 - self.weight) * stream[1]

    def plain_values(self) -> dict[str, float]:
        return {"weight": 0.5}


@rule("two_streams")
class TwoStreams(Unit):
    """Units read the two copies by turns and write to both: `X_s += B_s * F(X_[index mod 2])`, B = 1 at the start.

    Args:
        weight: of the first copy where the stack is closed.
    """

    single = False
    no_supervision = "nothing is known of how B scales its gain"

    def __init__(self, place: Place, *, weight: float = 0.5) -> None:
        super().__init__(place)
        self.gates = nn.Parameter(torch.ones(2, place.dim_out))
        self.reads = place.index % 2  # for good: a unit that is put in between later does not change it

    @classmethod
    def make_stack(cls, place: Place, *, weight: float = 0.5, **options: Any) -> Stack:
        return Pair(weight)

    def read(self, z: tuple[Tensor, Tensor], e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return z[self.reads]

    def write(self, z: tuple[Tensor, Tensor], f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Any:  # type: ignore[override]
        f = f if g is None else self.spread(g, f) * f
        return tuple(torch.addcmul(copy, self.spread(gate, copy), f) for copy, gate in zip(z, self.gates, strict=True))

    def plain_values(self) -> dict[str, float]:
        return {"gates": 1.0}

    def identity_values(self) -> dict[str, float]:
        return {"gates": 0.0}


class Grown(Stack):
    """The stream is everything that was ever written to it."""

    def open(self, z: Tensor) -> tuple[Tensor, ...]:
        return (z,)

    def close(self, stream: tuple[Tensor, ...], e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return torch.stack(stream).sum(dim=0)

    def add(self, stream: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (stream[0] + x, *stream[1:])


@rule("history")
class History(Unit):
    """`z_{i+1} = z_0 + sum of a_j f_j`: every unit weighs all earlier outputs anew, a = 1 at the start."""

    single = False
    no_supervision = "its units have no gain of their own"
    no_growth = "a unit has one weight for each unit before it"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.weights = nn.Parameter(torch.ones(place.index + 1))

    @classmethod
    def make_stack(cls, place: Place, **options: Any) -> Stack:
        return Grown()

    def read(self, z: tuple[Tensor, ...], e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        weights = self.weights[-len(z) :]  # behind a long skip the history begins anew
        return torch.stack([w * x for w, x in zip(weights, z, strict=True)]).sum(dim=0)

    def write(self, z: tuple[Tensor, ...], f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Any:  # type: ignore[override]
        return (*z, f if g is None else self.spread(g, f) * f)

    def plain_values(self) -> dict[str, float]:
        return {"weights": 1.0}
