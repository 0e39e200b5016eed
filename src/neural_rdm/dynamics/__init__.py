"""Floor 2: what the theory says about depth, made executable: sensitivities of every residual unit."""

from neural_rdm.dynamics.probe import Sensitivity, probe, sensitivities

__all__ = ["Sensitivity", "probe", "sensitivities"]
