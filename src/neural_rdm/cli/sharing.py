"""Long work that several processes share by the numbers of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized

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
