"""Processes that load data: what they leave to their parent, and how they end."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from multiprocessing.queues import Queue
from typing import Any
from weakref import WeakMethod

from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from neural_rdm.core.errors import LoaderError, first_line

#: seconds without a batch after which a worker is given up: a decoder may hang on a damaged file
PATIENCE = 900
#: seconds between two looks at the workers while a batch is waited for
EVERY = 5.0
_waiting = False


class Loader(DataLoader[Any]):
    """A loader whose processes leave signals to their parent, and end with it whatever ends it.

    Args:
        num_workers: loader processes; 0 loads in this one.
        options: of torch's `DataLoader`.

    Raises:
        LoaderError: while it is read: a process has died, or has given nothing for `PATIENCE` seconds.
    """

    def __init__(self, samples: Dataset[Any], num_workers: int, **options: Any) -> None:
        super().__init__(
            samples,
            num_workers=num_workers,
            worker_init_fn=_start_worker,
            timeout=PATIENCE if num_workers > 0 else 0,
            # Fork shares the index of the files with the workers instead of pickling it; only Linux forks safely.
            multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's own is an iterator all the same
        try:
            batches = super().__iter__()
            if hasattr(batches, "_try_get_data") and "_try_get_data" not in vars(batches):
                batches._try_get_data = partial(_look, WeakMethod(batches._try_get_data))
                _hear_while_waiting()
            yield from batches
        except (ConnectionError, EOFError) as error:  # a batch lay with a worker that has died
            if self.num_workers == 0 or str(error).startswith("Caught "):  # no: reading the data has failed
                raise
            raise LoaderError(_died(error)) from error
        except RuntimeError as error:  # torch has no class of its own for these two
            if "DataLoader timed out" in str(error):
                raise LoaderError(
                    f"no batch has come for {self.timeout:g} s: reading or decoding a sample hangs, or the storage "
                    "does not answer. python -m neural_rdm.prepare with the same data looks at the files; then go on "
                    "where this stopped"
                ) from error
            if str(error).startswith("DataLoader worker (pid"):
                raise LoaderError(_died(error)) from error
            raise


def _died(error: Exception) -> str:
    return (
        f"a process that loads data has died ({first_line(error).rstrip('. ')}). Where memory was short, pass a "
        "smaller data.num_workers; where a decoder crashed, data.num_workers=0 shows on which sample."
    )


def _look(once: WeakMethod[Any], timeout: float = EVERY) -> Any:
    """Wait so many seconds for a batch, in parts: behind each torch asks whether its workers live. It is told of an end
    by a signal as well, but not before all of them have begun, nor where something else swallows what its handler says.
    """
    global _waiting
    end = time.monotonic() + timeout
    while True:
        _waiting = True
        try:
            found = once()(timeout=min(EVERY, max(0.0, end - time.monotonic())))  # type: ignore[misc]
        finally:
            _waiting = False
        if found[0] or time.monotonic() >= end:
            return found


def _hear_while_waiting() -> None:
    """Let torch's handler of SIGCHLD raise the end of a worker where a batch is waited for, and not wherever the parent
    happens to be: in a backward pass, or drawing a page when all is trained and no worker is needed any more.
    """
    heard = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    ours = threading.current_thread() is threading.main_thread()  # no other may say what a signal does
    if ours and getattr(heard, "__module__", None) == signal_handling.__name__:
        signal.signal(signal.SIGCHLD, lambda *given: heard(*given) if _waiting else None)  # type: ignore[operator, misc]


def _start_worker(worker: int) -> None:
    """A signal that goes to all processes of a job is the parent's to answer: it may want the batches of its step.

    Where the parent was killed as this one began, torch would take who has adopted it for its parent, and never end it.
    """
    parent = multiprocessing.parent_process()
    if os.name == "posix" and parent is not None and os.getppid() != parent.pid:
        os._exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]


def _cannot_send(error: Exception, batch: Any) -> None:
    """End this process, where Python would drop the batch, for which the parent then waits: that notices an end."""
    advice = ". Set TMPDIR to a folder with a shorter name" if "AF_UNIX path too long" in str(error) else ""
    told = f"a process that loads data cannot hand over what it has read: {first_line(error)}{advice}"
    print(told, file=sys.stderr, flush=True)
    os._exit(1)


def _end_workers() -> None:
    """Before multiprocessing asks its daemons by SIGTERM, and waits: one that ignores it, or hangs, would keep us."""
    daemons = [process for process in multiprocessing.active_children() if process.daemon]
    if daemons and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would take their end for a failure
    for process in daemons:
        process.kill()


atexit.register(_end_workers)
