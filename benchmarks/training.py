"""One run of a study inside this process: trained, measured and forgotten, without the files of a run folder."""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from omegaconf import DictConfig

from neural_rdm.config.check import validate
from neural_rdm.core.errors import UserError, first_line
from neural_rdm.data.base import DataModule
from neural_rdm.runs import build
from neural_rdm.training.callbacks.ema import averaged
from neural_rdm.training.callbacks.guards import StopOnSignal
from neural_rdm.training.drawing import subject_of
from neural_rdm.training.held import callbacks_of
from neural_rdm.training.module import NeuralRDM

VAL_DRAWS, VAL_SEED = 4, 1_000  # timesteps and noises of every held-out sample, the same for every run
Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A run whose last step is done, its raw weights in the network.

    Attributes:
        cfg: of the run; only its callback `ema` was there.
        module: with the network.
        data: set up.
        trainer: with the averages of the weights.
    """

    cfg: DictConfig
    module: NeuralRDM
    data: DataModule
    trainer: pl.Trainer


Measure = Callable[[Trained], Row]


def train(cfg: DictConfig, *measures: Measure, during: Mapping[int, Measure] | None = None) -> Row:
    """Train one network; its number of parameters, mean training loss of the last tenth of the steps, milliseconds of
    CPU time a step (median) and seconds of CPU time of all, and what `measures` find.

    Args:
        cfg: of `neural_rdm.train`; its callbacks but `ema` are left out.
        measures: what is asked of the run at its end.
        during: step -> what is asked of the run behind it, outside of its times and random state.

    Returns:
        The numbers by name, and `broken`: why there are none where the loss was not finite, else "".

    Raises:
        SystemExit: a signal asks to stop; the run is begun anew next time.
    """
    validate(cfg)  # which fills in what files leave to a class's own default
    cfg.callbacks = {"ema": cfg.callbacks.ema}
    data = build.data(cfg)
    data.setup()
    module = build.module(cfg, data.space)
    row: Row = {"parameters": sum(p.numel() for p in module.net.parameters())}
    with tempfile.TemporaryDirectory() as folder:
        trainer = build.trainer(cfg, Path(folder))
        run = Trained(cfg, module, data, trainer)
        clock = Clock(module)
        if during:
            trainer.callbacks.append(_During(run, during, row, clock))  # type: ignore[attr-defined]  # Trainer has it
        try:
            trainer.fit(module, datamodule=data)
        except UserError as error:
            return row | {"broken": first_line(error)}
        (stop,) = callbacks_of(trainer, StopOnSignal)
        if stop.received:
            raise SystemExit(stop.exit_code)
        row |= {"train_loss": clock.loss(), "step_ms": clock.step_ms(), "cpu_s": round(clock.seconds(), 2)}
        for measure in measures:
            row |= measure(run)
    return row | {"broken": ""}


class _During(pl.Callback):
    """Asks a run in the middle of its training."""

    def __init__(self, run: Trained, asked: Mapping[int, Measure], row: Row, clock: Clock) -> None:
        self.run, self.asked, self.row, self.clock = run, asked, row, clock

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Behind a step of which something is asked."""
        step = trainer.global_step
        if step not in self.asked:
            return
        with self.clock.stopped(), torch.random.fork_rng():
            self.row |= {f"{name}_{step}": value for name, value in self.asked[step](self.run).items()}
        self.run.module.net.zero_grad()


class Clock:
    """Losses and CPU seconds of the training steps of a module."""

    def __init__(self, module: NeuralRDM) -> None:
        self.losses: list[float] = []
        self.at: list[float] = []
        self.paused = 0.0
        step = module.training_step

        def timed(batch: Any, batch_idx: int) -> Any:
            self.at.append(time.process_time() - self.paused)
            result = step(batch, batch_idx)
            self.losses.append(result["loss"].item())
            return result

        module.training_step = timed  # type: ignore[method-assign]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside is in no time of these."""
        began = time.process_time()
        yield
        self.paused += time.process_time() - began

    def loss(self) -> float:
        """The mean training loss of the last tenth of the steps."""
        return statistics.fmean(self.losses[-(len(self.losses) // 10) :])

    def step_ms(self) -> float:
        """Milliseconds of CPU time from the beginning of a step to that of the next, the median."""
        return 1e3 * statistics.median(b - a for a, b in zip(self.at, self.at[1:], strict=False))

    def seconds(self) -> float:
        """CPU seconds from the first step to the beginning of the last."""
        return self.at[-1] - self.at[0]


@torch.no_grad()
def held_out(run: Trained) -> Row:
    """`val_loss` and `val_mse` of the averaged weights: all held-out samples at the same timesteps and under the same
    noise for every run.
    """
    module = run.module
    with averaged(run.trainer, module.net):
        module.eval()
        own, module.seed = module.seed, VAL_SEED
        batches = list(run.data.val_dataloader())
        whole: Any = {key: _joined([batch[key] for batch in batches]) for key in batches[0]}
        parts = [module.losses(whole, f"first look {draw}", drop=False) for draw in range(VAL_DRAWS)]
        module.seed = own
    return {
        f"val_{key}": torch.cat([part[key] for part in parts]).double().mean().item()
        for key in ("loss", "mse")
        if key in parts[0]
    }


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else [text for part in parts for text in part]


def report(*names: str) -> Measure:
    """A measure: these numbers of the configured metric, for samples that the averaged weights draw."""

    def measure(run: Trained) -> Row:
        with averaged(run.trainer, run.module.net):
            metric = build.build(run.cfg.metric, "metric")
            sampler = build.build(run.cfg.sampler, "sampler")
            found = metric.rows(subject_of(run.trainer, run.module, sampler, "ema", progress=False))[0][0]
        return {name: found[name] for name in names}

    return measure


def machine() -> str:
    """What decides the last bits of a run: runs of one seed are compared in pairs, and must share it."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
