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
from neural_rdm.residual.rivals.attention import Routers, Sources, attend
from neural_rdm.residual.rivals.delta import BEGINS_ANEW, OLD_SOURCES
from neural_rdm.residual.stack import Noted, Stack, Stream, tensors_of
from neural_rdm.residual.unit import Place, Start, Unit, rule


class History(Sources, Routers):
    """(z0, outputs ...): nothing is ever summed. It holds the queries w of all units but 0, of the last router behind
    them, and what the timestep adds to every query.

    Args:
        place: width, number of units and width of the timestep embedding.
    """

    def __init__(self, place: Place) -> None:
        super().__init__(place.dim, place.count, scale=place.dim**-0.5)
        self.timed = place.time_dim is not None
        if place.time_dim is not None:
            self.time_weight = nn.Parameter(torch.zeros(place.dim, place.time_dim))
            self.time_bias = nn.Parameter(torch.zeros(place.dim))

    def queries(self, e: Tensor | None) -> Tensor:
        """[L, D], or with the timestep [B, L, D]."""
        if not self.timed or e is None:
            return self.query
        return self.query + nn.functional.linear(e, self.time_weight, self.time_bias)[:, None]

    def close(self, stream: Stream, e: Tensor | None = None) -> Tensor:
        """The last router's mean of all that is there."""
        return attend(self.weights(stream, -1, e), tensors_of(stream))


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

    @classmethod
    def starts(cls, *, chunk: int = 1, **options: object) -> Start:
        """Chunks leave outputs out."""
        return "plain" if chunk == 1 else "other"

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The list of outputs."""
        return History(place)

    def join(self, stack: Stack) -> None:
        """The stack holds the queries of all routers."""
        assert isinstance(stack, History)
        self._stack = (stack,)  # in a tuple, or its parameters would be this unit's as well

    def read(self, z: Stream, e: Tensor | None = None) -> Tensor:
        if not self.place.index:
            return tensors_of(z)[0]
        kept = self._kept(z)
        return attend(self._stack[0].weights(kept, self.place.index - 1, e), tensors_of(kept))

    def write(self, z: Stream, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Noted:
        kept = self._kept(z)
        return self._stack[0].written(kept, (*tensors_of(kept), self.gated(f, g)), e)

    def _kept(self, z: Stream) -> Stream:
        """The sources once the chunk before this unit, if one ends there, is summarised by its last output."""
        if self.chunk == 1 or not self.place.index or self.place.index % self.chunk:
            return z
        sources, size = tensors_of(z), self.chunk
        kept = (*sources[:-size], sources[-1])
        if not isinstance(z, Noted):
            return kept
        queries, logits = z.notes
        return Noted(kept, (queries, torch.cat([logits[..., :-size, :], logits[..., -1:, :]], dim=-2)))

    def plain_values(self) -> dict[str, float | Tensor]:
        """Its router takes the plain mean.

        Raises:
            ValueError: it works in chunks.
        """
        if self.chunk > 1:
            raise ValueError(f"with chunk={self.chunk} it leaves outputs out, so that no value of its routers is plain")
        return {name: 0.0 for name, _ in self.named_parameters()}
