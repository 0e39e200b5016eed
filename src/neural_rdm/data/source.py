"""What a set of samples says of itself: every command asks this contract, and none asks for a class by its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neural_rdm.core.errors import BrokenSample, DataError
from neural_rdm.core.progress import progress_bar
from neural_rdm.core.seeding import choice, uniform
from neural_rdm.media.frames import files_of
from neural_rdm.media.images import to_bytes
from neural_rdm.media.video import VideoInfo

_STEP = 1000  # files that are compared from one look at the bar to the next


class Source:
    """A map-style set of samples. `__len__` and `load` are what training needs; the rest has an answer for samples that
    are made rather than read from files.

    Attributes:
        y: classes int64 [N], None without labels.
        frames: of videos how many frames of each can be read, int64 [N]; None for others.
        broken: {index: reason} of samples that are known to be broken before they are read.
        left_out: what the listing of the samples has passed over.
        captioned: whether there are captions.
        flip: mirror half of the samples, keyed by (seed, position).
        random: draw a caption, or where a clip begins, by (seed, position).
        folders: those that hold the files, where they are known without a look at each file.
    """

    y: Tensor | None = None
    frames: NDArray[np.int64] | None = None
    broken: Mapping[int, str] = {}
    left_out: Sequence[BrokenSample] = ()
    captioned: bool = False
    flip: bool = False
    random: bool = False
    seed: int = 0
    folders: Sequence[str] | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index` as {"x": float32 tensor, "y": int (if labelled)}; the position `key` keys its augmentation.

        Raises:
            BrokenSample: it cannot be read. Nothing else may come of what the bytes of a file are.
        """
        raise NotImplementedError

    def path(self, index: int) -> str | None:
        """The file, or folder of frames, that is sample `index`; None for samples that are no files of their own."""
        return None

    def name(self, index: int) -> str | None:
        """What sample `index` is called, below the folder of its data set; None for samples that are made."""
        return self.path(index)

    def info(self, index: int) -> VideoInfo | None:
        """What the file that is sample `index` is like, by default where it is an image; None where nothing says so.

        Raises:
            BrokenSample: it cannot be read.
        """
        if (path := self.path(index)) is None:
            return None
        try:
            with Image.open(path) as image:
                return VideoInfo(1, 0, *image.size)
        except OSError:
            return None

    def origins(self) -> Iterator[str]:
        """The files, or folders of frames, that the samples are read from."""
        return (path for path in map(self.path, range(len(self))) if path is not None)

    def captions(self, index: int) -> Sequence[str]:
        """All captions of sample `index`; by default the one that comes with it.

        Raises:
            BrokenSample: they cannot be read.
        """
        said = self.load(index, index).get("caption")
        return [] if said is None else [said]

    def labels(self) -> NDArray[np.int64] | None:
        """The class [N] of each sample, None where there are none."""
        return None if self.y is None else self.y.numpy()

    def raw(self, index: int) -> Tensor:
        """All of sample `index`, uint8 [T, 3, S, S]: T = 1 for an image, the number of its frames for a video."""
        return to_bytes(self.load(index, 0)["x"])[None]

    def mirrored(self, key: int) -> bool:
        """Whether the sample at position `key` is mirrored."""
        return self.flip and bool(uniform(self.seed, "flip", [key])[0] < 0.5)

    def which(self, key: int, count: int) -> int:
        """Which of `count` captions is that of the sample at position `key`."""
        return choice(self.seed, "caption", key, count) if self.random else 0

    def listing(self, size: int, root: str | os.PathLike[str] | None) -> str | None:
        """sha256 of the names (below `root`) and labels of the first `size` samples; None where they have no names."""
        digest = hashlib.sha256()
        top = f"{os.path.abspath(os.path.expanduser(root or ''))}{os.sep}"
        for index in range(size):
            if (name := self.name(index)) is None:
                return None
            digest.update(f"{name.removeprefix(top)}\0".encode("utf-8", "surrogateescape"))
        if self.y is not None:
            digest.update(self.y[:size].contiguous().numpy().tobytes())
        return digest.hexdigest()

    def fingerprint(self, root: Path, size: int, show: bool = False) -> str:
        """sha256 of what the first `size` samples are made of: names below `root`, sizes and times of change of all
        their files, and captions or labels.

        Args:
            show: a progress bar, where there are many.
        """
        digest, steps = hashlib.sha256(), range(0, size, _STEP)
        shown = show and len(steps) > 1
        with progress_bar("Comparing files", len(steps), "thousand") if shown else nullcontext(lambda: None) as advance:
            for first in steps:
                for index in range(first, min(first + _STEP, size)):
                    digest.update(stamp(self.path(index) or "", root))
                    if self.captioned:
                        digest.update("\0".join(self.captions(index)).encode())
                    elif self.y is not None:
                        digest.update(f"{int(self.y[index])}\0".encode())
                advance()
        return digest.hexdigest()


def stamp(path: str, root: Path) -> bytes:
    """Name below `root`, size and time of change of a file, or of the frames in a folder, for a hash."""
    text = "".join(f"{os.path.relpath(name, root)}\0{size}\0{changed}\0" for name, size, changed in _files(path))
    return text.encode("utf-8", "surrogateescape")


def _files(path: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change) of a file, or of the frames in a folder. What cannot be read is a broken sample,
    and no more than that.
    """
    with contextlib.suppress(DataError):
        for file in files_of(path):
            try:
                state = os.stat(file)
                yield file, state.st_size, state.st_mtime_ns
            except OSError:  # a link that leads nowhere
                yield file, -1, 0
