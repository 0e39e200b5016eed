"""The order of callbacks, and the one place that tells a finished optimizer step from a micro-step of accumulation."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any, ClassVar

import lightning.pytorch as pl


class Order(IntEnum):
    """When a callback is called, before and after a step; those of one rank in the order of the configuration."""

    TAP = 0  # the taps of a log are off again when the exact supervision runs the step once more
    SUPERVISE = 1  # before the metrics, so that the norm that they log is of the whole gradient
    MEASURE = 2
    AVERAGE = 3  # validation and previews of a step use that step's averages
    USE = 4  # everybody else, Lightning's own callbacks too
    WATCH = 5  # the bar, and what ends a run
    SAVE = 6


def in_order(callbacks: Iterable[pl.Callback]) -> list[pl.Callback]:
    """Callbacks as their attribute `order` says; one that has none belongs to `Order.USE`."""
    return sorted(callbacks, key=lambda callback: getattr(callback, "order", Order.USE))


class StepCallback(pl.Callback):
    """Calls `on_step_end` once after each optimizer step of this process, never for one that it was resumed from."""

    order: ClassVar[Order] = Order.USE
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
