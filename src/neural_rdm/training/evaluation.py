"""What a run does after its last step: the final sample grid, the plots, and the numbers of its metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from neural_rdm.metrics.digits import DigitsEvaluation
from neural_rdm.reports.plots import plot_losses
from neural_rdm.reports.tables import GENERATED, write_metrics
from neural_rdm.training.ema import averaged
from neural_rdm.training.module import NeuralRDM
from neural_rdm.training.sampling import SampleGrid, draw, input_shape
from neural_rdm.training.sensitivity import SensitivityLog


class DigitsReport:
    """Accuracy and Frechet distance of generated digits, beside those of held-out real ones, in `report/`.

    Args:
        per_class: samples drawn of each digit.
    """

    def __init__(self, per_class: int = 50) -> None:
        self.per_class = per_class

    def __call__(self, trainer: pl.Trainer, module: NeuralRDM, grid: SampleGrid, folder: Path) -> tuple[dict[str, float], list[Path]]:
        """Draw the samples, measure them, write `metrics.{md,csv,json}`; every rank must call it."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        labels = torch.arange(10).repeat_interleave(self.per_class)
        with averaged(trainer, module.net) as weights:
            drawn = draw(module, grid.sampler, input_shape(module), labels, len(labels), progress=True)
        if not trainer.is_global_zero:
            return {}, []
        metric = DigitsEvaluation(data.train_set.x, data.train_set.y, data.val_set.x, data.val_set.y, sync_on_compute=False)
        metric.update(drawn, labels)
        numbers, sampler = metric.compute(), grid.sampler
        protocol = (
            f"{metric.protocol} Sampler {sampler.name}, {sampler.steps} steps, cfg_scale {sampler.cfg_scale:g} on channels {sampler.channels}, "
            f"interval {sampler.interval}; {self.per_class} samples a class; weights {weights}; step {trainer.global_step}; seed {module.seed}."
        )
        rows = [{"name": GENERATED, **numbers}, {"name": "real, held out", **metric.reference()}]
        return numbers, write_metrics(folder / "report", rows, protocol)


def finish(trainer: pl.Trainer, module: NeuralRDM, grid: SampleGrid | None, report: DigitsReport | None, folder: Path) -> tuple[dict[str, float], list[Path]]:
    """Write everything that a person looks at after a run; returns its numbers and the paths. Every rank must call it.

    Samples are drawn only where the run has a metric: a large network draws its previews at their own interval.
    """
    numbers: dict[str, float] = {}
    paths: list[Path] = []
    if report is not None and grid is not None:
        numbers, tables = report(trainer, module, grid, folder)
        paths += [grid.save(trainer, module, folder / "samples" / "final.png", progress=False), *tables]
    if not trainer.is_global_zero:
        return numbers, paths
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SensitivityLog) and (plot := callback.plot()) is not None:
            paths.append(plot)
    if (folder / "metrics.csv").is_file():
        paths += [plot_losses(folder / "metrics.csv", folder / "report" / "losses.png"), folder / "metrics.csv"]
    return numbers, paths
