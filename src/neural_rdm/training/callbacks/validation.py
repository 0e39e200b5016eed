"""The validation loss of the averaged weights, with noise that is the same at every validation."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch

from neural_rdm.core.arguments import Count, checked
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.ema import averaged
from neural_rdm.training.callbacks.steps import StepCallback
from neural_rdm.training.held import data_of


@checked()
class Validation(StepCallback):
    """Logs `val/loss` (and its parts) every so many optimizer steps; nothing where the data have no validation split.

    It runs inside the training step's end, before the step's checkpoint is written, and not in Lightning's validation
    loop, which a run that is killed between the two would skip on resume.

    Args:
        every_n_steps: optimizer steps between two validations. A run that is longer than that validates after its last
            step, too. One that is extended later (`resume=DIR trainer.max_steps=N`) keeps this point in metrics.csv: a
            line that a run of N steps from the start lacks, and which changes no other.
    """

    def __init__(self, every_n_steps: Count = 5000) -> None:
        self.every_n_steps = every_n_steps
        self.last: dict[str, float] = {}

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Validate when it is due."""
        step = trainer.global_step
        if step % self.every_n_steps and not self.every_n_steps < step == trainer.max_steps:
            return
        data = data_of(trainer)
        size = data.val_size
        if size == 0:
            return
        sums: dict[str, torch.Tensor] = {}
        count = torch.zeros((), dtype=torch.float64)
        pl_module.eval()
        with averaged(trainer, pl_module.net), torch.no_grad(), trainer.precision_plugin.val_step_context():
            for batch in data.val_dataloader():
                batch = data.transfer_batch_to_device(batch, pl_module.device, 0)
                real = batch["position"] < size  # the rest fills up the ranks to equally many samples
                for name, values in pl_module.validation_step(batch).items():
                    kept = values.double().cpu()[real].sum()
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + kept
                count += real.sum()
        pl_module.train()
        totals = parallel.sum_over_ranks(torch.stack([count, *sums.values()]).to(pl_module.device)).tolist()
        self.last = {f"val/{name}": total / totals[0] for name, total in zip(sums, totals[1:], strict=True)}
        lost = [name for name, value in self.last.items() if not math.isfinite(value)]
        if lost and trainer.is_global_zero:
            print(
                f"step {step}: {lost[0]} is not finite, for the averaged weights that samples are drawn with",
                flush=True,
            )
        for logger in trainer.loggers:
            logger.log_metrics(self.last, step=step)
