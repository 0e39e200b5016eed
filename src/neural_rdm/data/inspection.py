"""What can be said of a data set by looking at some of its samples: do they decode, how large are they."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neural_rdm.core.listing import Identity, walk
from neural_rdm.core.seeding import keys
from neural_rdm.data.base import BrokenSample, Source
from neural_rdm.data.broken import printable
from neural_rdm.data.decoders import VideoInfo, open_video

DARK = 31  #: of 255; a picture without a brighter pixel is all but black


@dataclass
class Looked:
    """What some samples of a data set are like.

    Attributes:
        decoded: how many were tried, broken ones too.
        failed: how many of these do not decode.
        broken: {path, printable: reason} of these, and of all clips that the index of the videos knows to be broken.
        sizes: (width, height) in pixels of each file that was tried, of a clip of its first frame.
        fps: frames a second of each that says so.
        dark: samples without a value above `DARK`.
        frames: (number of frames, path) of each clip of the whole set.
    """

    decoded: int = 0
    failed: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    frames: list[tuple[int, str]] = field(default_factory=list)
    fps: list[float] = field(default_factory=list)
    dark: list[str] = field(default_factory=list)


def path_of(source: Source, index: int) -> str | None:
    """The file or folder of sample `index`; None for samples that are no files of their own."""
    if callable(path := getattr(source, "path", None)):
        return os.fspath(path(index))
    paths = getattr(source, "paths", None)
    return None if paths is None else os.fspath(paths[index])


def known_broken(source: Source) -> dict[int, str]:
    """{index: reason} of the samples that are known to be broken before they are read: of videos, by their index."""
    broken: dict[int, str] = getattr(source, "broken", {})
    return broken


def labels_of(source: Source) -> NDArray[np.int64] | None:
    """The class [N] of each sample, None where there are none."""
    labels = getattr(source, "y", None)
    return labels.numpy() if isinstance(labels, Tensor) and labels.shape == (len(source),) else None


def spread(size: int, count: int, seed: int) -> list[int]:
    """At most `count` of 0 ... size - 1, ascending: one drawn from each of `count` equal stretches."""
    count = min(size, count)
    edges = np.arange(count + 1) * size // max(1, count)
    draws = keys(seed, "spread", range(count)) % np.diff(edges).astype(np.uint64)
    return [int(edge) + int(draw) for edge, draw in zip(edges[:-1], draws, strict=True)]


def look(
    sources: Mapping[str, Source],
    count: int,
    seed: int,
    advance: Callable[[], None] = lambda: None,
    decoder: str = "decord",
) -> Looked:
    """Decode `count` samples of each split, spread over it, through the data set's own `load`.

    Args:
        advance: called after each sample.
        decoder: what reads the length and the size of video files.
    """
    looked = Looked()
    for source in sources.values():
        lengths, broken = getattr(source, "frames", []), known_broken(source)
        looked.frames += [(int(n), path_of(source, i) or "") for i, n in enumerate(lengths) if i not in broken]
        looked.broken |= {printable(path_of(source, i) or ""): reason for i, reason in broken.items()}
        for index in spread(len(source), count, seed):
            path = path_of(source, index)
            looked.decoded += 1
            try:
                x = source.load(index, index)["x"]
                if x.max() <= DARK / 127.5 - 1:
                    looked.dark.append(printable(path or f"sample {index}"))
                if path is not None:
                    _measure(path, decoder, looked)
            except BrokenSample as error:
                looked.failed += 1
                looked.broken[error.path or printable(path or f"sample {index}")] = error.reason
            advance()
    return looked


def _measure(path: str, decoder: str, looked: Looked) -> None:
    """Add the size of an image, or the size of a clip and its frames a second."""
    try:
        with Image.open(path) as image:
            looked.sizes.append(image.size)
        return
    except OSError:  # no image: a video, or a folder of frames
        pass
    info = video_info(path, decoder)
    looked.sizes.append((info.width, info.height))
    if info.fps:
        looked.fps.append(info.fps)


def video_info(path: str, decoder: str) -> VideoInfo:
    """Length, frames a second and size of a video file or a folder of frames.

    Raises:
        BrokenSample: it cannot be read.
    """
    video = open_video(path, decoder)
    try:
        return video.info()
    finally:
        video.close()


def disk_usage(root: str | os.PathLike[str], advance: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """(number of files, bytes) below `root`; links are followed, each folder and each file once.

    Args:
        advance: called after each file.
    """
    total = 0
    seen: dict[Identity, int] = {}
    number = 0
    for folder, _, files in walk(root):
        for name in files:
            try:
                state = os.stat(os.path.join(folder, name))
            except OSError:  # a link that leads nowhere
                continue
            advance()
            if state.st_nlink > 1 or os.path.islink(os.path.join(folder, name)):
                seen[state.st_dev, state.st_ino] = state.st_size
            else:
                number, total = number + 1, total + state.st_size
    return number + len(seen), total + sum(seen.values())
