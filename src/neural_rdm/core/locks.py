"""One writer in a folder: a lock that ends with its process, however that ends, and that says who holds it.

`.lock` is locked by the operating system (flock), which frees it when its process is killed; where the file system has
no such locks, `.lock.lease` stands for it, which its process keeps touching, and which counts no longer once it was
left untouched. `.lock.json` says who holds it. All are gone when the folder is left.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.core.given import read_json

LOCK, LEASED, HOLDER = ".lock", ".lock.lease", ".lock.json"
#: seconds after which a file that stands for a lock counts no longer, if nobody has touched it
LEASE = 30.0
#: seconds for which a lock is tried: as long as another process needs to let go of it at its end
_PATIENCE = 0.3
#: what file systems without locks answer (NFS without its lock daemon, Lustre mounted without flock, some FUSE)
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


@contextlib.contextmanager
def held(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a folder, which must exist, for as long as the context is open.

    Processes that are forked meanwhile (loaders) do not hold it.

    Args:
        command: what is done in it, for others to read.

    Raises:
        ConfigError: another process holds it.
        UserError: the folder cannot be written.
    """
    try:
        for path in (folder / name for name in (LOCK, LEASED, HOLDER)):
            # a folder of somebody else's: what a link leads to would be written over, and a pipe be waited for
            if path.is_symlink() or path.is_fifo():
                path.unlink()
        lock = _acquired(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another folder with hydra.run.dir=DIR"
        ) from error
    try:
        with contextlib.suppress(OSError):  # a full disk: whoever comes learns that it is in use, but not by whom
            (folder / HOLDER).write_text(json.dumps(_myself(command)), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
            (folder / LOCK).unlink(missing_ok=True)  # one who waits for this file notices that it is gone
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether somebody works in a folder, as far as can be seen without waiting: of a holder on another host, that it
    has not let go of it.
    """
    holder = _holder(folder)
    return bool(holder) and (holder.get("host") != socket.gethostname() or lives(holder.get("pid")))


def check_job(folder: Path) -> None:
    """Refuse a folder that another job uses; for the ranks of a job beside the first, whose first one locks it.

    Raises:
        ConfigError: a living process of this machine, of another job, holds its lock.
    """
    holder = _holder(folder)
    if holder.get("job") != _job() and holder.get("host") == socket.gethostname() and lives(holder.get("pid")):
        raise _in_use(folder, holder)


def _acquired(folder: Path) -> Any:
    import filelock  # here, because it takes as long as all of the rest, and only who writes needs it

    native = filelock.FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        native.acquire(timeout=_PATIENCE)
    except filelock.Timeout as error:
        raise _in_use(folder, _holder(folder)) from error
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
    else:
        return native
    holder = _holder(folder)
    here = not holder or holder.get("host") == socket.gethostname()  # where it is known at once whether it lives
    if not here:
        print(f"waiting {LEASE:g} s to see whether {_named(holder)} still uses {folder}", file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lease = filelock.SoftFileLease(folder / LEASED, lease_duration=LEASE)
        try:
            lease.acquire(timeout=_PATIENCE if here else LEASE + 5)
        except filelock.Timeout as error:
            raise _in_use(folder, holder) from error
    return lease


def _in_use(folder: Path, holder: dict[str, Any]) -> ConfigError:
    return ConfigError(f"{folder} is in use by {_named(holder)}; wait for it or stop it")


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    pid, host, command, since = (holder.get(key) for key in ("pid", "host", "command", "since"))
    return f"process {pid} on host {host} ({command}, since {since})"


def _myself(command: str) -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since, "job": _job()}


def _job() -> list[str]:
    """What the processes that torchrun or srun starts together have in common; a process alone is a job of its own."""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    return [os.environ.get(name, "") for name in names]


def _holder(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / HOLDER)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lives(pid: Any) -> bool:
    """Whether a process of this machine is alive."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True
