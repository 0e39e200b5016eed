"""Samples as files, one after the other as bytes: ADM's `.npz`, a folder of images, a folder of clips.

The one place that reads what `sample` writes, and what other code bases write, for `stats` and `evaluate`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_rdm.core.errors import BrokenSample, DataError, printable
from neural_rdm.core.extras import typed
from neural_rdm.core.progress import progress_bar
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.evaluation.sample_listing import SAMPLING, list_samples
from neural_rdm.evaluation.sample_parts import DATASET
from neural_rdm.media.containers import Container, container_of
from neural_rdm.media.decoders import open_video
from neural_rdm.media.frames import files_of
from neural_rdm.media.gifs import read_gif
from neural_rdm.media.images import read_rgb

NPZ = "samples.npz"
READERS = 8
LARGEST = 1 << 31  # bytes of a sample in an archive, which may unpack to anything
_BLOCK = 1 << 20  # bytes that are read at a time for a hash
Pixels = NDArray[np.uint8]


class SampleFiles:
    """An open set of samples; nothing of it is in memory but the batch at hand.

    Attributes:
        path: the file or folder.
        kind: "image" or "clip".
        container: how they are kept, and whether exactly.
        labels: int64 [N], or None where there are none: `arr_1` of an `.npz`, the class folders of a folder.
        num_frames, frame_interval: of every clip these frames are taken, from its first one on; None takes all.
    """

    kind: str
    container: Container
    labels: NDArray[np.int64] | None = None
    _advice = ""  # what else can be done with samples of several sizes

    def __init__(self, path: Path, num_frames: int | None, frame_interval: int) -> None:
        self.path, self.num_frames, self.frame_interval = path, num_frames, frame_interval

    def __len__(self) -> int:
        raise NotImplementedError

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the file, or of the names and contents of a folder's files; it reads all of them."""
        digest, files = hashlib.sha256(), list(self._files())
        sizes = [path.stat().st_size for _, path in files]
        with progress_bar("reading for the hash", sum(-(-size // _BLOCK) for size in sizes), "blocks") as advance:
            for (name, path), size in zip(files, sizes, strict=True):
                digest.update(f"{name}\0{size}\0".encode() if name else b"")
                with open(path, "rb") as file:
                    while chunk := file.read(_BLOCK):
                        digest.update(chunk)
                        advance()
        return digest.hexdigest()

    def batches(
        self, batch_size: int, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64] | None]]:
        """Samples as uint8 [B, 3, H, W] or [B, F, 3, H, W] with their labels [B] or None; one channel becomes three.

        Args:
            batch_size: B; the last batch may be smaller.
            positions: which samples, ascending; None for all.

        Raises:
            DataError: a file is damaged, or two samples differ in size.
        """
        positions = range(len(self)) if positions is None else positions
        if (np.diff(positions) <= 0).any():
            raise ValueError("positions of samples must be ascending")
        held: list[Pixels] = []
        first: tuple[str, tuple[int, ...]] | None = None
        for i, (name, pixels) in enumerate(self._arrays(positions)):
            first = first or (name, pixels.shape[:-1])
            if pixels.shape[:-1] != first[1]:
                raise DataError(
                    f"{self.path}: all {self.kind}s must have one size, but {first[0]} is {_size(first[1])} and {name} "
                    f"is {_size(pixels.shape[:-1])}{self._advice}"
                )
            held.append(np.broadcast_to(pixels, (*pixels.shape[:-1], 3)))
            if len(held) == batch_size or i == len(positions) - 1:
                chosen = positions[i + 1 - len(held) : i + 1]
                labels = None if self.labels is None else self.labels[np.asarray(chosen)]
                yield torch.from_numpy(np.stack(held)).movedim(-1, -3).contiguous(), labels
                held = []

    def _chosen(self, name: str, length: int) -> slice:
        """Which frames are taken of a clip of this length."""
        if self.num_frames is None:
            return slice(0, length, self.frame_interval)
        needed = (self.num_frames - 1) * self.frame_interval + 1
        if length < needed:
            raise DataError(
                f"{self.path}: {name} has {length} frames; {self.num_frames} with an interval of {self.frame_interval} "
                f"need {needed}"
            )
        return slice(0, needed, self.frame_interval)

    def _files(self) -> Iterable[tuple[str, Path]]:
        raise NotImplementedError

    def _arrays(self, positions: Sequence[int]) -> Iterator[tuple[str, Pixels]]:
        """Name and pixels [(F,) H, W, 1 or 3] of each position, of a clip the chosen frames."""
        raise NotImplementedError


class NpzSamples(SampleFiles):
    """`arr_0` of an `.npz`, uint8 [N, H, W, C] or [N, F, H, W, C], streamed, and its classes `arr_1`, where it has any.

    Raises:
        DataError: damaged, or no uint8 samples.
    """

    def __init__(self, path: Path, num_frames: int | None, frame_interval: int) -> None:
        super().__init__(path, num_frames, frame_interval)
        with self._opened("arr_0.npy") as member:
            shape, fortran, dtype = _header(member)
        with contextlib.suppress(KeyError), self._opened("arr_1.npy") as member:
            self.labels = np.lib.format.read_array(member, allow_pickle=False).astype(np.int64)
        if dtype != np.uint8:
            raise DataError(f"{path}: arr_0 is {dtype}, not uint8; latents must be decoded to pixels first")
        if len(shape) not in (4, 5) or shape[-1] not in (1, 3) or fortran or min(shape) < 1:
            raise DataError(
                f"{path}: arr_0 is {list(shape)}, neither images [N, H, W, 3] nor clips [N, F, H, W, 3] in C order"
            )
        if (size := math.prod(shape[1:])) > LARGEST:
            raise DataError(f"{path}: one of its samples would have {size:,} bytes, and at most {LARGEST:,} are read")
        if self.labels is not None and self.labels.shape != shape[:1]:
            raise DataError(f"{path}: {shape[0]} samples in arr_0, but classes {list(self.labels.shape)} in arr_1")
        self.kind, self.shape = ("image" if len(shape) == 4 else "clip"), shape
        self.container = Container("npz", None, "gray" if shape[-1] == 1 else "rgb24", True)

    def __len__(self) -> int:
        return self.shape[0]

    def _files(self) -> Iterable[tuple[str, Path]]:
        return [("", self.path)]

    def _arrays(self, positions: Sequence[int]) -> Iterator[tuple[str, Pixels]]:
        size = math.prod(self.shape[1:])
        with self._opened("arr_0.npy") as member:
            _header(member)
            begin = member.tell()
            for position in positions:
                member.seek(begin + position * size)
                content = member.read(size)
                if len(content) < size:
                    raise ValueError(f"sample {position} is cut short")
                name, pixels = f"sample {position}", np.frombuffer(content, np.uint8).reshape(self.shape[1:])
                yield name, pixels[self._chosen(name, len(pixels))] if self.kind == "clip" else pixels

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        """A member of the archive; a KeyError where there is none but `arr_0`, without which there are no samples."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                if name == "arr_0.npy" and name not in archive.namelist():
                    raise DataError(f"{self.path} holds no samples: there is no arr_0 in it")
                with archive.open(name) as member:
                    yield member
        except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"cannot read the samples {self.path}: {error}; write the file again") from error


class FolderSamples(SampleFiles):
    """The samples below a folder, in natural order of their names; see `list_samples`.

    Args:
        frames: folders that hold images are clips, not classes.

    Raises:
        DataError: no samples, or some that are there twice.
    """

    def __init__(self, path: Path, num_frames: int | None, frame_interval: int, frames: bool) -> None:
        super().__init__(path, num_frames, frame_interval)
        listed = list_samples(path, frames)
        self.kind, self.paths = listed.kind, listed.paths
        if self.kind == "image":
            self._advice = f"; or crop them to one: stats data=image_folder data.root={path} data.image_size=SIZE"
        self.container = container_of(self.paths)
        if listed.classes is not None:
            names = sorted(set(listed.classes))
            self.labels = np.array([names.index(name) for name in listed.classes], dtype=np.int64)
        for text in listed.notes if is_first_rank() else ():
            print(f"{printable(path)}: {printable(text)}", flush=True)

    def __len__(self) -> int:
        return len(self.paths)

    def _files(self) -> Iterable[tuple[str, Path]]:
        for file in (Path(file) for path in self.paths for file in files_of(path)):
            yield file.relative_to(self.path).as_posix(), file

    def _arrays(self, positions: Sequence[int]) -> Iterator[tuple[str, Pixels]]:
        # Decoders release Python's lock. A few at a time, since `map` on all of them would hold all of them.
        with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(positions), READERS):
                paths = [self.paths[position] for position in positions[start : start + READERS]]
                names = [path.relative_to(self.path).as_posix() for path in paths]
                yield from zip(names, pool.map(self._read, names, paths), strict=True)

    def _read(self, name: str, path: Path) -> Pixels:
        if self.kind == "image":
            return np.asarray(read_rgb(path))
        if path.suffix.lower() == ".gif":
            frames = _gif(path)
            return frames[self._chosen(name, len(frames))]
        with contextlib.closing(open_video(path)) as video:
            length = video.info().frames
            return np.stack(video.read(range(length)[self._chosen(name, length)]))


def open_samples(
    path: str | Path, num_frames: int | None = None, frame_interval: int = 1, frames: bool = False
) -> SampleFiles:
    """Open an `.npz` of samples or a folder of them.

    Args:
        path: `.npz` with `arr_0` (uint8), a folder of images (.png, .jpg, ...) or clips (.mp4, .gif, ...), which may
            lie in class folders, or the folder of a `sample` job: its `samples.npz`, or else its first `samples_KIND`.
            Where a `samples.npz` of as many samples lies in or beside a folder of lossy files, it takes their place,
            which is printed.
        num_frames, frame_interval: which frames of a clip are taken, from the first one on; None takes all frames.
        frames: in a folder, each folder that holds images is a clip.

    Raises:
        DataError: no such file or folder, no samples in it, latents, or a damaged file; in one line.
    """
    path = Path(path)
    if (path / SAMPLING).is_file():
        path = _of_job(path)
    if path.is_dir():
        return _exact(FolderSamples(path, num_frames, frame_interval, frames))
    if not path.is_file():
        raise DataError(f"no such file or folder of samples: {path} ({path.resolve()})")
    if path.suffix != ".npz":
        raise DataError(f"{path}: samples are an .npz with arr_0, or a folder of images or clips")
    return NpzSamples(path, num_frames, frame_interval)


def _of_job(folder: Path) -> Path:
    """The samples in the folder of a `sample` job; the folder itself where it is only described by a sampling.json."""
    if (folder / NPZ).is_file():
        if others := [kind.name for kind in sorted(folder.glob("samples_*")) if kind.is_dir()]:
            print(f"{folder / NPZ} is read, the exact samples, not {' or '.join(others)} beside it", flush=True)
        return folder / NPZ
    if (folder / "parts").is_dir():
        raise DataError(
            f"{folder}: its samples are not all drawn yet; give its sample command again, with "
            f"{typed('hydra.run.dir', folder)}"
        )
    kinds = sorted(folder.glob("samples*"), key=lambda kind: (kind.name.endswith(DATASET), kind.name))
    return next((kind for kind in kinds if kind.is_dir()), folder)


def _exact(files: FolderSamples) -> SampleFiles:
    """What lossy files were made of, where it lies with them: the samples themselves are measured, not a codec."""
    folder = files.path
    for path in (folder / NPZ, folder.parent / NPZ) if folder.name.startswith("samples") else (folder / NPZ,):
        if files.container.lossless or not path.is_file():
            continue
        exact = NpzSamples(path, files.num_frames, files.frame_interval)
        if (exact.kind, len(exact)) == (files.kind, len(files)):
            if not _of_one_size(files, exact):
                print(f"{path} is not read in place of {folder}: its samples have another size", flush=True)
                continue
            print(f"{path} is read in place of {folder}: the same samples, exact, not {files.container}", flush=True)
            return exact
    return files


def _of_one_size(files: FolderSamples, exact: NpzSamples) -> bool:
    """Whether the first sample has one size in both; MP4s have even sides."""
    try:
        found = next(files._arrays([0]))[1].shape[:-1]
    except BrokenSample:  # the exact ones are all the better then
        return True
    *frames, height, width = next(exact._arrays([0]))[1].shape[:-1]
    return found in ((*frames, height, width), (*frames, height + height % 2, width + width % 2))


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(member)


def _gif(path: Path) -> Pixels:
    """All frames [F, H, W, 3] of a GIF."""
    try:
        return read_gif(path)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise BrokenSample(f"cannot read the GIF {path}: {error or type(error).__name__}") from error


def _size(shape: tuple[int, ...]) -> str:
    """Width x height, and frames where there are any."""
    return f"{shape[-1]}x{shape[-2]}" + (f" with {shape[0]} frames" if len(shape) == 3 else "")
