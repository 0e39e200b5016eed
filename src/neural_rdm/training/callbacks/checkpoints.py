"""Checkpoints that survive a kill at any moment, and finding the newest one that can be read."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import CheckpointIO

from neural_rdm.config.provenance import KEY
from neural_rdm.core import sharded
from neural_rdm.core.errors import CheckpointError, ConfigError, WriteError
from neural_rdm.core.files import link_atomically, load_tensors, remove, save_tensors
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.sharded import Keys, mapped
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.guards import FiniteSteps, last_saved
from neural_rdm.training.callbacks.steps import Order
from neural_rdm.training.held import callbacks_of

log = logging.getLogger(__name__)
_NAME = re.compile(r"step=(\d+)\.ckpt")


class StreamedCheckpointIO(CheckpointIO):
    """Writes a checkpoint straight to a temporary file (or folder) beside its target, syncs and renames it.

    Lightning's own writer assembles the whole file in memory and moves it from the temporary folder, which is not
    atomic across file systems. Reading maps the file and never runs code from it.

    Args:
        sharded: write a folder (see `core.sharded`), each rank of a sharded network its own parts, instead of one file.
        background: return as soon as the content is copied to the memory of the host; a thread writes the copy.

    Raises:
        ConfigError: this torch cannot do that.
    """

    def __init__(self, sharded: bool = False, background: bool = False) -> None:
        self.sharded, self.background = sharded, background
        try:  # now, and not in the middle of a run
            if sharded:
                from torch.distributed.checkpoint import HuggingFaceStorageWriter  # noqa: F401
            if background:
                from torch.distributed.checkpoint.staging import DefaultStager  # noqa: F401
        except ImportError as error:
            raise ConfigError(f"checkpoint.sharded and checkpoint.async need a newer torch ({error})") from error
        self._thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._jobs: list[Future[None]] = []
        self._group: Any = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path` atomically, once what was being written is written. Every rank that holds a part
        of it must call this; of others the first one."""
        self.wait()
        write: Callable[[dict[str, Any]], None] = partial(save_tensors, path)
        if self.sharded:
            checkpoint = mapped(checkpoint, lambda _, tensor: sharded.in_one_piece(tensor))  # now, and not in a thread
            write = partial(sharded.save, Path(path), group=self._group_of(checkpoint))
        else:
            checkpoint = mapped(checkpoint, _gathered)
            if not is_first_rank():
                return
        if self._thread is not None:
            from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

            stager: Any = DefaultStager(StagingOptions(False, False, False, False))
            checkpoint = stager.stage(checkpoint)
            stager.close()
        self.then(partial(write, checkpoint))

    def _group_of(self, checkpoint: dict[str, Any]) -> Any:
        """The processes that hold the parts of a sharded checkpoint, over CPUs, where a thread can use it beside the
        training; None where this one holds all."""
        if not any(hasattr(tensor, "device_mesh") for tensor in checkpoint["state_dict"].values()):
            return None
        self._group = self._group or torch.distributed.new_group(backend="gloo")
        return self._group

    def then(self, job: Callable[[], None]) -> None:
        """Do something once what is being written is written. What goes wrong is raised by `wait`, in which every rank
        can be told of it: here the others wait for this one in Lightning's barrier.
        """
        if self._thread is not None:
            self._jobs.append(self._thread.submit(job))
            return
        done: Future[None] = Future()
        self._jobs.append(done)
        try:
            job()
            done.set_result(None)
        except WriteError as error:
            done.set_exception(error)

    def wait(self) -> None:
        """Wait for what is being written, and raise what has gone wrong there."""
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = True, like: sharded.Like = sharded.whole
    ) -> dict[str, Any]:
        """Read a checkpoint, a file's tensors memory-mapped on the CPU.

        Only the optimizer keeps the tensors that it is given instead of copying them: its state is copied here, so that
        nothing depends on the file once training goes on.

        Args:
            like: names the sharded tensor as which one of the checkpoint is laid out (see `core.sharded.load`).
        """
        if Path(path).is_dir():
            return sharded.load(Path(path), like)
        checkpoint = load_tensors(path)
        checkpoint["optimizer_states"] = mapped(
            checkpoint.get("optimizer_states", []), lambda _, tensor: tensor.clone()
        )
        return sharded.placed(checkpoint, like)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint if it is there."""
        remove(Path(path))


def _gathered(keys: Keys, tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded tensor on the first rank's CPU, of which the others keep nothing."""
    if not hasattr(tensor, "device_mesh"):
        return tensor
    whole = parallel.full(tensor)
    return whole.cpu() if is_first_rank() else whole.new_empty(0)


class Checkpoints(Checkpoint):
    """Saves `checkpoints/step=N.ckpt` at intervals and at the end; `last.ckpt` is the newest one's second name.

    Lightning runs checkpoint callbacks after all others, so a checkpoint holds, and comes after, everything that
    belongs to its step: EMA update, metrics row, validation, samples.

    Args:
        folder: the run's `checkpoints` folder.
        every_n_steps: optimizer steps between two checkpoints.
        keep: how many step checkpoints stay.
        config_hash: stands in every checkpoint, see `config.provenance.config_hash`; None for none.
    """

    order = Order.SAVE

    def __init__(self, folder: Path, every_n_steps: int, keep: int, config_hash: str | None = None) -> None:
        self.folder, self.every_n_steps, self.keep, self.config_hash = folder, every_n_steps, keep, config_hash
        self._saved = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A resumed run need not write again what it was started from, whoever wrote it."""
        for optimizer in trainer.optimizers:
            lay_out(optimizer)
        there = trainer.global_step > 0 and path_of(self.folder, trainer.global_step).exists()
        self._saved = trainer.global_step if there else -1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Save at multiples of `every_n_steps`, and where the run is about to stop: after the epoch's end Lightning's
        own counters would no longer be those of a step."""
        if trainer.global_step > 0 and (trainer.should_stop or trainer.global_step % self.every_n_steps == 0):
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step."""
        if trainer.global_step > 0:
            self.save(trainer)
        parallel.written(_io(trainer).wait)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do what was left undone by whoever saved the last step, and was killed or had no room right behind that: a
        run that is resumed at its end comes to no other hook.
        """
        path = path_of(self.folder, trainer.global_step)
        resumed = trainer.ckpt_path is not None and Path(trainer.ckpt_path) == path  # then it can be read
        if resumed and self._saved != trainer.global_step and trainer.is_global_zero:
            self._saved_is(path, alone=False)

    def save(self, trainer: pl.Trainer) -> None:
        """Save this step unless it is saved already; every rank must call it."""
        if trainer.global_step == self._saved:
            return
        for guard in callbacks_of(trainer, FiniteSteps):
            guard.look(trainer, trainer.lightning_module)  # what it has not told yet must not be saved
        self._saved = trainer.global_step
        for logger in trainer.loggers:
            logger.save()
        path = path_of(self.folder, trainer.global_step)
        io = _io(trainer)
        parallel.written(io.wait)  # for the one before
        trainer.save_checkpoint(path)
        if not io.background:
            parallel.written(io.wait)
        if trainer.is_global_zero:
            io.then(partial(self._saved_is, path))
        trainer.strategy.barrier("checkpoint")

    def _saved_is(self, path: Path, alone: bool = True) -> None:
        """A checkpoint is written: it becomes the last one, and older ones go; with `alone` later ones too."""
        if not path.exists():
            return  # writing it has failed, and is told where it is waited for
        link_atomically(path, self.folder / "last.ckpt")
        steps = sorted(self.folder.glob("step=*.ckpt"))
        # What lies after this step was passed over as damaged when the run was resumed; it must not count as kept.
        kept = [p for p in steps if p <= path][-self.keep :]
        for other in set(steps) - set(kept):
            if alone or other < path:
                remove(other)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the hash, and refuse to save weights, averages or moments that are not finite; all ranks agree.

        Raises:
            CheckpointError: some value is not finite. The checkpoints before stay as they are.
        """
        if self.config_hash is not None:
            checkpoint[KEY] = self.config_hash
        name = sick(checkpoint)
        if parallel.sum_over_ranks(torch.tensor(float(name is not None), device=pl_module.device)):
            saved = last_saved(trainer)
            kept = f"The last checkpoint is that of step {saved}" if saved else "There is no checkpoint before it"
            error = CheckpointError(
                f"step {trainer.global_step} is not saved: it holds values that are not finite (first {name}). {kept}; "
                "resuming would repeat this: start a new run with a lower optimizer.lr, with optimizer.clip=1.0 or "
                "trainer.precision=32-true"
            )
            parallel.refuse(error)


def _io(trainer: pl.Trainer) -> StreamedCheckpointIO:
    io = trainer.strategy.checkpoint_io
    assert isinstance(io, StreamedCheckpointIO)
    return io


def lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's moments the memory format of their weights.

    Sharded training keeps convolutions as they are, all other has them channels last (see `NeuralRDMU`); a fused step
    would take the one for the other without a word.
    """
    for parameter, state in optimizer.state.items():
        for name, moment in state.items():
            if isinstance(moment, torch.Tensor) and moment.shape == parameter.shape:
                weight, held = parallel.local(parameter.detach()), parallel.local(moment)
                if held.stride() != weight.stride() and held is moment:
                    state[name] = torch.empty_like(weight, dtype=moment.dtype).copy_(moment)


def sick(checkpoint: dict[str, Any]) -> str | None:
    """The first tensor of a checkpoint's weights, averages or optimizer state of which this rank holds a value that is
    not finite, by its keys; None where there is none.
    """
    found = [pair for key in ("state_dict", "ema", "optimizer_states") for pair in _tensors(checkpoint.get(key), key)]
    norms = [torch.linalg.vector_norm(tensor, math.inf) for _, tensor in found]  # on a GPU nothing waits yet
    return next((name for (name, _), norm in zip(found, norms, strict=True) if not norm.isfinite()), None)


def _unsound(path: Path) -> str | None:
    """The first tensor of a checkpoint on disk that holds a value that is not finite; every byte is read."""
    if not path.is_dir():
        return sick(load_tensors(path, verify=True))
    sharded.check(path)
    each = (pair for name, part in sharded.parts(path) for pair in _tensors(part, name))
    return next((name for name, part in each if not torch.linalg.vector_norm(part, math.inf).isfinite()), None)


def _tensors(value: Any, where: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The floating-point tensors in nested dicts and lists, with the keys that lead to them."""
    if isinstance(value, torch.Tensor):
        held = parallel.local(value.detach())
        if held.is_floating_point() and held.numel():
            yield where, held
    elif isinstance(value, (dict, list, tuple)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(part, f"{where}.{key}")


def split_network(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A module's state dict as the network's own one, and what stands beside the network (a learned schedule)."""
    prefix = "net."
    network = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return network, {name: value for name, value in state.items() if not name.startswith(prefix)}


def path_of(folder: Path, step: int) -> Path:
    """The name of the checkpoint of an optimizer step; names sort by step."""
    return folder / f"step={step:09d}.ckpt"


def newest_readable(folder: Path) -> Path | None:
    """The newest undamaged checkpoint of a run whose values are all finite, or None where there is none at all.

    Every byte is read and its checksum compared. All others are passed over with a warning, and left alone.

    Raises:
        CheckpointError: there are checkpoints, but none can be read.
    """
    found = sorted((p for p in folder.glob("step=*.ckpt") if _NAME.fullmatch(p.name)), reverse=True)
    if (folder / "last.ckpt").exists():
        found.append(folder / "last.ckpt")
    for path in found:
        try:
            if (name := _unsound(path)) is None:
                return path
            problem = f"{path} holds values that are not finite (first {name})"
        except CheckpointError as error:
            problem = str(error).rstrip(".")
        log.warning("%s. Falling back to the checkpoint before it.", problem)
    if found:
        raise CheckpointError(
            f"none of the {len(found)} checkpoints in {folder} can be read and is finite; remove them to start again "
            "from step 0"
        )
    return None
