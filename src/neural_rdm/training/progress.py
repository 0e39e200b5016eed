"""A progress bar over optimizer steps, with rate, time left and the last logged loss."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StepBar(ProgressBar):
    """One bar for the whole run: Lightning's own counts the batches of an epoch, and this project's loaders never end.

    On a terminal a live bar, otherwise (a log file, CI) one plain line now and then.

    Args:
        metrics: the callback whose last row is shown.
    """

    def __init__(self, metrics: Any) -> None:
        super().__init__()
        self.metrics = metrics
        self._bar: Progress | None = None
        self._active = True

    def disable(self) -> None:
        """Lightning calls this on every rank but the first."""
        self._active = False

    def enable(self) -> None:
        """Show the bar again."""
        self._active = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step that the run starts from."""
        self._first, self._begin, self._told = trainer.global_step, time.perf_counter(), time.perf_counter()
        if not self._active or not sys.stderr.isatty():
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._task = self._bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, text="")
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Advance."""
        done, step = trainer.global_step - self._first, trainer.global_step
        if not self._active or done == 0:
            return
        rate = done / (time.perf_counter() - self._begin)
        loss = self.metrics.last.get("train/loss")
        text = f"{rate:.2f} steps/s" + ("" if loss is None else f"  loss {loss:.4f}")
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.perf_counter() - self._told > 15 or step == trainer.max_steps:
            self._told = time.perf_counter()
            left = (trainer.max_steps - step) / rate
            print(f"step {step}/{trainer.max_steps}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar, also when training ended with an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
