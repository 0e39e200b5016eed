"""Samples as they are, without augmentation: an image once, a video with all of its frames, a caption list in full."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.base import BrokenSample, Source
from neural_rdm.data.captions import CaptionedImages
from neural_rdm.data.clips import ClipFiles
from neural_rdm.data.frames import frames_of
from neural_rdm.data.image_folder import ImageFiles, adm_crop
from neural_rdm.data.tar_shards import TarImages

_STEP = 1000  # files that are compared from one look at the bar to the next


@dataclass
class Raw:
    """One sample.

    x: uint8 [T, 3, S, S]; T = 1 for an image, the number of its frames for a video.
    broken: (path, reason) where it cannot be read; nothing else is there then.
    """

    index: int
    x: Tensor | None = None
    y: int | None = None
    captions: list[str] | None = None
    broken: tuple[str, str] | None = None


class Whole(Dataset[Raw]):
    """A pixel source, read by index.

    Args:
        source: of a data module.

    Raises:
        ConfigError: a source of another kind.
    """

    def __init__(self, source: Source) -> None:
        self.videos = isinstance(source, ClipFiles)
        if not self.videos and not isinstance(source, (ImageFiles, CaptionedImages, TarImages)):
            raise ConfigError(f"samples of a {type(source).__name__} are not files: there is nothing to encode once")
        plain: Any = copy.copy(source)
        plain.flip = plain.random = False
        self.source = plain
        #: what its listing has passed over
        self.left_out: list[BrokenSample] = list(getattr(source, "left_out", ()))

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> str:
        """The file (or folder of frames, or shard and key) of a sample."""
        source = self.source
        if isinstance(source, TarImages):
            return source.name(index)
        return str(source.path(index) if hasattr(source, "path") else source.paths[index])

    def __getitem__(self, index: int) -> Raw:
        try:
            if self.videos:
                return Raw(index, self._frames(index), None if self.source.y is None else int(self.source.y[index]))
            sample = self.source.load(index, 0)
            captions = self._captions(index) if "caption" in sample else None
        except BrokenSample as error:
            return Raw(index, broken=(error.path or self.path(index), error.reason))
        # exact: pixels are k / 127.5 - 1 of a byte k
        x = sample["x"].add(1).mul(127.5).round().to(torch.uint8)[None]
        return Raw(index, x, sample.get("y"), captions)

    def _frames(self, index: int) -> Tensor:
        with contextlib.closing(self.source.open(index)) as video:
            length, frames = int(self.source.frames[index]), []
            for first in range(0, length, 64):  # a decoder's frames are larger than the crops of them
                chosen = list(range(first, min(first + 64, length)))
                frames += [adm_crop(Image.fromarray(f), self.source.image_size) for f in video.read(chosen)]
        return torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy())

    def _captions(self, index: int) -> list[str]:
        source = self.source
        return source.captions(index) if isinstance(source, TarImages) else list(source.captions[index])

    def fingerprint(self, root: Path, count: int, show: bool = False) -> str:
        """sha256 of what the first `count` samples are made of: names below `root`, sizes and times of change of all
        their files, labels and captions; of tar shards the same of the shards.

        Args:
            show: a progress bar, where there are many.
        """
        digest, source = hashlib.sha256(), self.source

        def add(path: str) -> None:
            for name, size, changed in _files(path):
                digest.update(f"{os.path.relpath(name, root)}\0{size}\0{changed}\0".encode("utf-8", "surrogateescape"))

        if isinstance(source, TarImages):
            for shard, end in zip(source.shards, [0, *source.shard_ends], strict=False):
                if end < count:
                    add(os.fspath(shard))
            return digest.hexdigest()
        steps = range(0, count, _STEP)
        shown = show and len(steps) > 1
        with progress_bar("Comparing files", len(steps), "thousand") if shown else nullcontext(lambda: None) as advance:
            for first in steps:
                for index in range(first, min(first + _STEP, count)):
                    add(self.path(index))
                    if isinstance(source, CaptionedImages):
                        digest.update("\0".join(source.captions[index]).encode())
                    elif source.y is not None:
                        digest.update(f"{int(source.y[index])}\0".encode())
                advance()
        return digest.hexdigest()


def pixels(x: Tensor) -> Tensor:
    """Bytes -> float32 in [-1, 1], as the data sets make them."""
    return x.to(torch.float32).div_(127.5).sub_(1)


def _files(path: str) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change) of a file, or of the frames in a folder."""
    if os.path.isdir(path):
        try:
            names = frames_of(path).names
        except DataError:  # a broken sample, and no more than that
            names = []
        for name in names:
            yield from _files(os.path.join(path, name))
        return
    try:
        state = os.stat(path)
    except OSError:  # a link that leads nowhere is a broken sample, and no more than that
        yield path, -1, 0
        return
    yield path, state.st_size, state.st_mtime_ns
