"""Objective and first stage of a pipeline, without a configuration: for looking into one that nobody trains here."""

from __future__ import annotations

from typing import Any

from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.latents.first_stage import KL, Identity
from neural_rdm.pipelines.folder import Folder, process_of, stage_of


def objective(folder: Folder) -> DDPMObjective | FlowObjective:
    """The process of its scheduler, and the squared error of what the network predicts there.

    Raises:
        ConfigError: see `folder.process_of`.
    """
    keys = process_of(folder)
    process = _below(keys, "diffusion.process.")
    if keys["diffusion"] == "flow":
        return FlowObjective(Flow(**process), logit_mean=keys["diffusion.logit_mean"])
    return DDPMObjective(DDPM(**process), loss="simple")


def first_stage(folder: Folder) -> KL | Identity:
    """Its autoencoder; none where it works on pixels.

    Raises:
        ConfigError: see `folder.stage_of`.
    """
    keys = _below(stage_of(folder), "first_stage.")
    return KL(**keys) if keys else Identity()


def _below(keys: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in keys.items() if key.startswith(prefix)}
