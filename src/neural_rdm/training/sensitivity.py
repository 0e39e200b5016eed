"""Logs the sensitivity of every residual unit while a network trains (paper, Sec. 3.3 and Fig. 5)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from neural_rdm.core.records import StepRecords
from neural_rdm.dynamics.probe import sensitivities
from neural_rdm.reports.plots import plot_sensitivity
from neural_rdm.training.supervision import Measurement, Supervision

COLUMNS = ("step", "unit", "name", "norm", "normalized", "gain", "alpha_mean", "alpha_std", "beta_norm")


class SensitivityLog(pl.Callback):
    """`sensitivity/sensitivity.csv` and its plot over depth, from the backward pass of ordinary training steps.

    The norms are those of the gradient of the loss averaged over the whole global batch. Where the sensitivity is
    supervised as well, its measurement is used; else there is one of its own.

    Args:
        every_n_steps: optimizer steps between two measurements; the last step is measured too. (The first step of a
            DiT says nothing: its last layer starts at zero, so no gradient reaches any unit.)
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = every_n_steps
        self._supervision: Supervision | None = None
        self._measurement: Measurement | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the file (a resumed run appends to it)."""
        self.folder = Path(trainer.default_root_dir) / "sensitivity"
        self._records = StepRecords(self.folder / "sensitivity.csv", COLUMNS)
        self._supervision = next((c for c in trainer.callbacks if isinstance(c, Supervision)), None)

    def _due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step + 1
        return step == trainer.max_steps or step % self.every_n_steps == 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Switch the taps on for every micro-step of an optimizer step that is measured."""
        if self._supervision is None and self._measurement is None and self._due(trainer):
            self._measurement = Measurement(pl_module, legs=False)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """All micro-batches are done: write one row a unit."""
        if not self._due(trainer):
            return
        if self._supervision is not None:
            squared = self._supervision.squared(trainer)
        else:
            assert self._measurement is not None
            squared, self._measurement = self._measurement.read(trainer), None
        found = sensitivities(pl_module.net, squared)
        if trainer.is_global_zero:
            self._records.append([{"step": trainer.global_step + 1, **asdict(sensitivity)} for sensitivity in found])

    def plot(self) -> Path | None:
        """Draw the file as normalised sensitivity over depth; None if nothing was measured."""
        path = self.folder / "sensitivity.csv"
        return plot_sensitivity(path, self.folder / "sensitivity.png") if path.is_file() else None
