"""What the arguments of optimizer, EMA and metrics must hold together. No torch (see `core.arguments`)."""

from __future__ import annotations

from collections.abc import Sequence

from neural_rdm.core.arguments import Problem


def two_betas(betas: Sequence[float]) -> Problem | None:
    """AdamW's."""
    if len(betas) == 2 and all(0 <= beta < 1 for beta in betas):
        return None
    return Problem("betas", f"{list(betas)} is not two numbers in [0, 1), e.g. [0.9,0.999]")


def different_decays(decay: float, further: Sequence[float]) -> Problem | None:
    """EMA: an average is known by its decay."""
    if len({decay, *further}) == 1 + len(further):
        return None
    return Problem("further", f"{list(further)} beside decay={decay:g}: give different decays")


def muon_on_device(name: str, offload: bool) -> Problem | None:
    """Muon has one moment, which the whole matrix is made orthogonal of."""
    if name != "muon" or not offload:
        return None
    return Problem("offload", "true is for optimizer=adamw; with optimizer=muon pass optimizer.offload=false")
