"""`delta`: `u = h + gamma * sum_i a_i f_i`, `h <- h + f`: a plain stream whose units also look back at the outputs.

`a = softmax_i(w . f_i / rms(f_i))` over z0 and the outputs of all earlier units, from unit 1 on; gamma, one number a
unit, is 0 at the start: exactly the plain rule, so it can be put on trained weights. Source:
wdlctc/delta-attention-residuals-code (delta attention residuals) [F].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.residual.rivals.attention import Routers, attend
from neural_rdm.residual.stack import Noted, Stack, Stream, Tensors, tensors_of
from neural_rdm.residual.unit import Place, Unit, rule

BEGINS_ANEW = "what its units look back at would begin anew behind every long skip"
OLD_SOURCES = "a new unit is one more source of all later ones, which moves their weights"


class Sum(Stack):
    """(h, z0, ...): the stream itself, z0, and what the units keep of the past: here the outputs f_0, ..., f_{l-1}."""

    def open(self, z: Tensor) -> Tensors:
        """z as the sum, and as the first of the past."""
        return z, z

    def close(self, stream: Stream, e: Tensor | None = None) -> Tensor:
        """The sum."""
        return tensors_of(stream)[0]

    def add(self, stream: Stream, x: Tensor) -> Tensors:
        """x goes into the sum; it is nobody's output."""
        h, *past = tensors_of(stream)
        return h + x, *past


class SumAndRouters(Sum, Routers):
    """Its units look back at all but the sum."""

    def sources(self, tensors: Tensors) -> Tensors:
        """z0 and the outputs."""
        return tensors[1:]


@rule("delta")
class Delta(Unit):
    """`h + f`, whose branch reads `h + gamma * sum_i a_i f_i`.

    Unit 0 has no parameters: it would look back at its own input alone.
    """

    single = False
    no_reopening = BEGINS_ANEW
    no_growth = OLD_SOURCES
    no_supervision = "its gamma acts on what the branch reads, behind whose norm the scale is lost"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        if place.index:
            self.gamma = nn.Parameter(torch.zeros(1))

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The stream, its parts, and the queries."""
        return SumAndRouters(place.dim, place.count - 1)

    def join(self, stack: Stack) -> None:
        """The stack holds the query of this unit."""
        assert isinstance(stack, SumAndRouters)
        self._stack = (stack,)  # in a tuple, or its parameters would be this unit's as well

    def read(self, z: Stream, e: Tensor | None = None) -> Tensor:
        h, *outputs = tensors_of(z)
        if not self.place.index:
            return h
        weights = self._stack[0].weights(z, self.place.index - 1, e)
        return attend(self.gamma * weights, outputs, onto=h)

    def write(self, z: Stream, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Noted:
        h, *outputs = tensors_of(z)
        written = self.gated(f, g)
        return self._stack[0].written(z, (h + written, *outputs, written), e)

    def plain_values(self) -> dict[str, float | Tensor]:
        """gamma 0."""
        return {name: 0.0 for name, _ in self.named_parameters()}
