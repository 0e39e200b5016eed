"""Drawing samples from a run: previews while it trains, and the final set, shared out over the ranks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError
from neural_rdm.diffusion.samplers import Sampler, sample
from neural_rdm.reports.grids import save_grid
from neural_rdm.training.ema import averaged
from neural_rdm.training.module import NeuralRDM
from neural_rdm.training.steps import StepCallback


def draw(
    module: NeuralRDM, sampler: Sampler, shape: tuple[int, ...], labels: Tensor | None, count: int, progress: bool
) -> Tensor:
    """Latents or pixels [count, *shape] (float32, CPU), one for each label [count] (or unconditional).

    Sample i depends on (seed, i) alone. The ranks share the work; every rank must call it, and every rank gets the
    result.
    """
    world, rank = module.trainer.world_size, module.trainer.global_rank
    share = math.ceil(count / world)
    # Every rank draws as many, the last ones some twice: collectives inside a sharded network must match.
    mine = [min(i, count - 1) for i in range(rank * share, (rank + 1) * share)]
    with module.trainer.precision_plugin.forward_context():  # the precision of training, bf16 on a GPU
        drawn = sample(
            module.net,
            module.objective.process,
            sampler,
            shape,
            mine,
            seed=module.seed,
            y=None if labels is None else labels[mine],
            null_class=getattr(module.net, "null_class", None),
            batch_size=min(64, share),
            device=module.device,
            finish=lambda x: x.float().cpu(),
            progress=progress and rank == 0,
        )
    if world > 1:
        parts = module.all_gather(drawn.to(module.device))
        drawn = parts.reshape(-1, *shape).cpu()
    return drawn[:count]


def class_labels(num_classes: int, per_class: int, max_classes: int) -> Tensor | None:
    """Labels of a grid with one row a class, for the first `max_classes` classes; None for an unconditional network."""
    return torch.arange(min(num_classes, max_classes)).repeat_interleave(per_class) if num_classes else None


class SampleGrid(StepCallback):
    """`samples/step=N.png` every so many optimizer steps: one row a class, drawn with the averaged weights.

    Args:
        every_n_steps: optimizer steps between two grids.
        per_class: samples of each class.
        max_classes: classes shown, from the first; an unconditional network shows as many rows.
    """

    def __init__(self, every_n_steps: int = 10_000, per_class: int = 4, max_classes: int = 8) -> None:
        self.every_n_steps, self.per_class, self.max_classes = every_n_steps, per_class, max_classes
        self.sampler = Sampler()
        self._told = False

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw a grid when it is due."""
        step = trainer.global_step
        if step % self.every_n_steps:
            return
        self.save(
            trainer, pl_module, Path(trainer.default_root_dir) / "samples" / f"step={step:09d}.png", progress=False
        )

    def save(self, trainer: pl.Trainer, module: NeuralRDM, path: Path, progress: bool) -> Path:
        """Draw one grid with the averaged weights and write it; every rank must call it."""
        data: Any = trainer.datamodule
        num_classes = getattr(module.net, "num_classes", 0)
        labels = class_labels(num_classes, self.per_class, self.max_classes)
        count = self.per_class * self.max_classes if labels is None else len(labels)
        with averaged(trainer, module.net):
            drawn = draw(module, self.sampler, input_shape(module), labels, count, progress)
        if trainer.is_global_zero:
            names = None if labels is None else [_name(data.class_names, c) for c in labels[:: self.per_class].tolist()]
            save_grid(self.decode(module, drawn), path, columns=self.per_class, row_labels=names)
        return path

    def decode(self, module: NeuralRDM, latents: Tensor) -> Tensor:
        """Pixels where the run has a first stage for its latents; otherwise the latents themselves, saying so once."""
        if module.encode:
            try:
                return module.first_stage.decode(latents.to(module.device)).float().cpu()
            except CheckpointError as error:
                self._tell(f"previews show latents: {error}")
        elif module.trainer.datamodule.space == "latents":
            self._tell("previews show latents: these data come without a first stage to decode them")
        return latents

    def _tell(self, line: str) -> None:
        if not self._told:
            print(line, flush=True)
            self._told = True


def input_shape(module: NeuralRDM) -> tuple[int, ...]:
    """[C, H, W] of what the network denoises."""
    net: Any = module.net
    return (net.in_channels, net.input_size, net.input_size)


def _name(names: list[str] | None, label: int) -> str:
    return names[label] if names and label < len(names) else str(label)
