"""Writing so that nothing is ever half written, and reading without running anybody's code."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from neural_rdm.core.errors import CheckpointError, UserError


def write_atomically(path: str | Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it to disk and rename it over `path`.

    A kill at any moment leaves either the old file or the new one. Nothing is assembled in memory first.

    Raises:
        UserError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, (OSError, RuntimeError)):  # torch's zip writer reports a full disk as RuntimeError
            advice = "Free some disk space or choose another folder with hydra.run.dir=DIR."
            raise UserError(f"cannot write {path}: {error}. {advice}") from error
        raise
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def link_atomically(source: Path, target: Path) -> None:
    """Make `target` a second name of `source` (a hard link, or a copy where the file system has none), atomically."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
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
    """`torch.save` a dictionary of tensors, numbers, strings, lists and dicts, streamed to disk atomically."""
    import torch  # here, because commands write their configuration before torch is loaded

    write_atomically(path, lambda file: torch.save(content, file))


def load_tensors(path: str | Path, verify: bool = False) -> dict[str, Any]:
    """Read what `save_tensors` wrote, memory-mapped, without ever running code from the file (`weights_only=True`).

    Args:
        verify: also read every byte and compare the archive's checksums.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds more than tensors and plain values.
    """
    import torch

    try:
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
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"cannot read {path}: {first}") from error


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
