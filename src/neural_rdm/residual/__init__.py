"""Floor 1: the residual rules. Start reading at `rules.py`: it holds the paper's equation."""

from neural_rdm.residual.rules import RULES, Unit, is_gate, units
from neural_rdm.residual.spec import Residual
from neural_rdm.residual.taps import tap

__all__ = ["RULES", "Residual", "Unit", "is_gate", "tap", "units"]
