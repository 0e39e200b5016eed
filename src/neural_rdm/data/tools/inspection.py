"""What can be said of a data set by looking at some of its samples: do they decode, how large are they."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from neural_rdm.core.errors import BrokenSample, printable
from neural_rdm.core.listing import Identity, walk
from neural_rdm.data.sampler import spread
from neural_rdm.data.source import Source

DARK = 31  #: of 255; a picture without a brighter pixel is all but black


@dataclass
class Looked:
    """What some samples of a data set are like.

    Attributes:
        decoded: how many were tried, broken ones too.
        failed: how many of these do not decode.
        broken: {path, printable: reason} of these, and of all clips that the index of the videos knows to be broken.
        sizes: (width, height) in pixels of each file that was tried and says so, of a clip of its first frame.
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


def look(sources: Iterable[Source], count: int, seed: int, advance: Callable[[], None] = lambda: None) -> Looked:
    """Decode `count` samples of each split, spread over it, through the data set's own `load`. `advance` is called
    after each.
    """
    looked = Looked()
    for source in sources:
        lengths = () if source.frames is None else source.frames
        looked.frames += [(int(n), source.path(i) or "") for i, n in enumerate(lengths) if i not in source.broken]
        looked.broken |= {printable(source.path(i) or ""): reason for i, reason in source.broken.items()}
        for index in spread(len(source), count, seed):
            path = source.path(index)
            looked.decoded += 1
            try:
                x = source.load(index, index)["x"]
                if x.max() <= DARK / 127.5 - 1:
                    looked.dark.append(printable(path or f"sample {index}"))
                if (info := source.info(index)) is not None:
                    looked.sizes.append((info.width, info.height))
                    looked.fps += [info.fps] if info.fps else []
            except BrokenSample as error:
                looked.failed += 1
                looked.broken[error.path or printable(path or f"sample {index}")] = error.reason
            advance()
    return looked


def disk_usage(root: str | os.PathLike[str], advance: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """(number of files, bytes) below `root`; links are followed, each folder and each file once. `advance` is called
    after each.
    """
    seen: dict[Identity, int] = {}
    number = total = 0
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
