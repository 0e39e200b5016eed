"""Logs the sensitivity of every residual unit while a network trains (paper, Sec. 3.3 and Fig. 5)."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from neural_rdm.core.records import StepRecords
from neural_rdm.dynamics.probe import probe, sensitivities
from neural_rdm.reports.plots import plot_sensitivity
from neural_rdm.training import parallel

COLUMNS = ("step", "unit", "name", "norm", "normalized", "gain")


class SensitivityLog(pl.Callback):
    """`sensitivity/sensitivity.csv` and its plot over depth, from the backward pass of ordinary training steps.

    The norms are those of the gradient of the loss averaged over the whole global batch: squared norms are summed over
    micro-batches and ranks, and divided by the square of the number of ranks, since each rank averages over its share
    only.

    Args:
        every_n_steps: optimizer steps between two measurements; the last step is measured too. (The first step of a
            DiT says nothing: its last layer starts at zero, so no gradient reaches any unit.)
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = every_n_steps
        self._stack: ExitStack | None = None
        self._rows: Tensor | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Open the file (a resumed run appends to it)."""
        self.folder = Path(trainer.default_root_dir) / "sensitivity"
        self._records = StepRecords(self.folder / "sensitivity.csv", COLUMNS)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Switch the taps on for every micro-step of an optimizer step that is measured."""
        step = trainer.global_step + 1
        if self._stack is None and (step == trainer.max_steps or step % self.every_n_steps == 0):
            self._stack = ExitStack()
            self._rows = self._stack.enter_context(probe(pl_module.net))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """All micro-batches are done: write one row a unit."""
        if self._stack is None or self._rows is None:
            return
        self._stack.close()
        rows, self._stack, self._rows = self._rows.grad, None, None
        assert rows is not None, "no unit of the network was reached by the backward pass"
        scale = getattr(getattr(trainer.precision_plugin, "scaler", None), "get_scale", lambda: 1.0)()
        squared = parallel.sum_over_ranks(rows) / (trainer.world_size * scale) ** 2
        if trainer.is_global_zero:
            step = trainer.global_step + 1
            self._records.append(
                [
                    {
                        "step": step,
                        "unit": s.unit,
                        "name": s.name,
                        "norm": s.norm,
                        "normalized": s.normalized,
                        "gain": s.gain,
                    }
                    for s in sensitivities(pl_module.net, squared)
                ]
            )

    def plot(self) -> Path | None:
        """Draw the file as normalised sensitivity over depth; None if nothing was measured."""
        path = self.folder / "sensitivity.csv"
        return plot_sensitivity(path, self.folder / "sensitivity.png") if path.is_file() else None
