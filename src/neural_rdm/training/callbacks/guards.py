"""Callbacks that end a run well: after the step at a signal, and at a loss or gradient that is not finite."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from neural_rdm.core.errors import UserError
from neural_rdm.core.extras import typed
from neural_rdm.core.signals import Stopped, catch, say, stop
from neural_rdm.residual import units
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.steps import Order, StepCallback
from neural_rdm.training.launching import Launcher
from neural_rdm.training.scaling import scaler_of


class StopOnSignal(StepCallback):
    """At SIGTERM, Ctrl-C or a closed terminal: finish the optimizer step, save, stop. All ranks stop after the same
    step.

    Lightning's own handler ends with exit code 0 and saves nothing, and in a multi-process run it starts a collective
    call inside the signal handler. This one only sets a flag; the flags are compared at the end of each optimizer
    step. A second Ctrl-C stops at once, and so does a second SIGTERM; one that comes with the first, since the whole
    group of processes was sent it, is the first.
    """

    order = Order.WATCH
    #: seconds in which a second SIGTERM is the first one, on another way
    together = 1.0

    def __init__(self) -> None:
        self.received = False
        self.signal = signal.SIGTERM
        self._since = 0.0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell would report it."""
        return Stopped(self.signal).exit_code

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from the command and from Lightning (which gives them back after fit)."""
        super().on_train_start(trainer, pl_module)

        def handle(number: signal.Signals) -> None:
            late = time.monotonic() - self._since > self.together
            if self.received and (number == signal.SIGINT or (number == signal.SIGTERM and late)):
                stop(number)
            if not self.received:
                self.received, self.signal, self._since = True, number, time.monotonic()
                if trainer.is_global_zero:
                    say(f"\n{number.name}: waiting for this step, which is then saved; again to stop at once\n")
                if isinstance(launcher := trainer.strategy.launcher, Launcher):
                    launcher.asked = number
                if launcher is not None:
                    launcher.kill(signal.SIGTERM)  # pass it on to the ranks that this process started

        catch(handle)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after a whole optimizer step, never between micro-steps; `Checkpoints`, which runs later, saves it."""
        if trainer.world_size > 1:
            self.received = trainer.strategy.reduce_boolean_decision(self.received, all=False)
        if self.received:
            trainer.should_stop = True


#: so many overflows in a row under a loss scale are no matter of the scale any more: it has been halved each time
OVERFLOWS = 32


class FiniteSteps(StepCallback):
    """Leaves out every optimizer step whose loss or gradient is not finite, and stops the run at one too many.

    A step that is left out changes no weight, no moment of the optimizer and no average (see `EMA`); everywhere else it
    counts as a step. Which steps these are is found out on the device, and all ranks agree on it. The host looks at
    once where the device is a CPU; elsewhere with every logged row and before every checkpoint, so that no step waits.

    Under a loss scale (16-mixed) some gradients overflow, and the scaler leaves their steps out and lowers the scale:
    there only a loss that is not finite counts, or `OVERFLOWS` such steps in a row.

    Args:
        every_n_steps: optimizer steps between two logged rows.
        allowed: so many of the run's steps may be left out; one more stops it.
    """

    order = Order.WATCH

    def __init__(self, every_n_steps: int, allowed: int = 0) -> None:
        self.every_n_steps, self.allowed = every_n_steps, allowed
        self.left_out = 0  # steps of this run, as far as the host has looked
        self.kept: Tensor | None = None  # [] 1.0, or 0.0 where the step that has just been done was left out
        self._loss: Tensor | None = None  # sum of the losses of this step's micro-batches
        self._found: dict[str, Tensor] = {}  # what was left out since the host has looked last

    def state_dict(self) -> dict[str, Any]:
        """How many steps were left out, so that a resumed run counts on."""
        return {"left_out": self.left_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on."""
        self.left_out = state["left_out"]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Add up the losses of the micro-batches."""
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """All micro-batches are done and all callbacks have changed the gradients: leave the step out if it is bad."""
        gradients = [p.grad for p in _parameters(optimizer)]
        assert self._loss is not None
        nothing = torch.zeros_like(self._loss)
        norms = parallel.norms([self._loss, *(nothing if g is None else g for g in gradients)])
        pl_module.gradient_norms = norms[1:]
        wrong = parallel.not_finite(norms)
        bad, self._loss = wrong.amax(), None
        self.kept = 1.0 - bad
        if not self._found:
            self._found = {"new": torch.zeros_like(bad), "streak": torch.zeros_like(bad), "step": bad, "wrong": wrong}
        found, counted = self._found, bad
        found["streak"] = (found["streak"] + 1.0) * bad
        if scaler_of(trainer) is None:
            optimizer.found_inf = bad  # what GradScaler would set: the fused step then changes nothing
        else:
            counted = torch.maximum(wrong[0], (found["streak"] >= OVERFLOWS).float())
        first = (counted > 0) & (found["new"] == 0)
        found["wrong"] = torch.where(first, wrong, found["wrong"])
        found["step"] = torch.where(first, float(trainer.global_step + 1), found["step"])
        found["new"] = found["new"] + counted
        if _reads_at_once(pl_module.device):
            self.look(trainer, pl_module)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look with every logged row."""
        if trainer.global_step % self.every_n_steps == 0 or trainer.global_step == trainer.max_steps:
            self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Wait for the device and tell of the steps that were left out; every rank must call it.

        Raises:
            UserError: they are more than `allowed`.
        """
        new = int(self._found["new"]) if self._found else 0
        if not new:
            return
        self._found["new"].zero_()
        self.left_out += new
        loss, *wrong = self._found["wrong"].tolist()
        named = [name for name, bad in zip(self._names(pl_module), wrong, strict=True) if bad]
        what = _told(int(self._found["step"]), bool(loss), _in_run_order(pl_module.net, named))
        if self.left_out <= self.allowed:
            rank_zero_only(print)(f"{what} That makes {self.left_out} of {self.allowed} allowed.", flush=True)
            return
        parallel.refuse(UserError(f"{what} {_advice(trainer, pl_module, self.left_out)}"))

    @staticmethod
    def _names(pl_module: pl.LightningModule) -> list[str]:
        """The optimizer's parameters by name, in its order."""
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        return [names[id(parameter)] for parameter in _parameters(pl_module.optimizers(use_pl_optimizer=False))]


def _reads_at_once(device: torch.device) -> bool:
    return device.type == "cpu"


def _parameters(optimizer: Any) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _told(step: int, loss: bool, named: Sequence[str]) -> str:
    """What was wrong with a step, in one sentence."""
    if not named:
        return f"optimizer step {step} was left out: its loss is not finite, though its gradient is."
    where = f"in {named[0]}"
    if len(named) > 1:
        where = f"in {len(named)} parameters, the first of them {named[0]}, the one nearest to the loss {named[-1]}"
    what = "loss and gradient are" if loss else "loss is finite, but its gradient is"
    return f"optimizer step {step} was left out: its {what} not finite ({where})."


def _advice(trainer: pl.Trainer, pl_module: Any, left_out: int) -> str:
    """How to go on after too many steps without a finite gradient; every rank must call it."""
    new = "start a new run with a lower optimizer.lr, with optimizer.clip=1.0 or trainer.precision=32-true"
    names, weights = zip(*pl_module.named_parameters(), strict=True)
    wrong = parallel.not_finite(parallel.norms(weights, order=math.inf))
    broken = [name for name, bad in zip(names, wrong.tolist(), strict=True) if bad]
    saved = last_saved(trainer)
    kept = f"The last checkpoint is that of step {saved}" if saved else "No checkpoint has been saved yet"
    if broken:
        return f"The weights are not finite any more (first {broken[0]}). {kept}; resuming would repeat this: {new}."
    skip = f"optimizer.skip_nonfinite={left_out}"
    resume = f"{typed('resume', Path(trainer.default_root_dir))} {skip} goes on from there without it"
    return f"The weights are still those before that step. {kept}: {resume if saved else f'pass {skip}'}; or {new}."


def last_saved(trainer: pl.Trainer) -> int | None:
    """The step of the run's newest checkpoint; None where there is none yet."""
    folder = getattr(trainer.checkpoint_callback, "folder", None)
    steps = [int(path.stem.removeprefix("step=")) for path in folder.glob("step=*.ckpt")] if folder else []
    return max(steps, default=None)


def _in_run_order(net: torch.nn.Module, names: Sequence[str]) -> list[str]:
    """Some of a network's parameters (`net.NAME`) by the place of their unit in the run, then by registration.

    What belongs to no unit stands before or behind all of them, as it is registered.
    """
    order = [name.split(".") for name, _ in units(net)]
    places: dict[str, int] = {}
    outside = -1
    for name in dict(net.named_parameters()):
        shared = [len(os.path.commonprefix([unit, name.split(".")])) for unit in order]
        if most := max(shared, default=0):
            outside = len(order)
        places[f"net.{name}"] = max(i for i, n in enumerate(shared) if n == most) if most else outside
    return sorted(names, key=lambda name: places.get(name, len(order)))
