"""Where each sample of a tar shard lies, so that any of them can be read by itself. Nothing is ever unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import DataError, UserError, printable
from neural_rdm.core.files import sweep, write_atomically
from neural_rdm.core.progress import progress_bar
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.data.tars.paths import KEPT, kept_file

#: endings of a sample's image; where it has several, the first of these is taken
IMAGES = ("jpg", "jpeg", "png", "webp")
IMAGE, TEXT, JSON = range(3)  # second axis of `Table.members`
ABSENT, BAD = -1, -2  # in place of an offset or a label; BAD: named twice, or no number
_VERSION = 1
_MAX_HEADER = 1 << 16  # bytes of a member's name and attributes
_MAX_LABEL = 32


class Table(NamedTuple):
    """The N samples of a shard (or of several, one after the other), in the order of the tar.

    members: int64 [N, 3, 2], offset and size in bytes of the image, the text and the JSON of each; offset ABSENT or BAD
        where it cannot be read.
    labels: int64 [N], the number in the member `cls`, or ABSENT or BAD.
    names: the keys, one after the other, as bytes.
    ends: int64 [N], where each key ends in `names`.
    """

    members: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: NDArray[np.uint8]
    ends: NDArray[np.int64]


def read_indices(root: Path, shards: Sequence[Path], label: str) -> tuple[Table, NDArray[np.int64]]:
    """The samples of several shards as one table, and where each shard ends in it [number of shards].

    The index of a shard is kept below `root`, and made anew when the shard's size or time of change is another.

    Raises:
        DataError: a shard is no tar, compressed, damaged or cut off.
    """
    tables: list[Table | None] = [_kept(root, shard) for shard in shards]
    missing = [i for i, table in enumerate(tables) if table is None]
    if missing:
        with progress_bar(f"indexing {label}", len(missing), "shards") as advance:
            kept = True
            for i in missing:
                stamp, table = _stamp(shards[i]), read_index(shards[i])
                tables[i], kept = table, kept and _keep(root, shards[i], stamp, table)
                advance()
        if kept and is_first_rank():
            print(f"the index of {len(missing)} {label} is kept in {printable(root / KEPT)}", flush=True)
            sweep(root / KEPT, deep=False)
        elif not kept:
            print(f"{printable(root)} cannot be written: its shards will be indexed anew the next time", flush=True)
    present = [table for table in tables if table is not None]
    counts = np.cumsum([len(table.labels) for table in present], dtype=np.int64)
    shifts = np.cumsum([0, *(len(table.names) for table in present[:-1])])
    ends = np.concatenate([table.ends + shift for table, shift in zip(present, shifts, strict=True)])
    members, labels, names = (np.concatenate([table[i] for table in present]) for i in range(3))
    return Table(members, labels, names, ends), counts


def read_index(path: Path) -> Table:
    """List the samples of one shard.

    Files that follow one another and share a key (the path up to the first dot of its last part) are a sample; what
    follows that dot says what they hold: jpg, jpeg, png or webp, txt, json, cls. This is how webdataset groups them.
    Folders, links, hidden files, names without a dot and those of the form `__name__` are passed over; other endings
    are too, so nothing is ever unpickled.

    Raises:
        DataError: the file is no tar, compressed, damaged or cut off.
    """
    rows: list[list[tuple[int, int]]] = []
    labels: list[int] = []
    keys: list[bytes] = []
    images: list[int] = []  # rank among IMAGES of the sample's image so far
    try:
        with _HeaderReader(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in _members(tar):
                key, ending = split_name(member.name)
                if key is None or not member.isreg() or member.issparse() or _is_meta(member.name):
                    continue
                encoded = key.encode("utf-8", "surrogateescape")
                if not keys or keys[-1] != encoded:
                    keys.append(encoded)
                    rows.append([(ABSENT, 0)] * 3)
                    labels.append(ABSENT)
                    images.append(len(IMAGES))
                place = (member.offset_data, member.size)
                row = rows[-1]
                if ending in IMAGES and (rank := IMAGES.index(ending)) <= images[-1]:
                    row[IMAGE] = (BAD, 0) if rank == images[-1] else place
                    images[-1] = rank
                elif (kind := {"txt": TEXT, "json": JSON}.get(ending)) is not None:
                    row[kind] = place if row[kind][0] == ABSENT else (BAD, 0)
                elif ending == "cls":
                    labels[-1] = _label(file, *place) if labels[-1] == ABSENT else BAD
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError("it does not end as a tar does")
    except Exception as error:  # tarfile raises its own errors, ValueError, OverflowError, RecursionError, ...
        if _is_compressed(path):
            raise DataError(
                f"the shard {path} is compressed, so that single samples cannot be read; unpack it to a plain .tar "
                "(images are compressed already)"
            ) from error
        last = f" after {printable(keys[-1])}, sample {len(keys)}" if keys else ""
        raise DataError(
            f"the shard {path} cannot be read, is no tar file, or was cut off{last}: {error or type(error).__name__}. "
            "Copy or download it again, or leave it out"
        ) from error
    return Table(
        np.array(rows, dtype=np.int64).reshape(-1, 3, 2),
        np.array(labels, dtype=np.int64),
        np.frombuffer(b"".join(keys), dtype=np.uint8),
        np.cumsum([len(key) for key in keys], dtype=np.int64),
    )


def split_name(name: str) -> tuple[str | None, str]:
    """(key, ending) of a member: `a/b.seg.PNG` is (`a/b`, `seg.png`); no key for hidden files and without a dot."""
    folder, slash, file = name.rpartition("/")
    stem, dot, ending = file.partition(".")
    return (folder + slash + stem, ending.lower()) if stem and dot else (None, "")


class _HeaderReader(io.BufferedReader):
    """A file of which only small pieces are read: `tarfile` would read a header of any size that it claims to have."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)


def _is_compressed(path: Path) -> bool:
    try:
        with open(path, "rb") as content:
            return content.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))
    except OSError:
        return False


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    offset = -1
    while (member := tar.next()) is not None:
        if tar.offset <= offset:
            raise ValueError("a member of negative size")  # tarfile would walk in circles
        offset = tar.offset
        tar.members.clear()  # type: ignore[attr-defined]  # a list of all would be kept
        yield member


def _is_meta(name: str) -> bool:
    first = name.partition("/")[0]
    return len(first) >= 4 and first.startswith("__") and first.endswith("__")


def _label(file: io.BufferedReader, offset: int, size: int) -> int:
    """The number that a member holds, BAD if it holds anything else."""
    file.seek(offset)
    text = file.read(size).strip() if size <= _MAX_LABEL else b""
    return int(text) if text.isdigit() and len(text) < 10 else BAD


def _stamp(shard: Path) -> NDArray[np.int64]:
    """What must be the same for a kept index to hold."""
    stat = shard.stat()
    return np.array([_VERSION, stat.st_size, stat.st_mtime_ns], dtype=np.int64)


def _keep(root: Path, shard: Path, stamp: NDArray[np.int64], table: Table) -> bool:
    """Write the index of a shard; whether that was possible."""
    path = kept_file(root, os.path.abspath(shard), ".npz")
    try:
        write_atomically(path, lambda file: np.savez(file, stamp=stamp, **table._asdict()))
    except UserError:
        return False
    return True


def _kept(root: Path, shard: Path) -> Table | None:
    path = kept_file(root, os.path.abspath(shard), ".npz")
    try:
        with np.load(path, allow_pickle=False) as content:
            if not np.array_equal(content["stamp"], _stamp(shard)):
                return None
            return Table(*(content[name] for name in Table._fields))
    except Exception:  # not there, damaged (zipfile, zlib, ValueError, KeyError ...): it is made anew
        return None
