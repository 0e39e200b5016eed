"""A stream of n copies of z, which `hc` and `ihc` share: equal at first, closed as their mean."""

from __future__ import annotations

from torch import Tensor

from neural_rdm.residual.stack import Stack, Tensors


class Copies(Stack):
    """n copies of the stream. Their mean leaves the stack, as wide as z was; a published sum of them is n times it.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def open(self, z: Tensor) -> Tensors:
        """n views of z: no memory until a unit writes. (The same tensor n times is more than a compiler can follow.)"""
        return tuple(z.view_as(z) for _ in range(self.n))

    def close(self, stream: Tensors, e: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The copies' mean. Of equal ones it is exact where n is a power of two."""
        total = stream[0]
        for copy in stream[1:]:
            total = total + copy
        return total / self.n

    def extra_repr(self) -> str:
        return f"{self.n}"
