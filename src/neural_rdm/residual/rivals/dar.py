"""`dar`: `u_l = sum_i softmax_i(q_l . v_i / (rms(v_i) sqrt(d))) v_i`: attention over depth instead of a running sum.

v_0 = z0, v_{i+1} = f_i, and `q_l = w_l + W e(t) + b`, the part of the timestep shared by all units. The stack is closed
by the same formula with a router of its own. With `chunk` S > 1 only the last output of every finished chunk of S units
stays; the units of a chunk see its own outputs so far, and the last router all of the last chunk. Source:
Depth-Attention Residuals, arXiv 2605.20708, from reading notes [N]: there is no official code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count
from neural_rdm.residual.rivals.attention import Sources, attend
from neural_rdm.residual.rivals.delta import BEGINS_ANEW, OLD_SOURCES
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Start, Unit, rule


class History(Sources):
    """(z0, outputs ...): nothing is ever summed. It holds the last router, and what the timestep adds to every query.

    Args:
        place: width, number of units and width of the timestep embedding.
    """

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(place.dim))
        self.timed = place.time_dim is not None
        if place.time_dim is not None:
            self.time_weight = nn.Parameter(torch.zeros(place.dim, place.time_dim))
            self.time_bias = nn.Parameter(torch.zeros(place.dim))

    def close(self, stream: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The last router's mean of all that is there."""
        return self.route(self.query, stream, e)

    def route(self, query: Tensor, sources: Tensors, e: Tensor | None) -> Tensor:
        """The mean of the sources by a router's query [D] and the timestep embedding e [B, E]."""
        if self.timed and e is not None:
            query = query + nn.functional.linear(e, self.time_weight, self.time_bias)
        return attend(query, sources, scale=query.shape[-1] ** -0.5)


@rule("dar")
class DAR(Unit):
    """Depth attention. With `chunk=1` the mean of all sources, which a norm behind it cannot tell from their sum, is
    the plain rule up to the norms' eps.

    Unit 0 has no router: it has no choice.

    Args:
        chunk: S; a network of U units then keeps about U / S + S sources.
    """

    single = False
    plain_within = 1e-2
    no_reopening = BEGINS_ANEW
    no_growth = OLD_SOURCES
    no_supervision = "its units write to a list, so that no gain leads from one to the next"

    def __init__(self, place: Place, *, chunk: Count = 1) -> None:
        super().__init__(place)
        self.chunk, self.start = chunk, self.starts(chunk=chunk)
        if place.index:
            self.query = nn.Parameter(torch.zeros(place.dim))

    @classmethod
    def starts(cls, *, chunk: int = 1, **options: object) -> Start:
        """Chunks leave outputs out."""
        return "plain" if chunk == 1 else "other"

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The list of outputs."""
        return History(place)

    def join(self, stack: Stack) -> None:
        """The stack holds what the timestep adds to every router."""
        self._stack = (stack,)  # in a tuple, or its parameters would be this unit's as well

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if not self.place.index:
            return z[0]
        stack = self._stack[0]
        assert isinstance(stack, History)
        return stack.route(self.query, self._kept(z), e)

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        return *self._kept(z), self.gated(f, g)

    def _kept(self, z: Tensors) -> Tensors:
        """The sources once the chunk before this unit, if one ends there, is summarised by its last output."""
        if self.chunk == 1 or not self.place.index or self.place.index % self.chunk:
            return z
        return *z[: -self.chunk], z[-1]

    def plain_values(self) -> dict[str, float | Tensor]:
        """Its router takes the plain mean.

        Raises:
            ValueError: it works in chunks.
        """
        if self.chunk > 1:
            raise ValueError(f"with chunk={self.chunk} it leaves outputs out, so that no value of its routers is plain")
        return {name: 0.0 for name, _ in self.named_parameters()}
