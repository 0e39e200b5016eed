"""Floor 3: what the theory says about depth, made executable: a denoising ODE as a stack of gated units, how sensitive
every unit is, the supervision of it, and how strongly units influence one another.

For training and the lens. Begin with `probe` (sensitivity), then `supervision` and `ode` (the paper's Sec. 3).
"""

from neural_rdm.dynamics.ode import GatedStack, GaussianData, gated_stack, pf_ode, recover_gates, schedule_of
from neural_rdm.dynamics.probe import Sensitivity, probe, sensitivities, stream_overlaps
from neural_rdm.dynamics.supervision import check_supervision, sensitivity_loss, supervise

__all__ = [
    "GatedStack",
    "GaussianData",
    "Sensitivity",
    "check_supervision",
    "gated_stack",
    "pf_ode",
    "probe",
    "recover_gates",
    "schedule_of",
    "sensitivities",
    "sensitivity_loss",
    "stream_overlaps",
    "supervise",
]
