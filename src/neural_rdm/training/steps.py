"""The one place that tells a finished optimizer step from a micro-step of gradient accumulation."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


class StepCallback(pl.Callback):
    """Calls `on_step_end` once after each optimizer step of this process, never for one that it was resumed from."""

    _seen = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Only now has a resumed run its step again, under every strategy."""
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """A micro-step is done; pass it on if it ended an optimizer step."""
        if trainer.global_step != self._seen:
            self._seen = trainer.global_step
            self.on_step_end(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """`trainer.global_step` optimizer steps are done."""
