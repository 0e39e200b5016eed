"""Samples on disk: parts that a killed or shared job leaves behind, and the files that are made of them."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import ConfigError, DataError, UserError
from neural_rdm.core.files import sweep, write_atomically, write_text
from neural_rdm.core.progress import progress_bar
from neural_rdm.media.gifs import save_gif
from neural_rdm.media.mp4 import pyav, write_mp4
from neural_rdm.reports.runs import read_mapping

SPEED = "fps.json"  # beside the clips of a job
#: the kind that is a folder for the library `datasets`, and what is written there last
DATASET, CARD = "datasets", "README.md"


class Parts:
    """The samples of one job, `size` of them a file, in `folder/parts`; a file is there whole or not at all.

    Which samples a part holds follows from its number, so several processes share a job by numbers, and one that goes
    on after a kill draws what is missing.

    Args:
        folder: of the job.
        count: samples in all.
        size: samples of a part.
    """

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder, self.count, self.size = folder / "parts", count, size
        self.numbers = range(-(-count // size))

    def positions(self, number: int) -> range:
        """The samples of a part."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def path(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{number:07d}.npy"

    def missing(self) -> list[int]:
        """The parts that are not there yet."""
        return [number for number in self.numbers if not self.path(number).is_file()]

    def save(self, number: int, samples: NDArray[Any]) -> None:
        """Keep a part: `samples` [n, ...] in the order of `positions`.

        Raises:
            UserError: the disk is full; what was written before is kept.
        """
        write_atomically(self.path(number), lambda file: np.save(file, samples))

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number in self.numbers:
            yield np.load(self.path(number), mmap_mode="r")

    def sample(self, position: int) -> NDArray[Any]:
        """One sample."""
        number, place = divmod(position, self.size)
        return np.load(self.path(number), mmap_mode="r")[place]

    def restore(self, path: Path) -> None:
        """Make the parts anew of the array in which `write_npz` put them.

        Raises:
            DataError: it is damaged.
            UserError: the disk is full.
        """
        try:
            with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
                np.lib.format.read_magic(member)
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
                if shape[0] != self.count:
                    raise ValueError(f"it holds {shape[0]} samples, not {self.count}")
                for number in self.numbers:
                    part = (len(self.positions(number)), *shape[1:])
                    content = member.read(math.prod(part) * dtype.itemsize)
                    self.save(number, np.frombuffer(content, dtype).reshape(part))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"cannot read {path}: {error}; remove it, and the samples are drawn again") from error

    def remove(self) -> None:
        """Delete the parts, once something was made of them."""
        for path in self.folder.glob("*.npy"):
            path.unlink()
        sweep(self.folder, deep=False)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def any(self) -> bool:
        """Whether some are there: a job that is finished has deleted them."""
        return any(self.folder.glob("*.npy"))


def same_request(path: Path, request: dict[str, Any], what: str = "samples") -> bool:
    """Write down what a folder's samples (or latents) are made of, or compare with what is written there.

    Returns:
        Whether the folder held this request already.

    Raises:
        ConfigError: it holds samples of another one.
        DataError: what is written there cannot be read.
    """
    if not path.is_file():
        write_text(path, json.dumps(request, indent=2) + "\n")
        return False
    held = read_mapping(path)
    if not held:
        raise DataError(
            f"{path} is damaged, so nobody knows what the {what} beside it are; choose another hydra.run.dir, or "
            "remove that folder"
        )
    asked = json.loads(json.dumps(request))
    different = [key for key in {**held, **asked} if held.get(key) != asked.get(key)]
    if different:
        raise ConfigError(
            f"{path.parent} holds {what} of another request (different: {', '.join(sorted(different))}); choose "
            "another hydra.run.dir, or remove that folder"
        )
    return True


def write_npz(path: Path, parts: Parts, **more: NDArray[Any]) -> Path:
    """Write `arr_0`, all parts one after the other, and further arrays as an uncompressed `.npz`, holding one part in
    memory at a time: the layout that ADM's evaluation suite reads.
    """
    first = next(iter(parts))
    header = {"descr": np.lib.format.dtype_to_descr(first.dtype), "fortran_order": False}

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, {**header, "shape": (parts.count, *first.shape[1:])})
                for part in parts:
                    member.write(np.ascontiguousarray(part).tobytes())
            for name, array in more.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    write_atomically(path, write)
    return path


def files_of(folder: Path, kind: str) -> Path:
    """Where the files of a kind lie in the folder of a job."""
    return folder / ("samples.npz" if kind == "npz" else f"samples_{kind}")


def is_written(folder: Path, kind: str, count: int) -> bool:
    """Whether a job's files of a kind are all there: the last of its `count` samples is written last."""
    path = files_of(folder, kind)
    last = {"npz": path, DATASET: path / CARD}.get(kind, path / file_name(count - 1, kind))
    return last.is_file()


def check_kinds(folder: Path, kinds: Sequence[str], clips: bool, pixels: bool, fps: int) -> None:
    """Refuse files that cannot be written into the folder of a job, before anything is drawn.

    Args:
        clips, pixels: what the samples are; images and latents otherwise.

    Raises:
        ConfigError: a kind that does not fit the samples, mp4 without PyAV, or clips that are there with another `fps`.
    """
    for named in kinds:
        kind = ("mp4" if clips else "png") if named == DATASET and pixels else named
        if kind != "npz" and (clips != (kind in ("gif", "mp4")) or not pixels):
            what = "latents" if not pixels else "clips" if clips else "images"
            fitting = "npz" if not pixels else "npz,gif" if clips else "npz,png"
            raise ConfigError(f"files={named} does not fit {what}; choose files=[{fitting}]")
        if kind == "mp4":
            pyav()
        if kind in ("gif", "mp4") and (speed := files_of(folder, named) / SPEED).is_file():
            same_request(speed, {"fps": fps})


def write_each(folder: Path, parts: Parts, kind: str, fps: int = 8) -> Path:
    """Write every sample as `folder/0000000.KIND`: images [H, W, C] as png, clips [F, H, W, C] as gif or mp4 (uint8).

    Files that are there already are kept, so that a job that was killed goes on; clips keep to the first `fps`.

    Raises:
        ConfigError: see `check_kinds`.
    """
    first = next(iter(parts))
    check_kinds(folder.parent, [kind], first.ndim == 5, first.dtype == np.uint8, fps)
    if first.ndim == 5:
        same_request(folder / SPEED, {"fps": fps})
    with progress_bar(f"writing {kind}", parts.count, "files") as advance:
        for number, part in zip(parts.numbers, parts, strict=True):
            for position, sample in zip(parts.positions(number), part, strict=True):
                if not (path := folder / file_name(position, kind)).is_file():
                    _write(path, sample, kind, fps)
                advance()
    return folder


def _write(path: Path, sample: NDArray[np.uint8], kind: str, fps: int) -> None:
    from PIL import Image

    if kind == "mp4":
        write_mp4(path, sample, fps)
    elif kind == "gif":
        frames = [Image.fromarray(_shown(frame)) for frame in sample]
        write_atomically(path, partial(save_gif, frames=frames, fps=fps))
    else:
        write_atomically(path, partial(Image.fromarray(_shown(sample)).save, format="PNG"))


def file_name(position: int, kind: str) -> str:
    """What the file of a sample is called."""
    return f"{position:07d}.{kind}"


def _shown(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] for one channel, else [H, W, 3]."""
    return np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame[..., :3])


def balanced(shown: Sequence[Any], count: int) -> list[Any]:
    """`count` of the things shown, each as often as the others (the first ones once more where it does not divide)."""
    if not shown or count < 1:
        raise UserError(f"nothing to draw: {count} samples of {len(shown)} classes")
    return [shown[i % len(shown)] for i in range(count)]
