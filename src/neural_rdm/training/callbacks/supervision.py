"""Supervises the gains of all residual units while a network trains (paper, Sec. 3.3)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from neural_rdm.core.errors import ConfigError
from neural_rdm.dynamics.probe import probe, stream_overlaps
from neural_rdm.dynamics.supervision import Target, check_supervision, sensitivity_loss, supervise
from neural_rdm.residual import Unit
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.logging import Metrics
from neural_rdm.training.callbacks.steps import Order
from neural_rdm.training.held import callbacks_of
from neural_rdm.training.scaling import loss_scale


class Measurement:
    """What the taps of all units collect during one optimizer step, from the first micro-batch to `read`.

    Args:
        branches: measure what supervision needs: four norms a unit, and the overlaps of gates on the stream.
    """

    def __init__(self, pl_module: Any, branches: bool) -> None:
        self._stack = ExitStack()
        self._rows = self._stack.enter_context(probe(pl_module.net, branches))
        self._overlaps = self._stack.enter_context(stream_overlaps(pl_module.net)) if branches else {}

    def close(self) -> None:
        """Switch the taps off."""
        self._stack.close()

    def read(self, trainer: pl.Trainer) -> tuple[Tensor, dict[Unit, tuple[Tensor, ...]]]:
        """Switch the taps off; squared norms [units, 2 or 4] of the gradient of the loss averaged over the whole global
        batch, and the overlaps of that gradient by unit, where they were measured. Every rank must call it.

        They are summed over micro-batches (whose losses Lightning has divided by their number) and ranks, and divided
        by the squares of the loss scale and of the number of ranks, since each rank averages over its share only.
        """
        self.close()
        rows = self._rows.grad
        assert rows is not None, "no unit of the network was reached by the backward pass"
        found = {unit: [leaf.grad for leaf in leaves] for unit, leaves in self._overlaps.items()}
        grads = {unit: [g for g in each if g is not None] for unit, each in found.items() if each[0] is not None}
        parts = [rows, *(grad for each in grads.values() for grad in each)]
        flat = parallel.sum_over_ranks(torch.cat([part.flatten() for part in parts]))  # one message for all
        copies = parallel.copies(trainer)
        flat *= copies / (trainer.world_size * loss_scale(trainer, flat)) ** 2
        pieces = flat.split([part.numel() for part in parts])
        whole = iter(piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True))
        return next(whole), {unit: tuple(next(whole) for _ in each) for unit, each in grads.items()}


class Tapped(pl.Callback):
    """A callback whose taps are off again, and which forgets a step that was not finished, however training ends."""

    def drop(self, pl_module: Any) -> None:
        """Switch the taps off: nothing of this step counts in another."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """A step was interrupted."""
        self.drop(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Training is over."""
        self.drop(pl_module)


class Supervision(Tapped):
    """Adds the gradient of `gamma * L_sens` to the gates before every optimizer step and logs `train/sens_loss`.

    It runs after the backward pass and before clipping, on the norms of the whole global batch, so that gradient
    accumulation, loss scaling and any number of ranks give the same result. See `dynamics.supervision`.

    Args:
        gamma: weight of `L_sens` (the paper: 0.35).
        target: `isometry` (every gain to 1) or `floor` (only gains below 1).
        method: `local`, or `exact`: the gradient of `L_sens` through the whole network, to every parameter, by
            differentiating twice. That is the slow reference, for one process, one micro-step and eager networks: it
            runs the step once more.
    """

    order = Order.SUPERVISE

    def __init__(
        self, gamma: float = 0.35, target: Target = "isometry", method: Literal["local", "exact"] = "local"
    ) -> None:
        self.gamma, self.target, self.method = gamma, target, method
        self._batch: Any = None
        self._measurement: Measurement | None = None
        self._measured: tuple[Tensor, dict[Unit, tuple[Tensor, ...]]] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be supervised.

        Raises:
            ConfigError: a rule whose gains are measured only, or a strategy that hides the gates' gradients.
        """
        try:
            check_supervision(pl_module.net, self.gamma, self.target)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise ConfigError(
                f"gamma={self.gamma} with DeepSpeed: it keeps the gradients of the gates to itself; use strategy=fsdp2 "
                f"or strategy=ddp, or pass gamma=0"
            )

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Switch the taps on for all micro-steps of an optimizer step."""
        if self._measurement is None:
            self._measurement, self._measured = Measurement(pl_module, branches=True), None
        self._batch = batch if self.method == "exact" else None

    def drop(self, pl_module: Any) -> None:
        """Also forget the step's batch."""
        if self._measurement is not None:
            self._measurement.close()
        self._measurement = self._measured = self._batch = None

    def squared(self, trainer: pl.Trainer) -> Tensor:
        """This step's squared norms [units, 4], for every callback that asks; the first one to ask reads them."""
        return self._read(trainer)[0]

    def _read(self, trainer: pl.Trainer) -> tuple[Tensor, dict[Unit, tuple[Tensor, ...]]]:
        if self._measurement is not None:
            self._measured = self._measurement.read(trainer)
            self._measurement = None
        assert self._measured is not None, "asked for before the backward pass"
        return self._measured

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """All micro-batches are done: supervise."""
        squared, overlaps = self._read(trainer)
        if self.method == "exact":
            loss = self._supervise_exactly(trainer, pl_module)
        else:
            loss = supervise(pl_module.net, squared, self.gamma, self.target, overlaps)
        for metrics in callbacks_of(trainer, Metrics):
            metrics.add("sens_loss", loss * trainer.accumulate_grad_batches)  # one value for all micro-batches

    def _supervise_exactly(self, trainer: pl.Trainer, pl_module: Any) -> Tensor:
        """Add the gradient of gamma * L_sens through the whole network; returns L_sens []."""

        def run() -> Tensor:
            mean: Tensor = pl_module.losses(self._batch, "train", drop=True)["loss"].mean()  # the draws are keyed
            return mean

        with trainer.precision_plugin.forward_context():
            loss = sensitivity_loss(pl_module.net, run, self.target)
        (self.gamma * loss).backward()
        return loss.detach()
