"""What a run writes down while it trains: metrics.csv (reproducible) and throughput.csv (wall clock)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.records import StepRecords
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.steps import Order, StepCallback
from neural_rdm.training.held import data_of


class CSVLogger(Logger):
    """`metrics.csv` in the run folder: one row a logged step, without wall-clock columns; a resumed run appends.

    Metrics of one step that arrive in several calls share a row.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._records = StepRecords(Path(save_dir) / "metrics.csv")
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: the run folder."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Collect the metrics of `step`; rows of earlier steps go to disk."""
        if getattr(pl.utilities.rank_zero_only, "rank", 0) != 0:
            return
        if self._row and self._row["step"] != step:
            self.save()
        self._row = {"step": step, **self._row, **metrics}

    def save(self) -> None:
        """Write the pending row."""
        if self._row:
            self._records.append([self._row])
            self._row = {}

    def finalize(self, status: str) -> None:
        """Write the pending row."""
        self.save()


class Metrics(StepCallback):
    """Mean losses since the last row, the gradient's norm and the learning rate, in one call every `every_n_steps`.

    Sums stay on the device between rows, so an ordinary step does not wait for it, and they are part of the checkpoint,
    so that a resumed run logs the same means.
    """

    order = Order.MEASURE

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.sums: dict[str, Tensor] = {}
        self.count = 0
        self.grad_norm: Tensor | None = None
        self.last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The unfinished means, over all ranks (every rank calls this when a checkpoint is made)."""
        world = parallel.processes()
        if world > 1 and self.sums:
            totals = parallel.sum_over_ranks(torch.stack(list(self.sums.values()))) / world
            self.sums = dict(zip(self.sums, totals.unbind(), strict=True))
        return {"sums": dict(self.sums), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the unfinished means."""
        self.sums, self.count = {k: v.clone() for k, v in state["sums"].items()}, state["count"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move restored sums to the device."""
        super().on_train_start(trainer, pl_module)
        self.sums = {k: v.to(pl_module.device) for k, v in self.sums.items()}

    def add(self, name: str, value: Tensor) -> None:
        """Let a value [] of this micro-batch count in the mean that is logged as `train/name`."""
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value

    def _due(self, step: int, trainer: pl.Trainer) -> bool:
        return step % self.every_n_steps == 0 or step == trainer.max_steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Measure the gradient (before clipping) of the steps that are logged."""
        if self._due(trainer.global_step + 1, trainer):
            self.grad_norm = parallel.gradient_norm(pl_module.net)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Add a micro-batch."""
        for name, value in outputs.items():
            # Lightning hands back the loss divided by the number of micro-steps; the parts are means of the
            # micro-batch.
            self.add(name, value.detach() * (trainer.accumulate_grad_batches if name == "loss" else 1))
        self.count += 1
        super().on_train_batch_end(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log if a row is due."""
        if not self._due(trainer.global_step, trainer):
            return
        totals = parallel.sum_over_ranks(torch.stack(list(self.sums.values()))) / (self.count * trainer.world_size)
        row = {f"train/{name}": value for name, value in zip(self.sums, totals.tolist(), strict=True)}
        if self.grad_norm is not None:
            row["train/grad_norm"] = self.grad_norm.item()
        # The schedule has moved on to the next step by now; what it used is its previous value.
        row["lr"] = self.lr_of_last_step(trainer)
        self.sums, self.count, self.grad_norm = {}, 0, None
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        self.last = row

    @staticmethod
    def lr_of_last_step(trainer: pl.Trainer) -> float:
        """The network's learning rate in the optimizer step that has just been done."""
        module: Any = trainer.lightning_module
        return module.optimizer.lr * module.optimizer.factor(trainer.global_step - 1, module.max_steps)


@checked()
class Throughput(pl.Callback):
    """`throughput.csv`: samples a second, seconds a step, peak device memory: what no two runs agree on.

    Args:
        every_n_steps: optimizer steps between two rows.
    """

    columns = ("step", "samples_per_second", "seconds_per_step", "peak_memory_gib")

    def __init__(self, every_n_steps: Count = 50) -> None:
        self.every_n_steps = every_n_steps
        self._records: StepRecords | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if trainer.is_global_zero:
            self._records = StepRecords(Path(trainer.default_root_dir) / "throughput.csv", self.columns)
        self._mark(trainer)

    def _mark(self, trainer: pl.Trainer) -> None:
        self._step, self._time = trainer.global_step, time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Write a row when one is due."""
        steps = trainer.global_step - self._step
        if self._records is None or steps == 0 or trainer.global_step % self.every_n_steps:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - self._time) / steps
        batch = data_of(trainer).batch_size
        memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
        row = (trainer.global_step, batch / seconds, seconds, memory)
        self._records.append([dict(zip(self.columns, row, strict=True))])
        self._mark(trainer)
