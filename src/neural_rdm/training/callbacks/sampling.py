"""Drawing samples from a run: previews while it trains, and the final set, shared out over the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from neural_rdm.conditioning.conditions import condition_of
from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import CheckpointError
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.evaluation.real_samples import examples
from neural_rdm.reports.figures import titled_samples
from neural_rdm.reports.grids import save_grid
from neural_rdm.training.callbacks.ema import averaged
from neural_rdm.training.callbacks.steps import StepCallback
from neural_rdm.training.drawing import draw
from neural_rdm.training.held import data_of
from neural_rdm.training.module import NeuralRDM

MOST_REAL = 4  # real samples in a row


@checked()
class SampleGrid(StepCallback):
    """`samples/step=N.png` every so many optimizer steps: one row a class, drawn with the averaged weights.

    Args:
        every_n_steps: optimizer steps between two grids.
        per_class: samples of each class (or text).
        max_classes: classes shown, from the first (or texts, the data's own validation prompts); an unconditional
            network shows as many rows.
    """

    def __init__(self, every_n_steps: Count = 10_000, per_class: Count = 4, max_classes: Count = 8) -> None:
        self.every_n_steps, self.per_class, self.max_classes = every_n_steps, per_class, max_classes
        self.sampler = Sampler()
        self._told = False

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draw a grid when it is due."""
        step = trainer.global_step
        if step % self.every_n_steps:
            return
        self.save(trainer, pl_module, Path(trainer.default_root_dir) / "samples" / f"step={step:09d}.png")

    def save(self, trainer: pl.Trainer, module: NeuralRDM, path: Path, real: bool = False) -> list[Path]:
        """Draw one grid with the averaged weights and write it, a clip's also as a GIF; every rank must call it.

        Args:
            real: lay training samples beside them (see `examples`): of a row's class; of any text where rows are texts.

        Returns:
            The files, the one to look at first.
        """
        shown, names = self.rows(module, data_of(trainer))
        condition = condition_of([x for x in shown or () for _ in range(self.per_class)], module.text)
        count = self.per_class * (self.max_classes if shown is None else len(shown))
        with averaged(trainer, module.net):
            drawn = draw(module, self.sampler, module.net.input_shape, condition, range(count), progress=False)
        clips = drawn.ndim == 5
        if trainer.is_global_zero:
            pixels = self.decode(module, drawn)
            title, each = titled_samples(trainer.global_step, self.sampler.said, path), min(self.per_class, MOST_REAL)
            beside = self._real(module, shown, count // self.per_class, each, pixels) if real else None
            more: dict[str, Any] = {"columns": self.per_class, "row_labels": names, "title": title}
            if clips:
                save_grid(pixels, path.with_suffix(".gif"), real=beside, **more)
                pixels = pixels[:: self.per_class]  # the frames of a clip are a row of their own: one clip of each
                beside = None if beside is None else beside[::each][: MOST_REAL if names is None else None]
                more["columns"] = 1 if beside is None else self.per_class
            save_grid(pixels, path, real=beside, **more)
        return [path.with_suffix(".gif"), path] if clips else [path]

    def _real(self, module: NeuralRDM, shown: list[Any] | None, rows: int, each: int, drawn: Tensor) -> Tensor | None:
        """Training samples [rows * each, ...] as pixels; None where they are not of the shape of what was drawn."""
        data = data_of(module.trainer)
        x, positions = examples(data, shown if module.text is None else None, rows, each)
        if drawn.ndim == 5:
            x = x[:, : module.net.input_shape[0]]  # without the images of joint training
        if data.space == "moments":
            x = module.first_stage.encode(x.to(module.device), module.seed, positions).float().cpu()
        if data.space != "pixels":
            x = self.decode(module, x)
        return x if x.shape[1:] == drawn.shape[1:] else None

    def rows(self, module: NeuralRDM, data: Any) -> tuple[list[Any] | None, list[str] | None]:
        """The classes or texts that the grid shows, and their names; None twice for an unconditional network."""
        if module.text is not None:
            prompts = data.prompts(self.max_classes)
            return prompts, prompts
        classes = list(range(min(module.net.num_classes, self.max_classes)))
        return (classes, [_name(data.class_names, c) for c in classes]) if classes else (None, None)

    def decode(self, module: NeuralRDM, latents: Tensor) -> Tensor:
        """Pixels where the run has a first stage for its latents; otherwise the latents themselves, saying so once."""
        if module.encode:
            try:
                return module.first_stage.decode(latents.to(module.device)).float().cpu()
            except CheckpointError as error:
                self._tell(f"previews show latents: {error}")
        elif data_of(module.trainer).space == "latents":
            self._tell("previews show latents: these data come without a first stage to decode them")
        return latents

    def _tell(self, line: str) -> None:
        if not self._told:
            print(line, flush=True)
            self._told = True


def _name(names: list[str] | None, label: int) -> str:
    return names[label] if names and label < len(names) else str(label)
