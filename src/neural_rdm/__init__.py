"""Neural Residual Diffusion Models. Importing the package is cheap: names load what they need on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from neural_rdm.core import lazy, shims, signals

signals.leave_quietly()
shims.install()
lazy.install()

__version__ = "0.1.0"

_EXPORTS = {
    "DiT": "neural_rdm.backbones.dit",
    "Latte": "neural_rdm.backbones.latte",
    "UNet": "neural_rdm.backbones.unet",
    "UViT": "neural_rdm.backbones.uvit",
    "data_module": "neural_rdm.runs.named",
    "fold": "neural_rdm.surgery.folding",
    "freeze_silent": "neural_rdm.residual.gating",
    "gate": "neural_rdm.residual.gating",
    "grow": "neural_rdm.surgery.grow",
    "load_gates": "neural_rdm.surgery.gates",
    "load_gated": "neural_rdm.residual.foreign.models",
    "load_official": "neural_rdm.surgery.official",
    "load_run": "neural_rdm.runs.load",
    "merge_gates": "neural_rdm.surgery.folding",
    "rule": "neural_rdm.residual",
    "save_gates": "neural_rdm.surgery.gates",
}
__all__ = [
    "DiT",
    "Latte",
    "UNet",
    "UViT",
    "data_module",
    "fold",
    "freeze_silent",
    "gate",
    "grow",
    "load_gated",
    "load_gates",
    "load_official",
    "load_run",
    "merge_gates",
    "rule",
    "save_gates",
]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
