"""What becomes of the other processes of a run when one of them ends: it is said which, and none stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from neural_rdm.core.errors import RankError, first_line
from neural_rdm.core.locks import lives
from neural_rdm.core.ranks import BY_TORCHRUN, PARENT, STARTED_BY, STARTER, torchrun_is_gone
from neural_rdm.core.signals import STOPPING, Stopped

#: seconds that a process has to end by itself once another one of its run is gone: its own error is the better message
GRACE = 5.0
_EVERY = 0.2
#: what the errors of gloo and NCCL have in common when the other side is gone
_LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class Launcher(_SubprocessScriptLauncher):
    """Starts the other ranks of this machine as Lightning does; whose own observer kills all without a word."""

    ranks: list[subprocess.Popen[bytes]] = []  # those that this process has started: none, where it is one of them
    asked: signal.Signals | None = None  # what this process was asked to stop by, and has passed on as SIGTERM

    @classmethod
    def install(cls, trainer: pl.Trainer) -> None:
        """Put it in the place of Lightning's, where this process starts others."""
        old = trainer.strategy.launcher
        if isinstance(old, _SubprocessScriptLauncher):
            trainer.strategy._launcher = cls(old.cluster_environment, old.num_processes, old.num_nodes)

    def _call_children_scripts(self) -> None:
        os.environ[STARTED_BY] = str(os.getpid())
        try:
            super()._call_children_scripts()
        finally:
            del os.environ[STARTED_BY]  # what else this process starts is no rank
        self.ranks, self.procs = self.procs, []  # Lightning's observer finds nothing to do

    def kill(self, signum: Any) -> None:
        """Send a signal to all of them."""
        for rank in self.ranks:
            rank.send_signal(signum)

    def lost(self) -> str | None:
        """What has become of the first rank that has ended badly; None while all is well."""
        for number, rank in enumerate(self.ranks, start=1):
            if code := rank.poll():
                how = f"ended with exit code {code}; what it said stands above"
                if code < 0:
                    name = signal.Signals(-code).name
                    how = f"was killed by {name}" + (", as systems do when memory runs out" if code == -9 else "")
                return f"rank {number} (process {rank.pid}) {how}. The others cannot go on without it and were stopped."
        return None

    def stopped(self) -> signal.Signals | None:
        """The signal that one of them was asked to stop by, or has died of before it could listen or at the second one.
        This process was asked as well; where it cannot hear it, it waits for that one.
        """
        codes = [rank.poll() or 0 for rank in self.ranks]
        found = next((number for number in STOPPING if 128 + number in codes or -number in codes), None)
        return found and (self.asked or found)

    def stop(self) -> None:
        """End all of them, and wait until they are gone."""
        self.kill(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()


class _Others:
    """The other processes of a run, as one of them sees them."""

    def __init__(self, rank: int, world_size: int, launcher: Any) -> None:
        self.launcher = launcher if isinstance(launcher, Launcher) else None
        self.several, self.rank = world_size > 1, rank
        self.alone = self.several and torchrun_is_gone()

    def lost(self) -> str | None:
        """Which of them has ended, as far as this process can know."""
        if self.launcher is not None and self.launcher.ranks:
            return self.launcher.lost()
        if self.alone:
            return f"rank {self.rank} was stopped: torchrun, which started it, has ended."
        if (self.rank > 0 or BY_TORCHRUN) and (os.getppid() != PARENT or (STARTER and not lives(STARTER))):
            return f"rank {self.rank} was stopped: process {STARTER or PARENT}, which started it, has ended."
        return None

    def stopped(self) -> signal.Signals | None:
        """The signal that has stopped one of them."""
        return None if self.launcher is None else self.launcher.stopped()

    def watch(self, over: threading.Event, tell: Callable[[str, signal.Signals | None], None]) -> None:
        """End this process when another one is gone and it does not notice by itself, waiting for it in NCCL, say."""
        while not over.wait(_EVERY):
            if (told := self.lost()) is not None:
                if not over.wait(GRACE):
                    tell(told, number := self.stopped())
                    if self.launcher is not None:
                        self.launcher.stop()
                    os._exit(RankError.exit_code if number is None else Stopped(number).exit_code)
                return

    def explain(self, error: BaseException) -> str | None:
        """What lies behind an error that says no more than that another process is gone; None for any other."""
        distributed = isinstance(error, torch.distributed.DistError)
        if not distributed and not (isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)):
            return None
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            if (told := self.lost()) is not None:
                return told
            time.sleep(0.05)
        if self.launcher is not None and self.launcher.ranks:
            return None  # all the others live: the error has another cause
        found = f"rank {self.rank} has lost another process of this run, which what started them should name"
        return f"{found} ({first_line(error)})."


@contextmanager
def watched(rank: int, world_size: int, how_to_go_on: Callable[[], str], launcher: Any = None) -> Iterator[None]:
    """Work together in here: whatever ends it, no other rank that this process has started stays behind.

    Args:
        launcher: the trainer's, which has started the other ranks where it is a `Launcher`.
        how_to_go_on: says what is saved and how to continue.

    Raises:
        RankError: another process of the run has ended; which, where that can be known.
        Stopped: it was asked to stop.
    """
    others, over = _Others(rank, world_size, launcher), threading.Event()

    def tell(told: str, number: signal.Signals | None) -> None:
        if number is not None:
            print(f"\nstopped by {number.name}. {how_to_go_on()}", flush=True)
        else:
            print(f"error: {told} {how_to_go_on()}", file=sys.stderr, flush=True)

    if others.several:
        threading.Thread(target=others.watch, args=(over, tell), daemon=True, name="other-ranks").start()
    try:
        yield
    except BaseException as error:
        over.set()
        told = others.explain(error) if others.several else None
        number = None if told is None else others.stopped()
        if others.launcher is not None:
            others.launcher.stop()
        if number is not None:
            raise Stopped(number) from error
        if told is not None:
            raise RankError(f"{told} {how_to_go_on()}") from error
        raise
    finally:
        over.set()
