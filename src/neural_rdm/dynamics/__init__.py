"""Floor 2: what the theory says about depth, made executable: sensitivities of every residual unit."""

from neural_rdm.dynamics.probe import Sensitivity, probe, sensitivities
from neural_rdm.dynamics.supervision import check_supervision, sensitivity_loss, supervise

__all__ = ["Sensitivity", "check_supervision", "probe", "sensitivities", "sensitivity_loss", "supervise"]
