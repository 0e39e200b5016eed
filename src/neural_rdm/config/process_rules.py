"""What a diffusion process, its sampling of timesteps and its sampler must agree on."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.sources import Sources, choice_of, refused
from neural_rdm.core import noise
from neural_rdm.core.errors import ArgumentError, ConfigError

#: choices of `diffusion` that are DiT's process with another target, weight or distribution of times
VARIANTS = ("v", "x0", "min_snr", "learned")
PROCESS = "diffusion.process"
KINDS = {"neural_rdm.diffusion.process.DDPM": "DDPM", "neural_rdm.diffusion.process.Flow": "Flow"}


def check_process(cfg: DictConfig, sources: Sources) -> None:
    """Rules of `diffusion`, and of `sampler` with it; processes of one's own are let through.

    Raises:
        ConfigError: two choices that do not fit together, saying what to type.
    """
    process: Any = cfg.diffusion.get("process") or {}
    kind = KINDS.get(process.get("_target_", ""))
    if kind == "DDPM":
        _check_variant(process, sources)
        _check_learned_times(cfg)
    samplers = {"DDPM": noise.DDPM_SAMPLERS, "Flow": noise.FLOW_SAMPLERS}.get(kind or "")
    if samplers is None or cfg.sampler.get("name") is None:
        return  # one's own
    if cfg.sampler.name not in samplers:
        word, fitting = (
            ("a", "euler or sampler=heun") if kind == "Flow" else ("no", "ddim, sampler=dpm or sampler=ddpm")
        )
        raise refused(
            f"sampler.name={cfg.sampler.name}, but this diffusion process is {word} flow; pass sampler={fitting}. The "
            "jobs of a sweep share one sampler: give flows a sweep of their own, and compare the two with "
            "python -m neural_rdm.report runs=SWEEP,SWEEP",
            "sampler.name",
            sources,
        )
    try:
        times = _times(cfg, sources)
        if cfg.sampler.get("interval") is not None and cfg.sampler.get("cfg_scale", 1) != 1:
            noise.check_interval(list(cfg.sampler.interval), times)
    except ArgumentError as error:
        raise refused(f"sampler.{error}", f"sampler.{error.key}", sources) from error


def _check_variant(process: DictConfig, sources: Sources) -> None:
    """A variant of DiT's process is no variant of an experiment's own: LDM's official weights, for example, know other
    betas. Whoever wants DiT's types diffusion.process.schedule=linear.
    """
    files = {group: sources.of(group) for group in ("diffusion", "exp")}
    typed = "diffusion" in sources.typed and f"{PROCESS}.schedule" not in sources.typed
    if not typed or not files["diffusion"] or files["diffusion"][0].stem not in VARIANTS:
        return
    chosen = files["diffusion"][0]
    texts = [file.read_text(encoding="utf-8") for file in files["exp"]]
    found = [re.search(r"(?m)^\s*-\s*override /diffusion:\s*(\w+)", text) for text in texts]
    base = next((match[1] for match in found if match), "ddpm")
    if base == "ddpm" or not (file := chosen.with_name(f"{base}.yaml")).is_file():
        return
    content: Any = OmegaConf.load(file)
    own = content.get("process") or {}
    if differing := [f"{PROCESS}.{k}={v}" for k, v in own.items() if process.get(k) != v]:
        raise ConfigError(
            f"diffusion={chosen.stem} changes DiT's process, but exp={choice_of(files['exp'][0], 'exp')} has that of "
            f"diffusion={base}; pass {' '.join(differing)} too, or {PROCESS}.schedule=linear for DiT's"
        )


def _check_learned_times(cfg: DictConfig) -> None:
    if cfg.diffusion.get("learned_times") is not None and not cfg.strategy._target_.endswith((".single", ".ddp")):
        raise ConfigError(
            "diffusion.learned_times trains a parameter outside the network, which only strategy=single and "
            "strategy=ddp average over devices; pass one of these, or diffusion.learned_times=null"
        )


def _times(cfg: DictConfig, sources: Sources) -> list[float]:
    """The times at which the sampler calls the network.

    Raises:
        ValueError: more steps than there are.
        ConfigError: a schedule that never reaches noise.
    """
    process, sampler = cfg.diffusion.process, cfg.sampler
    if sampler.name in noise.FLOW_SAMPLERS:
        return noise.flow_times(sampler.steps, process.num_timesteps)
    schedule, total = process.schedule, process.num_timesteps
    bars = noise.alpha_bars(schedule, total, process.beta_start, process.beta_end)
    if bars[-1] > noise.MOST_LEFT:
        first, last = (1000 / total * end for end in noise.ENDS.get(schedule, (1, 1)))
        betas = f"{PROCESS}.beta_start={first:.4g} {PROCESS}.beta_end={last:.4g} or " if last < 1 else ""
        raise refused(
            f"{PROCESS}.num_timesteps={total} with these betas leaves {bars[-1]:.0%} of the power to the signal at the "
            f"last timestep, but samplers start from pure noise; pass {betas}diffusion=cosine, whose betas follow from "
            "their number",
            f"{PROCESS}.num_timesteps",
            sources,
        )
    return list(map(float, noise.visited(sampler.name, sampler.steps, bars, sampler.get("steps_offset", 0))))
