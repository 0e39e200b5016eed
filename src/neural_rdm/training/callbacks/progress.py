"""A progress bar over optimizer steps, with rates, time left and the last logged loss."""

from __future__ import annotations

from contextlib import ExitStack

import lightning.pytorch as pl

from neural_rdm.core.progress import progress_bar
from neural_rdm.training.callbacks.logging import Metrics, Throughput
from neural_rdm.training.callbacks.steps import Order, StepCallback
from neural_rdm.training.held import callbacks_of


class StepBar(StepCallback):
    """One bar for the whole run: Lightning's own counts the batches of an epoch, and this project's loaders never end.

    Args:
        metrics: the callback whose last row is shown.
        after: what the report after training takes, in optimizer steps.
    """

    order = Order.WATCH

    def __init__(self, metrics: Metrics, after: float = 0.0) -> None:
        self.metrics, self.after = metrics, after
        self._open = ExitStack()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that the run starts from, on the first rank."""
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            bar = progress_bar("training", trainer.max_steps, before=trainer.global_step, after=self.after)
            self._advance = self._open.enter_context(bar)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Advance."""
        if trainer.is_global_zero:
            loss = self.metrics.last.get("train/loss")
            notes = [] if loss is None else [f"loss {loss:.4f}"]
            notes += [throughput.said for throughput in callbacks_of(trainer, Throughput) if throughput.said]
            self._advance(note=", ".join(notes))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also when training ended with an error."""
        self._open.close()
