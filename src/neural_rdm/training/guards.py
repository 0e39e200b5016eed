"""Callbacks that end a run well: after the step at SIGTERM or Ctrl-C, and at the first loss that is not finite."""

from __future__ import annotations

import math
import os
import signal
import threading
from typing import Any

import lightning.pytorch as pl
import torch

from neural_rdm.core.errors import UserError
from neural_rdm.training.steps import StepCallback


class StopOnSignal(StepCallback):
    """At SIGTERM or Ctrl-C: finish the optimizer step, save, stop. All ranks stop after the same step.

    Lightning's own handler ends with exit code 0 and saves nothing, and in a multi-process run it starts a collective
    call inside the signal handler. This one only sets a flag; the flags are compared at the end of each optimizer
    step. A second Ctrl-C stops at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.signal = signal.SIGTERM

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell would report it."""
        return 128 + self.signal

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning (which gives them back after fit)."""
        super().on_train_start(trainer, pl_module)
        owner = os.getpid()

        def handle(signum: int, frame: Any) -> None:
            if os.getpid() != owner:  # a forked loader process: its parent decides
                return
            if self.received and signum == signal.SIGINT:
                raise KeyboardInterrupt
            if not self.received:
                self.received, self.signal = True, signal.Signals(signum)
                if trainer.strategy.launcher is not None:
                    trainer.strategy.launcher.kill(signal.SIGTERM)  # pass it on to the ranks that this process started

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handle)
            signal.signal(signal.SIGINT, handle)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a whole optimizer step, never between micro-steps; `Checkpoints`, which runs later, saves it."""
        if trainer.world_size > 1:
            self.received = trainer.strategy.reduce_boolean_decision(self.received, all=False)
        if self.received:
            trainer.should_stop = True


class FiniteLoss(pl.Callback):
    """Stops the run with one clear message when the loss is not finite, naming the first parameter that is not.

    Looks only at steps that are logged or about to be saved, so that ordinary steps do not wait for the device and no
    checkpoint is made of what is lost already.

    Args:
        metrics: the callback that adds up the losses.
        every_n_steps: optimizer steps between two checkpoints.
    """

    def __init__(self, metrics: Any, every_n_steps: int) -> None:
        self.metrics, self.every_n_steps = metrics, every_n_steps

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Check the row that was just logged and, before a checkpoint, what has been added up since."""
        loss = self.metrics.last.get("train/loss", 0.0)
        if math.isfinite(loss) and "loss" in self.metrics.sums and trainer.global_step % self.every_n_steps == 0:
            loss = self.metrics.sums["loss"].item()
        if math.isfinite(loss):
            return
        broken = next((n for n, p in pl_module.named_parameters() if not torch.isfinite(p).all()), None)
        where = f"the first parameter that is not finite is {broken}" if broken else "all parameters are still finite"
        raise UserError(
            f"the loss became {loss} at step {trainer.global_step}; {where}. Start a new run with a lower "
            "optimizer.lr, with optimizer.clip=1.0 or trainer.precision=32-true; resuming this one would repeat it."
        )
