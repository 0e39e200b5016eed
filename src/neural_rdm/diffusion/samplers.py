"""Drawing samples: DDIM, DPM-Solver++ or DDPM steps, and Euler or Heun steps along a flow (diffusers' schedulers).

A sample is a function of the seed and of the number that it bears, not of the batch or rank that draws it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_rdm.core import noise as tables
from neural_rdm.core.arguments import Count, Fraction, NonNegative, checked
from neural_rdm.core.progress import progress_bar
from neural_rdm.core.seeding import keys, normal
from neural_rdm.diffusion import constraints
from neural_rdm.diffusion.finishing import Finishing
from neural_rdm.diffusion.guidance import Condition, Guidance, Predict, guided_model, halves
from neural_rdm.diffusion.process import DDPM, Flow, split_output

#: what the network of a DDPM predicts, in diffusers' words
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}


@checked(constraints.interval_ascends, constraints.of_ddim)
@dataclass(frozen=True)
class Sampler:
    """Which steps to take and how to guide them.

    Args:
        name: `ddim` (Song et al. 2021; timesteps 0, T/n, 2T/n, ...: DiT's "ddim50"), `dpm++` (Lu et al. 2022;
            second-order multistep, evenly spread timesteps) or `ddpm` (evenly spread from 0 to T - 1: DiT's "250"; uses
            a learned variance if the network has one, else beta of the step, the "fixed large" of DiT and ADM); for a
            flow `euler`, or `heun` of second order. None of them visits timesteps that are all but pure noise, as the
            cosine schedule's last four of 1000 (`core.noise.visited`).
        steps: of each sample; as many network evaluations (`heun`: 2 * steps - 1; ddim: fewer where timesteps are left
            out). One ddim or ddpm step starts at t = 0 and so hardly moves the noise.
        eta: ddim only: the noise put back in each step, from 0 (deterministic) to 1.
        cfg_scale, channels, interval: see `Guidance`.
        steps_offset: ddim only: 0, or 1 as in LDM and Stable Diffusion: one is added to every timestep, and the last
            step ends at alpha_bar_0 instead of 1.

    Raises:
        ValueError: an unknown name, steps < 1, eta outside [0, 1], or an option that this sampler does not have.
    """

    name: Literal["ddim", "dpm++", "ddpm", "euler", "heun"] = "ddim"
    steps: Count = 50
    eta: Fraction = 0.0
    cfg_scale: NonNegative = 1.0
    channels: Count | Literal["all"] = "all"
    interval: tuple[float, float] | None = None
    steps_offset: Literal[0, 1] = 0

    @property
    def guidance(self) -> Guidance:
        """The guidance keys as one object."""
        return Guidance(self.cfg_scale, self.channels, self.interval)

    @property
    def said(self) -> str:
        """Name, steps and guidance, in words for a title."""
        guided = f", cfg_scale {self.cfg_scale:g}" if self.cfg_scale != 1 else ""
        return f"{self.name} in {self.steps} steps{guided}"

    @property
    def passes(self) -> int:
        """Forward passes of the network for a sample, about: twice as many under guidance."""
        return (2 * self.steps - 1 if self.name == "heun" else self.steps) * (1 if self.cfg_scale == 1 else 2)

    @property
    def stochastic(self) -> bool:
        """Whether steps draw noise."""
        return self.name == "ddpm" or self.eta > 0

    def scheduler(self, process: DDPM | Flow) -> Any:
        """diffusers' scheduler for this process, its timesteps set, descending: indices of a DDPM, times of a flow.

        Raises:
            ValueError: more steps than the process has, a sampler of the other kind of process, or guidance in an
                interval without any of these timesteps.
        """
        kind, names = ("flow", tables.FLOW_SAMPLERS) if isinstance(process, Flow) else ("DDPM", tables.DDPM_SAMPLERS)
        if self.name not in names:
            raise ValueError(f"sampler name={self.name} cannot run a {kind} process: choose one of {', '.join(names)}")
        if isinstance(process, Flow):
            return self._flow_scheduler(process)
        from diffusers.schedulers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

        bars = process.alphas_cumprod
        times = tables.visited(self.name, self.steps, bars.tolist(), self.steps_offset)
        self._check_interval(times)
        options: dict[str, Any] = {
            "num_train_timesteps": len(bars),
            "trained_betas": process.betas.tolist(),
            "prediction_type": PREDICTION_TYPES[process.prediction],
        }
        scheduler: Any
        if self.name == "dpm++":
            scheduler = DPMSolverMultistepScheduler(**options)
        elif self.name == "ddpm":
            scheduler = DDPMScheduler(**options, clip_sample=False, variance_type="learned_range")
        else:
            ends = {"steps_offset": self.steps_offset, "set_alpha_to_one": self.steps_offset == 0}
            scheduler = DDIMScheduler(**options, **ends, clip_sample=False)
        # A scheduler's own float32 table is wrong by 2e-4 in 1 - alpha_bar near t = 0.
        scheduler.alphas_cumprod = bars
        if self.name == "ddim":  # by the number of steps it knows their stride
            scheduler.set_timesteps(self.steps)
            scheduler.timesteps = torch.tensor(times)
        else:
            scheduler.set_timesteps(timesteps=times)
        return scheduler

    def _flow_scheduler(self, process: Flow) -> Any:
        from diffusers.schedulers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler

        self._check_interval(tables.flow_times(self.steps, process.num_timesteps))
        kind: Any = FlowMatchEulerDiscreteScheduler if self.name == "euler" else FlowMatchHeunDiscreteScheduler
        scheduler = kind(num_train_timesteps=process.num_timesteps)
        # both end their steps at the last but one of their own times; these are even from T down to T / steps, then 0
        if self.name == "euler":
            scheduler.set_timesteps(sigmas=tables.flow_times(self.steps, 1))
        else:
            scheduler.sigma_min = scheduler.sigma_max / self.steps
            scheduler.set_timesteps(self.steps)
        return scheduler

    def _check_interval(self, times: Sequence[float]) -> None:
        if self.interval is not None and self.cfg_scale != 1:
            tables.check_interval(self.interval, times)


#: ahead(times of all steps, condition of every row of a batch, rows): open while a batch is drawn, and told the time
#: before each of its forward passes, so that a network can compute beforehand what it knows then
Ahead = Callable[[Sequence[float], Condition, int], AbstractContextManager[Callable[[float], None]]]


def _unprepared(times: Sequence[float], condition: Condition, rows: int) -> Any:
    """Nothing is computed beforehand."""
    return nullcontext(lambda time: None)


def denoise(
    predict: Predict,
    process: DDPM | Flow,
    sampler: Sampler,
    noise: Tensor,
    generators: Sequence[torch.Generator] | None = None,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """All the steps from given noise to samples.

    Args:
        predict: (x, t) -> [B, C or 2C, ...] with t [B] on the CPU (int64, of a flow float32), for example from
            `guided_model`.
        noise: standard normal [B, C, H, W] or [B, F, C, H, W].
        generators: one per sample, on noise's device, for samplers that draw noise in their steps.
        on_step: called after each step.

    Returns:
        Samples of noise's shape and dtype.

    Raises:
        ValueError: too many steps for the process, or a stochastic sampler without one generator per sample.
    """
    scheduler = sampler.scheduler(process)
    options: dict[str, Any] = {"eta": sampler.eta} if sampler.name == "ddim" else {}
    if sampler.stochastic:
        if generators is None or len(generators) != len(noise):
            raise ValueError(f"sampler {sampler.name} draws noise in its steps: give one generator per sample")
        options["generator"] = list(generators)
    x = noise
    for at in scheduler.timesteps.tolist():
        output, v = split_output(predict(x, torch.tensor(at).expand(len(x))).to(x.dtype), x.shape[-3])
        if sampler.name == "ddpm":
            # v = 1 is beta of the step, so one scheduler serves networks with and without learn_sigma
            output = torch.cat([output, torch.ones_like(output) if v is None else v], dim=-3)
        # the DDPM scheduler looks for channels on dimension 1, where a clip has its frames; nothing moves in an image
        step = scheduler.step(output.transpose(1, -3), at, x.transpose(1, -3), **options, return_dict=False)
        x = step[0].transpose(1, -3)
        if on_step is not None:
            on_step()
    return x


@torch.no_grad()  # not inference_mode: compiled networks fail in it
def sample(
    model: Callable[..., Tensor],
    process: DDPM | Flow,
    sampler: Sampler,
    shape: Sequence[int],
    positions: int | Sequence[int],
    seed: int = 0,
    condition: Condition | None = None,
    null: Condition | None = None,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    finish: Callable[[Tensor], Tensor] | None = None,
    progress: bool = False,
    ahead: Ahead = _unprepared,
    overlap: bool = False,
) -> Tensor:
    """Draw samples; the one numbered p is the same whatever else is drawn with it.

    Args:
        model: `model(x, t, **condition)`; a module runs in eval mode and gets its own modes back.
        shape: of one sample: (C, H, W) or (F, C, H, W).
        positions: the samples' numbers, or how many to draw (0, 1, ...).
        seed: of the noise. A CPU and a GPU draw different noise from one seed.
        condition: what the network is shown, tensors [N, ...], one row per position; None for an unconditional network.
        null: the same of no condition, tensors [1, ...], needed for guidance.
        batch_size: samples at a time; guidance runs twice as many through the network.
        device: where to draw and step; the module's own device if None.
        finish: applied to each finished batch before it is kept: decode and round to bytes, say, to save memory.
        progress: show a bar over all the steps of all the batches, with rates and time left, on standard error.
        ahead: see `Ahead`.
        overlap: let `finish` run beside the drawing of the next batch, in a thread with a stream of its own; calls
            still follow one another. For a GPU, whose host would wait for it: threads of a CPU have no cores to spare.

    Returns:
        [N, *shape] float32, or whatever `finish` makes of it, in the order of `positions`.

    Raises:
        ValueError: no positions, conditions of another number, too many steps, guidance without one or without a null.
    """
    numbers = list(range(positions)) if isinstance(positions, int) else [int(p) for p in positions]
    if not numbers or batch_size < 1:
        raise ValueError(f"nothing to sample: {len(numbers)} positions in batches of {batch_size}")
    for name, value in (condition or {}).items():
        if len(value) != len(numbers):
            raise ValueError(f"{len(value)} rows of {name} for {len(numbers)} samples")
    if device is None:
        parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        device = "cpu" if parameter is None else parameter.device
    batches = [slice(start, start + batch_size) for start in range(0, len(numbers), batch_size)]
    times = sampler.scheduler(process).timesteps.tolist()
    bar: AbstractContextManager[Callable[..., None]]
    bar = progress_bar("sampling", len(batches) * len(times)) if progress else nullcontext(_untold)
    rate = _Rate("clips" if len(shape) == 4 else "images")
    finishing = Finishing(finish, torch.device(device), overlap)
    with _evaluating(model), bar as advance, finishing:
        for batch in batches:
            part, shown = numbers[batch], {k: v[batch].to(device) for k, v in (condition or {}).items()}
            noise = normal(seed, "sample", part, shape, device)
            generators = _generators(seed, part, device) if sampler.stochastic else None
            predict = guided_model(model, sampler.guidance, shown, null)
            guided = bool(null) and sampler.guidance.cfg_scale != 1
            rows = halves(shown, null) if guided and null else shown

            def step(share: float = len(part) / len(times)) -> None:
                advance(note=rate.told(share))

            with ahead(times, rows, len(part) * (1 + guided)) as tell:
                samples = denoise(told(predict, tell), process, sampler, noise, generators, step)
            finishing.add(samples)
    return torch.cat(finishing.parts())


def _generators(seed: int, positions: Sequence[int], device: torch.device | str) -> list[torch.Generator]:
    """For each sample, the generator of the noise in its steps."""
    return [
        torch.Generator(device).manual_seed(int(key >> 1)) for key in keys(seed, "sample-steps", positions).tolist()
    ]


def told(predict: Predict, tell: Callable[[float], None]) -> Predict:
    """`predict`, and before each call the time of it told."""

    def run(x: Tensor, t: Tensor) -> Tensor:
        tell(t[0].item())  # on the CPU: the device is not waited for
        return predict(x, t)

    return run


def _untold(count: int = 1, note: str = "") -> None:
    """Nobody watches."""


class _Rate:
    """Samples a second since the first step, in words."""

    def __init__(self, what: str) -> None:
        self.what, self.done, self.begin = what, 0.0, time.perf_counter()

    def told(self, share: float) -> str:
        """So much more of a batch is done, counted in samples."""
        self.done += share
        return f"{self.done / (time.perf_counter() - self.begin):.3g} {self.what}/s"


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Every module in eval mode; afterwards each is as it was, also where a frozen part was in eval mode already."""
    training = [module for module in model.modules() if module.training] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
