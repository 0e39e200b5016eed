"""A process and its sampler as `scheduler_config.json`, from which diffusers builds its own schedulers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from neural_rdm.core import noise as tables
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import PREDICTION_TYPES, Sampler

#: sampler -> the scheduler of diffusers that takes its steps
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "FlowMatchEulerDiscreteScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
}


def scheduler_config(process: DDPM | Flow, sampler: Sampler, learned_variance: bool = False) -> dict[str, Any]:
    """The configuration with which diffusers' scheduler takes the sampler's steps through the process.

    Only what is no default of that scheduler is in it, and what says how to read the network, so that the other
    schedulers of its kind, loaded from the same file, keep their own spacing of the timesteps.

    A flow's times are diffusers' own here: sigma = t / T runs from 1 (noise) to 0, and the network predicts noise -
    data. The even times of our samplers are not a setting there: call `set_timesteps(sigmas=[1, ..., 1 / steps])`.

    Args:
        learned_variance: whether the network's output has a second half that interpolates the log-variance. The
            DPM-Solvers of diffusers cannot read it (they take the first three channels): hand them the first half.

    Raises:
        ValueError: the sampler cannot run the process.
    """
    if isinstance(process, Flow) != (sampler.name in tables.FLOW_SAMPLERS):
        raise ValueError(f"sampler name={sampler.name} cannot run a {type(process).__name__} process")
    common = {"_class_name": SCHEDULERS[sampler.name], "num_train_timesteps": process.num_timesteps}
    if isinstance(process, Flow):
        return common | {"shift": 1.0}
    config = {
        **common,
        **_betas(process.betas),
        "prediction_type": PREDICTION_TYPES[process.prediction],
        "clip_sample": False,
        "thresholding": False,
        "steps_offset": sampler.steps_offset,
    }
    if sampler.name == "dpm++":
        # the first timestep it may visit, see `core.noise.LEAST_ALPHA_BAR`
        return config | ({"lambda_min_clipped": -5.1} if process.usable < process.num_timesteps else {})
    config["variance_type"] = "learned_range" if learned_variance else "fixed_small"
    if sampler.name == "ddpm":
        return config | {"timestep_spacing": "linspace"}
    return config | {"set_alpha_to_one": sampler.steps_offset == 0}


def _betas(betas: Tensor) -> dict[str, Any]:
    """The schedule by its name and ends in diffusers, or the betas themselves where it has none there."""
    count, first, last = len(betas), float(f"{betas[0]:.12g}"), float(f"{betas[-1]:.12g}")
    for name, power in tables.POWERS.items():
        if torch.allclose(betas, betas.new_tensor(tables.linear_betas(count, first, last, power)), rtol=1e-9, atol=0):
            return {"beta_schedule": name, "beta_start": first, "beta_end": last}
    if torch.allclose(betas, betas.new_tensor(tables.cosine_betas(count)), rtol=1e-9, atol=0):
        return {"beta_schedule": "squaredcos_cap_v2"}
    return {"trained_betas": betas.tolist()}
