"""What a run writes down while it trains: metrics.csv (reproducible) and throughput.csv (wall clock)."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor

from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import ConfigError, first_line
from neural_rdm.core.peaks import peak_tflops
from neural_rdm.core.ranks import parts
from neural_rdm.core.records import StepRecords
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.steps import Order, StepCallback
from neural_rdm.training.held import data_of
from neural_rdm.training.memory import Memory, check_room, memory, of_one_device, room
from neural_rdm.training.together import Imagined


class CSVLogger(Logger):
    """`metrics.csv` in the run folder: one row a logged step, without wall-clock columns; a resumed run appends.

    Metrics of one step that arrive in several calls share a row.
    """

    def __init__(self, save_dir: str | Path) -> None:
        super().__init__()
        self._save_dir = Path(save_dir)
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

    @functools.cached_property
    def _records(self) -> StepRecords:
        """Opened, and so repaired where it is damaged, by who logs and not by who is only built."""
        return StepRecords(self._save_dir / "metrics.csv")

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
    """`throughput.csv`: what no two runs agree on, a row every so many steps, and a line in the end.

    | column | holds |
    |---|---|
    | `samples_per_second`, `seconds_per_step` | of all ranks together, since the last row |
    | `peak_memory_gib` | of this device, empty on a CPU |
    | `tflops` | TFLOP/s of one device, three forward passes a sample (`backbones.counting`) |
    | `mfu` | `tflops` over what the device can do (`core.peaks`); empty for one that is not listed |
    | `waiting` | share of the time that lies between two steps: for data, and for callbacks behind this one |

    What is computed twice to save memory is not counted.

    Args:
        every_n_steps: optimizer steps between two rows.
    """

    columns = ("step", "samples_per_second", "seconds_per_step", "peak_memory_gib", "tflops", "mfu", "waiting")

    def __init__(self, every_n_steps: Count = 50) -> None:
        self.every_n_steps = every_n_steps
        self._records: StepRecords | None = None
        self._flops: int | None = None
        self._peak: float | None = None
        self._rows: list[dict[str, Any]] = []
        self.said = ""  # the last row, for the bar

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Count, while the network is whole: blocks that are sharded gather their weights wherever they run; and say so
        where a step does not fit into the memory.

        Raises:
            ConfigError: one process alone needs far more than there is.
        """
        if stage == "fit" and trainer.is_global_zero:
            self._flops = self._counted(pl_module)
        if stage == "fit" and self._flops is not None and (said := self._too_large(trainer, pl_module, self._flops)):
            print(said, flush=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        if trainer.is_global_zero:
            self._records = StepRecords(Path(trainer.default_root_dir) / "throughput.csv", self.columns)
            if torch.cuda.is_available():
                self._peak = peak_tflops(torch.cuda.get_device_name(), str(trainer.precision))
        self._rows = []
        self._mark(trainer)
        self._ended = time.perf_counter()

    @staticmethod
    def _counted(module: pl.LightningModule) -> int | None:
        """FLOPs of a step for one sample; None for a network that only computes with values."""
        from neural_rdm.backbones.counting import flops

        text = getattr(module, "text", None)
        try:
            return 3 * flops(cast(Any, module).net, getattr(text, "max_length", None), backward=False)
        except Exception as error:  # of a network of one's own: nobody's training ends for a number
            print(f"FLOPs are not counted: {first_line(error)}", flush=True)
            return None

    @staticmethod
    def _too_large(trainer: pl.Trainer, module: Any, flops: int) -> str:
        """See `memory.check_room`; nothing is counted where so few products cannot fill the memory."""
        from neural_rdm.backbones.counting import held_by_batch

        strategy, (shared, _) = trainer.strategy, parts(trainer)
        batch = data_of(trainer).batch_size // (shared * trainer.accumulate_grad_batches)
        has = room(strategy.root_device)
        if batch * flops < has:
            return ""
        tokens, half = getattr(module.text, "max_length", None), str(trainer.precision) != "32-true"
        groups = Imagined(parallel.copies(trainer)), Imagined(getattr(strategy, "context", 1))
        try:
            net = of_one_device(module.net, module.activation_checkpointing, *groups)
            found = held_by_batch(net, tokens, half, backward=False)
        except ConfigError:
            return ""  # a network that cannot be shared out: each rank finds out when it comes to it
        except Exception as error:  # as where FLOPs are counted
            print(f"memory is not counted: {first_line(error)}", flush=True)
            return ""

        def needed(samples: int) -> Memory:
            true = str(trainer.precision) == "bf16-true"
            shards, reshards = getattr(strategy, "shards", 1), getattr(strategy, "reshard_after_forward", True)
            return memory(net, module.optimizer, 1, found(samples), shards, half, true, reshards)

        try:
            return check_room(needed, batch, has)
        except ConfigError as error:
            if trainer.world_size == 1:
                raise
            return str(error)  # the other ranks do not know of it, and would wait

    def _mark(self, trainer: pl.Trainer) -> None:
        self._step, self._time, self._waited = trainer.global_step, time.perf_counter(), 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """The batch is here."""
        self._waited += time.perf_counter() - self._ended

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Write a row when one is due."""
        steps = trainer.global_step - self._step
        if self._records is not None and steps and trainer.global_step % self.every_n_steps == 0:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            passed = time.perf_counter() - self._time
            seconds = passed / steps
            rate = data_of(trainer).batch_size / seconds
            memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
            tflops = None if self._flops is None else self._flops * rate / trainer.world_size / 1e12
            mfu = tflops / self._peak if tflops is not None and self._peak else None
            values = (trainer.global_step, rate, seconds, memory, tflops, mfu, self._waited / passed)
            self._rows.append(dict(zip(self.columns, values, strict=True)))
            self._records.append(self._rows[-1:])
            waited = self._waited / passed  # short: the rest stands in the file
            said = ["" if mfu is None else f"{mfu:.0%} MFU", f"{waited:.0%} waiting" if waited > 0.05 else ""]
            self.said = ", ".join(filter(None, said))
            self._mark(trainer)
        self._ended = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say what this process did: medians over the rows, the first left out where there are others."""
        rows = self._rows[1:] or self._rows
        if not rows:
            return

        def median(name: str) -> float | None:
            values = [row[name] for row in rows if row[name] is not None]
            return statistics.median(values) if values else None

        waiting, rate = median("waiting"), median("samples_per_second")
        assert rate is not None
        said = _said(rate, median("tflops"), median("mfu"), rows[-1]["peak_memory_gib"])
        print(f"throughput: {said}, {waiting:.0%} of the time between steps", flush=True)


def _said(rate: float, tflops: float | None, mfu: float | None, memory: float | None) -> str:
    """Samples a second, and what of the rest is known, in words."""
    parts = [f"{rate:,.3g} samples/s"]
    if tflops is not None:
        parts.append(f"{tflops:.3g} TFLOP/s a device")
    if mfu is not None:
        parts.append(f"{mfu:.0%} of what it can do")
    if memory:
        parts.append(f"{memory:.1f} GiB at most")
    return ", ".join(parts)
