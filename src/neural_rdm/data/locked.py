"""One process of this machine at a time, for work that the others then need not do again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from neural_rdm.core.ranks import is_first_rank


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path`, where the system and the file system have locks. The lock falls with its process;
    processes that are forked meanwhile do not hold it.

    Args:
        waiting: printed where another process holds it.

    Raises:
        OSError: the file cannot be written.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(NotImplementedError):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if waiting and is_first_rank():
                print(waiting, flush=True)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
