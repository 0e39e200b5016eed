"""`mvsplit`: `N(z + beta * (f - M f) + alpha * (M f - M z))`, M the mean over tokens: mean and rest of a write apart.

The common part of all tokens, which grows with depth until it is most of the stream, is moved towards the branch's mean
instead of added up. Source: erwold/mv-split [F]. Its evidence (400 layers) is of a network without adaLN and timestep.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neural_rdm.residual.rivals.norms import rms_norm
from neural_rdm.residual.unit import Place, Start, Unit, rule


@rule("mvsplit")
class MVSplit(Unit):
    """`weight * n / rms(n)` of `n = z + beta * (f - M f) + alpha * (M f - M z)`; a block's own gate multiplies f.

    M is the mean over the tokens, or places, of each row: an image, a frame; in a temporal block the frames of a place.

    Args:
        beta: its start, for every channel; the source's default is 0.03, 1 adds what the plain rule would.
    """

    start: Start = "other"
    adds_to_stream = False
    across_tokens = True
    no_supervision = "the norm behind it cancels a common scale of its gates"
    no_growth = "its norm changes the stream whatever its gates are, so no new unit leaves the network's output alone"
    has_alpha = has_beta = True

    def __init__(self, place: Place, *, beta: float = 1.0) -> None:
        super().__init__(place)
        self.alpha = nn.Parameter(torch.zeros(place.dim_out))
        self.beta = nn.Parameter(torch.full((place.dim_out,), beta))
        self.weight = nn.Parameter(torch.ones(place.dim_out))

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        axes = tuple(range(1, z.ndim - 1) if self.channel_axis == -1 else range(2, z.ndim))
        alpha, beta = self.spread(self.alpha, z), self.spread(self.beta, z)
        gate = self.spread(g, z) if g is not None else None
        # not `mean`, whose gradient is a tensor of the stream's size; that of a sum is a view
        f_mean, z_mean = (x.sum(dim=axes, keepdim=True) / (x[0].numel() // self.dim_out) for x in (f, z))
        f_mean = f_mean if gate is None else gate * f_mean
        # beta * g * f and then what is the same for all tokens of a row: two passes over the stream instead of four
        common = (alpha - beta) * f_mean - alpha * z_mean
        out = torch.addcmul(z, beta if gate is None else gate * beta, f).add_(common)
        return rms_norm(out, self.channel_axis, self.weight)

    def plain_values(self) -> dict[str, float | Tensor]:
        """None: its norm stands in the stream.

        Raises:
            ValueError: always.
        """
        raise ValueError("it normalises the stream itself, so no value of its parameters is plain")

    def affine(self, gated_behind: bool) -> tuple[Tensor | None, Tensor | None]:
        """None.

        Raises:
            ValueError: always.
        """
        raise ValueError("it normalises the stream, which no layer of a plain network does")
