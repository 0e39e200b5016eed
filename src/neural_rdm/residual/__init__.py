"""Floor 1: the residual rules. Start reading at `rules.py`: it holds the paper's equation; then `unit.py`."""

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
