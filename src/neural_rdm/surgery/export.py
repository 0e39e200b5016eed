"""Our networks out: the official state dict, and diffusers' networks, where adapter and gates allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neural_rdm.core.errors import ConfigError
from neural_rdm.surgery.adapter import adapter_of
from neural_rdm.surgery.folding import fold

if TYPE_CHECKING:
    from diffusers import ModelMixin


@torch.no_grad()
def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of the official network (DiT, Latte, U-ViT, or whose adapter says so) that computes what `model`
    computes (see `fold`).

    Raises:
        ConfigError: there is no official network like it, or a gate that the plain network cannot express, naming the
            unit.
    """
    _refuse(model, "official", adapter_of(model).no_official)
    return fold(model).state_dict()


@torch.no_grad()
def to_diffusers(model: nn.Module) -> ModelMixin:
    """A U-Net or a DiT as diffusers' network, whose output agrees.

    A U-Net is diffusers' own already: its gates are folded. (What that network leaves out is `Adapter.beside`.) The
    scheduler that goes with it is `diffusion.scheduler_config`'s; `python -m neural_rdm.convert` writes all of them.

    Raises:
        ConfigError: diffusers has no such network, or see `to_official`.
    """
    adapter = adapter_of(model)
    _refuse(model, "diffusers", adapter.no_diffusers)
    network: ModelMixin = adapter.to_diffusers(fold(model))
    return network


def constructor(model: nn.Module) -> dict[str, object]:
    """The official constructor's arguments, for a JSON file beside exported weights."""
    return {"network": type(model).__name__, **adapter_of(model).arguments()}


def _refuse(model: nn.Module, to: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigError(f"{type(model).__name__} cannot be converted (to={to}): {reason}")
