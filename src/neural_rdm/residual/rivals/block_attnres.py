"""`block_attnres`: attention over sums of outputs: `u = sum_i a_i s_i`, `a = softmax_i(w . s_i / rms(s_i))`.

The sources s are z0, the sums of the outputs of every finished group of 16 units, and the sum of the current group,
which the unit then writes to; an empty one is no source. w is shared by all units of a role (attn, mlp, ...), and one
more closes the stack. Source: NVlabs/Sana, diffusion/model/nets/sana_video2.py [F] (after *Attention Residuals*).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Count
from neural_rdm.residual.rivals.attention import Sources, attend, logits_of
from neural_rdm.residual.rivals.delta import BEGINS_ANEW
from neural_rdm.residual.stack import Stack, Tensors
from neural_rdm.residual.unit import Place, Unit, rule


class Sums(Sources):
    """(z0, sum of group 1, sum of group 2, ...), the last of which is written to. It holds the queries of all units.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.query("final")

    def query(self, role: str) -> Tensor:
        """The query [D] of all units of a role, made when the first of them is built."""
        name = f"query_{role}"
        if name not in self._parameters:
            self.register_parameter(name, nn.Parameter(torch.zeros(self.dim)))
        found: Tensor = getattr(self, name)
        return found

    def close(self, stream: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Read as by a unit."""
        return self.read("final", stream)

    def read(self, role: str, sums: Tensors) -> Tensor:
        """The mean of the sums by the weights of a role."""
        query = self.query(role)[None]
        logits = torch.cat([logits_of(s, query) for s in sums], dim=-1)
        return attend(logits.softmax(dim=-1), sums)


@rule("block_attnres")
class BlockAttnRes(Unit):
    """Attention over the sums of groups of units. At w = 0 a read is their mean, which a norm behind it cannot tell
    from the sum of all: the plain rule up to the norms' eps.

    Args:
        group: units whose outputs are summed; the source's 8 layers of 2 units.
    """

    single = False
    plain_within = 1e-3
    no_reopening = BEGINS_ANEW
    no_growth = "a new unit moves the borders of all later groups"
    no_supervision = "its units have no gates of their own"

    def __init__(self, place: Place, *, group: Count = 16) -> None:
        super().__init__(place)
        self.group = group

    @classmethod
    def make_stack(cls, place: Place, **options: object) -> Stack:
        """The sums and the queries."""
        return Sums(place.dim)

    def join(self, stack: Stack) -> None:
        """The stack holds the query of this unit's role."""
        assert isinstance(stack, Sums)
        stack.query(self.place.role)
        self._stack = (stack,)  # in a tuple, or its parameters would be this unit's as well

    def read(self, z: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        stack = self._stack[0]
        assert isinstance(stack, Sums)
        return stack.read(self.place.role, z)

    def write(self, z: Tensors, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensors:  # type: ignore[override]
        written = self.gated(f, g)
        if self.place.index % self.group == 0:  # the first of its group
            return *z, written
        return *z[:-1], z[-1] + written
