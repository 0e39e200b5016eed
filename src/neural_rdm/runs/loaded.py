"""A loaded run: samples, numbers and sensitivities of its network, in Python as the commands have them."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from omegaconf import DictConfig
from torch import Tensor

from neural_rdm.backbones.contract import Backbone, blocks_of, has_units
from neural_rdm.backbones.modulation import modulated
from neural_rdm.conditioning.conditions import condition_of, null_condition
from neural_rdm.config.primary import Seed
from neural_rdm.core.arguments import Count, nearest, problem
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.base import Batch, DataModule
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import Sampler, sample
from neural_rdm.dynamics.probe import Sensitivity, probe, sensitivities
from neural_rdm.evaluation.measuring import Report, Subject, Use
from neural_rdm.evaluation.sample_parts import balanced
from neural_rdm.runs import build
from neural_rdm.runs.choosing import choose_classes, choose_prompts
from neural_rdm.runs.shared import share

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from neural_rdm.conditioning.text import TextEncoder


@dataclass(frozen=True)
class LoadedRun:
    """A run whose network is ready to sample; see `runs.load.load_run`.

        run = load_run("outputs/train/digits_gated/...")
        images = run.sample(classes=[3, 7], cfg_scale=4.0)  # [2, 1, 8, 8], pixels on [-1, 1]
        numbers = run.evaluate()  # {"accuracy": ..., "frechet": ..., ...}
        gains = [unit.gain for unit in run.sensitivity()]

    Attributes:
        folder: the run folder.
        config: its configuration.
        checkpoint: the file that was read.
        step: optimizer steps behind it.
        weights: "ema", "ema-DECAY" or "raw".
        net: the network in eval mode, float32, on `device`.
        process: the diffusion process that it was trained on.
        data: its data module, not set up: the data need not be on this machine.
        text: its text encoder, or None.
        decode: latents [B, C, H, W] -> pixels, or None where the network works on the data as they are.
        first_stage: its words in a protocol line.
        device: where samples are drawn.
        precision: of the network's products while it draws: "32-true" or "bf16-mixed".
    """

    folder: Path
    config: DictConfig
    checkpoint: Path
    step: int
    weights: str
    net: Backbone
    process: DDPM | Flow
    data: DataModule
    text: TextEncoder | None
    decode: Callable[[Tensor], Tensor] | None
    first_stage: str
    device: torch.device
    precision: str = "32-true"

    @property
    def pixels(self) -> bool:
        """Whether samples are pixels in [-1, 1]; latents otherwise."""
        return self.decode is not None or self.data.space == "pixels"

    def draw(
        self,
        sampler: Sampler,
        condition: dict[str, Tensor],
        positions: int | Sequence[int],
        seed: int,
        batch_size: int,
        finish: Callable[[Tensor], Tensor],
        progress: bool = True,
    ) -> Tensor:
        """Draw samples with a progress bar; sample i depends on (seed, i) alone, as in training.

        Args:
            positions: the samples' numbers, or how many to draw (0, 1, ...).
            condition: one row for each, see `diffusion.guidance.Condition`; empty for an unconditional network.
            finish: makes the result of each batch [B, *shape] (float32, on `device`) that is kept.

        Raises:
            ConfigError: the sampler does not fit the network or its process.
        """
        null = null_condition(self.net, self.text)  # not under autocast: an encoder has a precision of its own
        bf16 = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")
        try:
            with bf16:
                return sample(
                    self.net,
                    self.process,
                    sampler,
                    self.net.input_shape,
                    positions,
                    seed,
                    condition,
                    null,
                    batch_size=batch_size,
                    device=self.device,
                    finish=finish,
                    progress=progress,
                    ahead=partial(modulated, self.net),
                    overlap=self.device.type == "cuda",
                )
        except ValueError as error:
            raise ConfigError(f"these samples cannot be drawn: {error}") from error

    def subject(self, sampler: Sampler, seed: int, batch_size: int) -> Subject:
        """This run's samples, to be measured."""

        def draws(sampler: Sampler, condition: dict[str, Tensor], positions: range, use: Use | None = None) -> Tensor:
            start = 0

            def finish(x: Tensor) -> Tensor:
                nonlocal start
                if use is None:
                    return x.float().cpu()
                use(x.float(), positions[start : start + len(x)])
                start += len(x)
                return x[:0].float().cpu()

            return self.draw(sampler, condition, positions, seed, batch_size, finish)

        return Subject(
            net=self.net,
            text=self.text,
            data=self.data,
            draws=draws,
            sampler=sampler,
            weights=self.weights,
            step=self.step,
            seed=seed,
            decode=self.decode,
            device=self.device,
            first_stage=self.first_stage,
            precision=self.precision,
        )

    def fast(self, compile_blocks: bool, precision: str = "auto") -> LoadedRun:
        """This run, drawing as fast as it can.

        Args:
            compile_blocks: compile every block of the network, which takes a minute or two: for many samples.
            precision: "32-true", "bf16-mixed", or "auto": bf16 on a GPU.

        Raises:
            ConfigError: a network without blocks cannot be compiled.
        """
        if compile_blocks:
            for block in blocks_of(self.net, "compiled (compile=true)"):
                block.compile()
        auto = "bf16-mixed" if self.device.type == "cuda" else "32-true"
        return replace(self, precision=auto if precision == "auto" else precision)

    def facts(self, sampler: Sampler, **more: Any) -> dict[str, Any]:
        """What a JSON file beside samples or numbers says of their origin."""
        origin = {
            "run": str(self.folder),
            "checkpoint": self.checkpoint.name,
            "step": self.step,
            "weights": self.weights,
            "first_stage": self.first_stage,
            "precision": self.precision,
        }
        return {**origin, "sampler": dataclasses.asdict(sampler), **more}

    def share(self, folder: str | Path) -> list[Path]:
        """Write this run into a folder to hand on: configuration, one file of these weights with the gates in it, and a
        model card; returns the paths. See `runs.shared.share`.
        """
        return share(self, Path(folder))

    def pipeline(self) -> DiffusionPipeline:
        """This run as a stock pipeline of diffusers; see `runs.pipeline.pipeline`."""
        from neural_rdm.runs.pipeline import pipeline

        return pipeline(self)

    def sample(
        self,
        count: int | None = None,
        *,
        classes: Iterable[int] | None = None,
        prompts: Sequence[str] | None = None,
        seed: int = 0,
        batch_size: int = 64,
        progress: bool = False,
        **sampler: Any,
    ) -> Tensor:
        """Samples [N, *shape] (float32, CPU): pixels, on the scale [-1, 1] and not clamped, or latents where the run
        has no first stage for them.

        Sample i depends on (seed, i) alone, and is the one that the command `sample` draws at that place.

        Args:
            count: how many; the classes or prompts take turns. None: one of each.
            classes, prompts: what they show, a list, array or tensor; None for all classes, or some of the data's own
                validation prompts.
            sampler: keys of the run's sampler to change (`name`, `steps`, `cfg_scale`, `channels`, `interval`, `eta`).

        Raises:
            ConfigError: a class that the network does not have, prompts for a network that reads none, nothing to draw,
                or a sampler that does not fit.
        """
        for key, value, kind in (
            ("count", count, Count | None),
            ("seed", seed, Seed),
            ("batch_size", batch_size, Count),
        ):
            if wrong := problem(key, value, kind):
                raise ConfigError(wrong.at(""), key=key)
        shown = self._shown(count, classes, prompts)
        each = [] if shown is None else list(shown) if count is None else balanced(shown, count)
        condition = condition_of(each, self.text) if each else {}
        positions = len(each) or count or 1

        def finish(x: Tensor) -> Tensor:
            return (x if self.decode is None else self.decode(x)).float().cpu()

        return self.draw(self.sampler(**sampler), condition, positions, seed, batch_size, finish, progress)

    def evaluate(
        self, report: Report | None = None, *, seed: int | None = None, batch_size: int = 64, **sampler: Any
    ) -> dict[str, float]:
        """The numbers of the run's samples, nothing written; those of the command `evaluate`.

        Args:
            report: what is measured; None for the run's own metric.
            seed: None for the run's own.
            sampler: see `sample`.

        Raises:
            UserError: a run without a metric, or samples that cannot be measured so.
        """
        if report is None:
            if self.config.metric is None:
                raise ConfigError(f"run={self.folder} was trained with metric=null; pass a report")
            report = cast(Report, build.build(self.config.metric, "metric"))
        report.check(self.data, self.net, self.pixels)
        subject = self.subject(self.sampler(**sampler), self.config.seed if seed is None else seed, batch_size)
        rows, *_ = report.rows(subject)
        return {name: value for name, value in rows[0].items() if name != "name"}

    def sensitivity(self, samples: int = 64, batch_size: int = 64) -> list[Sensitivity]:
        """What the validation loss of the first samples says of every unit, in run order (paper, Sec. 3.3).

        Noise and timesteps are those of every validation of the run. Of data without a validation set training samples
        are taken.

        Raises:
            UserError: the data are not on this machine, or the network has no units.
        """
        has_units(self.net, "measured (sensitivity)")
        self.data.setup()
        module = build.module(self.config, self.data.space, begins=False, net=self.net).to(self.device).eval()
        batches = self.batches(samples, batch_size)
        count = sum(len(batch["x"]) for batch in batches)
        squared = torch.zeros(())
        self.net.requires_grad_(True)  # the stream needs a graph; nothing is accumulated
        try:
            for batch in batches:
                with probe(self.net) as rows:
                    loss = module.losses(batch, "val", drop=False)["loss"].sum() / count
                (found,) = torch.autograd.grad(loss, rows)
                squared = squared.to(found) + found
        finally:
            self.net.requires_grad_(False)
        return sensitivities(self.net, squared)

    def sampler(self, **changed: Any) -> Sampler:
        """The run's sampler, with some keys changed.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        own = cast(Sampler, build.build(self.config.sampler, "sampler"))
        known = [field.name for field in dataclasses.fields(own)]
        if unknown := [key for key in changed if key not in known]:
            said = f"a sampler has no {unknown[0]!r}.{nearest(unknown[0], known)}"
            raise ConfigError(f"{said} Its keys are {', '.join(known)}", key=unknown[0])
        return replace(own, **changed)

    def batches(self, samples: int, batch_size: int) -> list[Batch]:
        """The first validation samples (of data without any, training samples) in batches, on the run's device; the
        data are set up already.
        """
        data = self.data
        size = data.val_size or data.train_size
        needed, batches = min(samples, size), []
        data.batch_size, data.micro_steps = min(batch_size, needed), 1
        for batch in data.val_dataloader() if data.val_size else data.train_dataloader():
            # others stand in for broken samples
            good = batch["position"] < size if data.val_size else batch["position"] >= 0
            kept = [i for i, itself in enumerate(good.tolist()) if itself][:needed]
            if kept:
                batches.append({n: v[kept] if hasattr(v, "shape") else [v[i] for i in kept] for n, v in batch.items()})
            needed -= len(kept)
            if needed <= 0:
                break
        return [data.transfer_batch_to_device(batch, self.device, 0) for batch in batches]

    def _shown(
        self, count: int | None, classes: Iterable[int] | None, prompts: Sequence[str] | None
    ) -> Sequence[int | str] | None:
        """The classes or texts to draw; None for an unconditional network."""
        if self.text is not None:
            if classes is not None:
                raise ConfigError(f"classes={list(classes)}: this network reads a text; pass prompts")
            return choose_prompts(self.data, prompts, count)
        if prompts is not None:
            raise ConfigError(f"prompts={list(prompts)}: this network reads no text")
        try:
            asked = None if classes is None else [operator.index(c) for c in classes]
        except TypeError as error:
            raise ConfigError(f"classes={classes!r}: give a list of whole numbers") from error
        return choose_classes(self.net.num_classes, asked, count or self.net.num_classes)
