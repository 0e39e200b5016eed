"""Writing so that nothing is ever half written, and reading without running anybody's code."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from neural_rdm.core.errors import CheckpointError, ResourceError, UserError, WriteError, first_line
from neural_rdm.core.given import blown_up, regular

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk and rename it over `path`.

    A kill at any moment leaves either the old file or the new one. Nothing is assembled in memory first.

    Raises:
        WriteError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    failed: list[OSError] = []
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _owned(temporary) as file:
            write(cast(BinaryIO, _Remembering(file, failed)))
            file.flush()
            os.fsync(file.fileno())
            if os.name == "posix":  # while it is locked still, so that nobody sweeps it
                os.replace(temporary, path)
        if os.name != "posix":  # Windows renames no file that is open
            os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = failed[0] if failed else error  # torch's zip writer hides it behind a RuntimeError of its own
        if isinstance(cause, OSError):
            raise WriteError(cannot_write(path, cause)) from error
        raise
    _sync_folder(path.parent)


#: what is wrong, and what helps, for the errors that a write can end with
_WRITE_ERRORS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "Free some disk space there."),
    errno.EDQUOT: ("your quota is used up", "Free some of your disk space there."),
    errno.EFBIG: ("the file is too large", "Raise the limit (ulimit -f), or use a file system for larger files."),
    errno.EROFS: ("the file system is read-only", "Another folder is needed."),
    errno.EACCES: ("you may not write there", "Another folder is needed, or the right to write to this one."),
    errno.EPERM: ("you may not write there", "Another folder is needed, or the right to write to this one."),
}


def cannot_write(path: str | Path, error: OSError) -> str:
    """The message for a file that cannot be written: what is wrong, and what helps."""
    reason = error.strerror or str(error)
    what, advice = _WRITE_ERRORS.get(error.errno or 0, ("", ""))
    return f"cannot write {path}: {what} ({reason}). {advice}" if what else f"cannot write {path}: {reason}."


#: how libraries say, in errors of no kind of its own, that memory ran out; torch's error of a GPU begins like the
#: first, the last is C++'s of a thread that cannot be started
_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "can't start new thread",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "Resource temporarily unavailable",
)
#: and oneDNN, of a product; with more words behind it, it is another error
_NO_PRODUCT = "could not create a primitive"
#: how torch says that the kernel of `sdpa_kernel` cannot be had, on a CPU and on a GPU
_NO_KERNEL = ("No viable backend for scaled_dot_product_attention", "No available kernel. Aborting execution.")


def as_user_error(error: Exception) -> UserError | None:
    """What an error of the system, or of torch, means to a user: a full or read-only disk, a missing right, no
    memory, a kernel that there is not; None for what may as well be a bug.
    """
    errors = isinstance(error, OSError) and error.errno == errno.ENOMEM
    told = isinstance(error, RuntimeError) and (
        any(words in str(error) for words in _NO_MEMORY) or str(error).strip() == _NO_PRODUCT
    )
    if errors or told or isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
        return ResourceError(
            f"memory ran out ({first_line(error).rstrip('.')}). Free some, raise the limit that this process has, or "
            "ask for less, as with smaller batches."
        )
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_KERNEL):
        return UserError("torch has no such kernel of attention for these numbers on this device; pass attention=auto")
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.EACCES, errno.EPERM) and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}. This command needs the right to it.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return WriteError(cannot_write(error.filename or "a file", error))
    return None


def needs_another_folder(error: BaseException | None) -> bool:
    """Whether nothing can ever be written where this error came from (read-only), or only not now (full)."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error is not None and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM)


class _Remembering:
    """A file that remembers the first error of a write: torch's zip writer says only that something went wrong."""

    def __init__(self, file: BinaryIO, failed: list[OSError]) -> None:
        self._file, self._failed = file, failed

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._failed.append(error)
            raise

    def fileno(self) -> int:
        """None, so that a library that would write past Python, and lose the error's number, does not."""
        raise io.UnsupportedOperation("fileno")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def temporary_name(path: Path) -> Path:
    """What `path` is called until it is whole; `sweep` knows such names."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that is not whole yet, or that a killed process has left."""
    return _TEMPORARY.fullmatch(name) is not None


@contextlib.contextmanager
def _owned(temporary: Path) -> Iterator[BinaryIO]:
    """A new file that is locked, where there are locks, for as long as its writer lives: `sweep` leaves it alone."""
    while True:
        with open(temporary, "wb") as file:
            _lock(file, wait=True)
            try:
                if not os.path.samestat(os.fstat(file.fileno()), os.stat(temporary)):
                    continue  # swept between the two
            except FileNotFoundError:
                continue
            yield file
            return


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when the context ends well, and is gone when it does not.

    A kill at any moment leaves the old one, the new one or none, but never a part of it under this name.
    """
    temporary = temporary_name(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        _lock(descriptor, wait=True)
        yield temporary
        _sync_folder(temporary)
        remove(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)
    _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there; a kill leaves no part of it under this name."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".{path.name}-old.{os.getpid()}.tmp")
        os.replace(path, gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _lock(file: BinaryIO | int, wait: bool) -> bool | None:
    """Whether a file is now locked by this process alone; None where there are no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # Windows, and file systems without locks
        return None
    return True


def sweep(folder: Path, deep: bool = True) -> int:
    """Delete the temporary files and folders that killed processes have left in `folder` (with `deep`, anywhere below).

    One that its writer holds locked stays. Where there are no locks, all are deleted: the caller is the only writer.

    Returns:
        How many there were.
    """
    swept = 0
    for here, folders, names in os.walk(folder):
        for name in filter(is_temporary, folders):
            with contextlib.suppress(OSError):
                descriptor = os.open(os.path.join(here, name), os.O_RDONLY)
                try:
                    if _lock(descriptor, wait=False) is not False:
                        shutil.rmtree(os.path.join(here, name))
                        swept += 1
                finally:
                    os.close(descriptor)
        folders[:] = [name for name in folders if not is_temporary(name)] if deep else []
        for name in filter(is_temporary, names):
            with contextlib.suppress(OSError), open(regular(os.path.join(here, name)), "rb") as file:
                if _lock(file, wait=False) is not False:
                    os.unlink(os.path.join(here, name))
                    swept += 1
    return swept


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` a second name of `source`, which lies beside it: a hard link (or a copy where the file system has
    none), of a folder a symbolic one; atomically.
    """
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        os.symlink(source.name, temporary) if source.is_dir() else os.link(source, temporary)
    except OSError:
        with open(source, "rb") as file:
            write_atomically(target, lambda out: _copy(file, out))
        return
    try:
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)  # rename(2) leaves it where target already is a name of source
    _sync_folder(target.parent)


def save_tensors(path: str | Path, content: dict[str, Any]) -> None:
    """`torch.save` a dictionary of tensors, numbers, strings, lists and dicts, streamed to disk atomically.

    Tuples become lists, dictionaries of any other kind plain ones, and equal strings one object: what a resumed run has
    read from a file, and what an uninjured one still has as a library made it, are then written as the same bytes.
    """
    import torch  # here, because commands write their configuration before torch is loaded

    write_atomically(path, lambda file: torch.save(_plain(content), file))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {_plain(key): _plain(part) for key, part in value.items()}
    if type(value) is str:
        return sys.intern(value)  # pickle writes a string once for each object
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def load_tensors(path: str | Path, verify: bool = False, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Read what `save_tensors` wrote, memory-mapped, without ever running code from the file (`weights_only=True`); or
    a folder of `core.sharded`, put together in memory.

    Args:
        verify: also read every byte and compare the archive's checksums.
        leave_out: keys of the content that are not wanted, and not read where that saves memory.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds more than tensors and plain values.
    """
    import torch

    if os.path.isdir(path):
        from neural_rdm.core import sharded

        if verify:
            sharded.check(Path(path))
        return sharded.load(Path(path), leave_out=leave_out)
    try:
        if said := blown_up(path):
            raise CheckpointError(f"cannot read {path}: {said}")
        if verify:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{path} is damaged (record {damaged}).")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"no such checkpoint: {path}") from error
    except Exception as error:
        raise CheckpointError(f"cannot read {path}: {first_line(error)}") from error


def sha256_of(*paths: str | Path) -> str:
    """The sha256 of files, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(1 << 24):
        target.write(chunk)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
