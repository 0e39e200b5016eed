"""What a run does after its last step: the final sample grid, the plots, and the numbers of its metric."""

from __future__ import annotations

import os
from pathlib import Path

import lightning.pytorch as pl

from neural_rdm.core.extras import typed
from neural_rdm.data.broken import FILE as BAD_SAMPLES
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.evaluation.measuring import Report
from neural_rdm.reports.efficiency import plot_evaluations
from neural_rdm.reports.figures import attempt
from neural_rdm.reports.plots import plot_losses
from neural_rdm.training.callbacks.debugging import FewSamples
from neural_rdm.training.callbacks.ema import averaged
from neural_rdm.training.callbacks.sampling import SampleGrid
from neural_rdm.training.callbacks.sensitivity import SensitivityLog
from neural_rdm.training.drawing import subject_of
from neural_rdm.training.held import callbacks_of
from neural_rdm.training.module import NeuralRDM


def finish(
    trainer: pl.Trainer, module: NeuralRDM, sampler: Sampler, report: Report | None, folder: Path
) -> tuple[dict[str, float], list[Path]]:
    """Write everything that a person looks at after a run; returns its numbers and the paths. Every rank must call it.

    Samples are drawn only where the run has a metric: a large network draws its previews at their own interval.
    """
    numbers: dict[str, float] = {}
    paths: list[Path] = []
    for few in callbacks_of(trainer, FewSamples):
        report = None if report is None else report.with_count(few.count)
    if report is not None:
        with averaged(trainer, module.net) as weights:
            subject = subject_of(trainer, module, sampler, weights, progress=True)
            numbers, tables = report.write(subject, folder / "report")
        for grid in callbacks_of(trainer, SampleGrid):
            paths += grid.save(trainer, module, folder / "samples" / "final.png", real=True)
        paths += tables
    elif trainer.is_global_zero and not any((folder / "samples").glob("*")):
        print(_why_no_samples(callbacks_of(trainer, SampleGrid), trainer.max_steps, folder), flush=True)
    if not trainer.is_global_zero:
        return numbers, paths
    for log in callbacks_of(trainer, SensitivityLog):
        paths += log.finish()
    if (folder / "metrics.csv").is_file():
        paths += [
            *attempt(lambda: plot_losses(folder / "metrics.csv", folder / "report" / "losses.png")),
            folder / "metrics.csv",
        ]
    paths += [bad] if (bad := folder / BAD_SAMPLES).is_file() else []
    paths += attempt(lambda: plot_evaluations(folder, folder / "report" / "evaluations.png"))
    return numbers, paths


def drawn_at_end(callbacks: list[pl.Callback], report: Report | None) -> int:
    """How many samples `finish` draws to measure them; it is by far the most of its work."""
    few = [callback.count for callback in callbacks if isinstance(callback, FewSamples)]
    return 0 if report is None else min([report.drawn, *few])


def _why_no_samples(grids: list[SampleGrid], steps: int, folder: Path) -> str:
    """Why a run has drawn nothing, and how to have samples."""
    why = "callbacks.samples is left out"
    if grids:
        why = f"callbacks.samples.every_n_steps={grids[0].every_n_steps} is beyond its {steps} steps"
    later = f"python -m neural_rdm.sample {typed('run', os.path.relpath(folder))}"
    return f"no samples: a run without a metric draws none at its end, and {why}. {later} draws some"
