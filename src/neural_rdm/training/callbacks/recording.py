"""Evaluations while a run trains: `evaluations.csv`, from which its efficiency is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl

from neural_rdm.core.arguments import Count, NonNegative, at_least, checked
from neural_rdm.core.records import StepRecords
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.evaluation.measuring import Report
from neural_rdm.reports.efficiency import FILE
from neural_rdm.training.callbacks.ema import averaged
from neural_rdm.training.callbacks.steps import StepCallback
from neural_rdm.training.drawing import subject_of
from neural_rdm.training.held import data_of

COLUMNS = (
    "step", "images", "weights", "cfg_scale", "sampler", "sampler_steps", "reference", "precision", "count",
    "train_size",
)  # fmt: skip


@checked()
class EvaluationLog(StepCallback):
    """A line of `evaluations.csv` every so many optimizer steps: the run's metric on few samples.

    The samples are those of the averaged weights, and always the same noise, so that lines differ by the training
    alone. The ranks share the work. Without a metric nothing is recorded.

    Args:
        every_n_steps: optimizer steps between two evaluations.
        count: samples of each. Distances fall with it: a line is comparable to lines of the same count only.
        cfg_scale: guidance of the samples. 1 is none, as EP_FID@k wants it; None for that of the run's sampler.
    """

    def __init__(
        self,
        every_n_steps: Count = 50_000,
        count: Annotated[int, at_least(2)] = 2000,
        cfg_scale: NonNegative | None = 1.0,
    ) -> None:
        self.every_n_steps, self.count, self.cfg_scale = every_n_steps, count, cfg_scale
        self.sampler = Sampler()
        self.report: Report | None = None
        self._records: StepRecords | None = None

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Evaluate when it is due."""
        step = trainer.global_step
        if self.report is None or step % self.every_n_steps:
            return
        sampler = self.sampler if self.cfg_scale is None else replace(self.sampler, cfg_scale=self.cfg_scale)
        with averaged(trainer, pl_module.net) as weights:
            subject = subject_of(trainer, pl_module, sampler, weights, progress=False)
            rows, _, facts = self.report.with_count(self.count).rows(subject)
        if not trainer.is_global_zero:
            return
        numbers = {name: value for name, value in rows[0].items() if name != "name"}
        if self._records is None:
            self._records = StepRecords(Path(trainer.default_root_dir) / FILE, COLUMNS)
        data = data_of(trainer)
        line = {
            "step": step,
            "images": step * data.batch_size,
            "weights": weights,
            "cfg_scale": sampler.cfg_scale,
            "sampler": sampler.name,
            "sampler_steps": sampler.steps,
            "reference": "+".join(
                facts[key][:8] for key in ("reference_hash", "reference_hash_frames") if facts.get(key)
            ),
            "precision": facts.get("precision"),
            "train_size": data.train_size,
        }
        self._records.append([{**line, **numbers, "count": int(numbers.get("count", self.count))}])
        for logger in trainer.loggers:
            logger.log_metrics({f"evaluation/{name}": value for name, value in numbers.items()}, step=step)
