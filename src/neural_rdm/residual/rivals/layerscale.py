"""`layerscale`: `z + alpha * F(z)`, alpha small at the start: the deeper the network, the smaller.

Source: Touvron et al. 2021, *Going deeper with Image Transformers* (CaiT), Eq. 3; the values by depth are theirs, also
timm's `init_values` [F].
"""

from __future__ import annotations

from neural_rdm.core.arguments import Positive
from neural_rdm.residual.rules import Granularity, ReZero
from neural_rdm.residual.unit import Place, Start, rule

#: CaiT: (units, alpha's start) up to a depth of 18 and of 24 blocks of two units; 1e-6 beyond
BY_DEPTH = ((36, 1e-1), (48, 1e-5))


@rule("layerscale")
class LayerScale(ReZero):
    """`z + alpha * F(z)`, one alpha a channel.

    Args:
        init: alpha's start; None for the published one of this depth: 0.1 up to 36 units, 1e-5 up to 48, else 1e-6.
    """

    start: Start = "other"

    def __init__(
        self,
        place: Place,
        *,
        init: Positive | None = None,
        granularity: Granularity = "channel",
        time_conditioned: bool = False,
    ) -> None:
        self.alpha_start = next((v for units, v in BY_DEPTH if place.count <= units), 1e-6) if init is None else init
        super().__init__(place, granularity=granularity, time_conditioned=time_conditioned)
