"""Long work that several processes share by the numbers of its parts, and that goes on after it was stopped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sized
from typing import Any

_EVERY = 60.0  # seconds between two lines that say what is missing


def wait_for(missing: Callable[[], Sized], what: str) -> None:
    """Return when the other processes of the job have written their parts; say every minute how many are missing.

    Args:
        missing: finds the parts that are not there yet.
        what: what they are called.
    """
    said = -_EVERY
    while left := len(missing()):
        if (now := time.monotonic()) - said >= _EVERY:
            said = now
            print(
                f"waiting for the other processes: {left} {what} are missing; if no other process is running, stop "
                "this and give the same command to one process",
                flush=True,
            )
        time.sleep(0.5)


class _Stopped(BaseException):
    """A signal, on its way up through the work."""


def stoppable(work: Callable[[], int]) -> int:
    """Do work that goes on where it stopped when the same command is given again.

    Returns:
        The exit code of the work, or 143 (130) where SIGTERM (Ctrl-C) stopped it, with one line that says so.
    """
    owner = os.getpid()

    def handle(number: int, frame: Any) -> None:
        if os.getpid() == owner:  # a process that was forked leaves it to its parent
            raise _Stopped(number)

    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        return work()
    except _Stopped as stop:
        print("\nstopped; give the same command again with the same hydra.run.dir, and it goes on", flush=True)
        return 128 + int(stop.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
