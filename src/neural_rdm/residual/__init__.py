"""Floor 1: one residual addition, the rules for it, and the stream that it is made in.

For networks, and for whoever looks into them (`units`, `tap`). Begin with `rules`: it holds the paper's equation; then
`unit`. The designs of others are in `rivals`; `gating` puts units into networks of diffusers.
"""

from neural_rdm.residual.spec import Plan, Residual
from neural_rdm.residual.stack import Stack, Stream
from neural_rdm.residual.taps import tap
from neural_rdm.residual.unit import RULES, Place, Unit, gate_names, make_plain, plain_state, rule, units

__all__ = [
    "RULES",
    "Place",
    "Plan",
    "Residual",
    "Stack",
    "Stream",
    "Unit",
    "gate_names",
    "make_plain",
    "plain_state",
    "rule",
    "tap",
    "units",
]
