"""`delta`: `u = h + gamma * sum_i a_i f_i`, `h <- h + f`: a plain stream whose units also look back at the outputs.

`a = softmax_i(w . f_i / rms(f_i))` over z0 and the outputs of all earlier units, from unit 1 on; gamma, one number a
unit, is 0 at the start: exactly the plain rule, so it can be put on trained weights. Source:
wdlctc/delta-attention-residuals-code (delta attention residuals) [F].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.residual.rivals.attention import attend
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Unit, add_scaled, rule

BEGINS_ANEW = "what its units look back at would begin anew behind every long skip"
OLD_SOURCES = "a new unit is one more source of all later ones, which moves their weights"


class Sum(Stack):
    """(h, z0, ...): the stream itself, z0, and what the units keep of the past: here the outputs f_0, ..., f_{l-1}."""

    def open(self, z: Tensor) -> Tensors:
        """z as the sum, and as the first source."""
        return z, z

    def close(self, stream: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The sum."""
        return stream[0]

    def add(self, stream: Tensors, x: Tensor) -> Tensors:  # type: ignore[override]
        """x goes into the sum; it is nobody's output."""
        return stream[0] + x, *stream[1:]


@rule("delta")
class Delta(Unit):
    """`h + f`, whose branch reads `h + gamma * attend(w, sources)`.

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
            self.query = nn.Parameter(torch.zeros(place.dim))

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The stream and its parts."""
        return Sum()

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if not self.place.index:
            return z[0]
        return add_scaled(z[0], self.gamma, attend(self.query, z[1:]))

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        written = self.gated(f, g)
        return z[0] + written, *z[1:], written

    def plain_values(self) -> dict[str, float | Tensor]:
        """gamma 0, which hides the query; that is put at 0, where it starts."""
        return {name: 0.0 for name, _ in self.named_parameters()}
