"""The page of a run and the list of all runs, while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from neural_rdm.reports.pages.index import tell
from neural_rdm.training.callbacks.steps import Order, StepCallback

#: the most of the training time that writing pages may take, and the fewest seconds from one to the next
SHARE, PAUSE = 0.01, 10.0


class Pages(StepCallback):
    """Writes `index.html` of the run, and its place in the list of runs, on the first rank: at the beginning, then as
    often as `SHARE` and `PAUSE` allow. The folder's owner writes them once more when all is over.
    """

    order = Order.WATCH

    def __init__(self) -> None:
        self._next = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show that it trains."""
        super().on_train_start(trainer, pl_module)
        self._write(trainer)

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write the pages when they are due."""
        if time.monotonic() >= self._next:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            began = time.monotonic()
            tell(Path(trainer.default_root_dir))
            took = time.monotonic() - began
            self._next = began + took + max(PAUSE, took / SHARE)
