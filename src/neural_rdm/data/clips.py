"""Clips out of videos: which frames, and how they are decoded, from video files (decord) or folders of frames."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.layouts import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from neural_rdm.core.seeding import uniform
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.image_folder import adm_crop, read_rgb


class Video(Protocol):
    """An open video."""

    def length(self) -> int:
        """How many frames it has."""
        ...

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames `indices`, RGB; only these are decoded."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class FrameFolder:
    """A video as a folder of image files, in the order of the numbers in their names."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            names = [n for n in os.listdir(path) if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES and n[0] != "."]
        except OSError as error:
            raise BrokenSample(f"cannot read the frames in {os.fspath(path)}: {error.strerror}") from error
        self.names = sorted(names, key=natural)

    def length(self) -> int:
        """How many frames it has."""
        return len(self.names)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames `indices`."""
        return [read_rgb(self.path / self.names[i]) for i in indices]

    def close(self) -> None:
        """Nothing is held open."""


class Decord:
    """A video file, decoded by decord.

    Open it where it is used and close it at once: a reader that a forked worker inherits hangs.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import decord
        except ImportError as error:
            raise BrokenSample(
                f"cannot decode {os.fspath(path)}: decord is not installed (pip install decord; it has wheels for "
                "x86-64). Folders of frames need no decoder."
            ) from error
        self.path = os.fspath(path)
        try:
            self._reader: Any = decord.VideoReader(self.path, num_threads=1)
        except Exception as error:  # decord raises its own errors and RuntimeError
            raise BrokenSample(
                f"cannot decode the video {self.path}: {_line(error)}. Replace it or delete it."
            ) from error

    def length(self) -> int:
        """How many frames it has."""
        return len(self._reader)

    def frames(self, indices: Sequence[int]) -> list[Image.Image]:
        """The frames `indices`."""
        try:
            batch = self._reader.get_batch(list(indices)).asnumpy()
        except Exception as error:
            raise BrokenSample(
                f"cannot decode the video {self.path}: {_line(error)}. Replace it or delete it."
            ) from error
        return [Image.fromarray(frame) for frame in batch]

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None


def open_video(path: str | os.PathLike[str]) -> Video:
    """Open a video file or a folder of frames."""
    return FrameFolder(path) if os.path.isdir(path) else Decord(path)


def frame_numbers(length: int, num_frames: int, frame_interval: int, u: float) -> NDArray[np.int64]:
    """Which frames of a video make a clip [num_frames], ascending.

    The clip begins at a place that `u` in [0, 1) chooses among all that fit. In a video too short for the interval, the
    largest interval that fits is taken; in one with fewer frames than the clip, its last frame is repeated.

    Raises:
        ValueError: a video without frames.
    """
    if length < 1:
        raise ValueError("a video without frames")
    if num_frames > 1:
        frame_interval = max(1, min(frame_interval, (length - 1) // (num_frames - 1)))
    span = (num_frames - 1) * frame_interval + 1
    start = int(u * max(1, length - span + 1))
    return np.minimum(start + frame_interval * np.arange(num_frames), length - 1)


def find_videos(folder: Path) -> list[Path]:
    """Every video file below `folder` and every folder that directly holds images, sorted by name."""
    found: list[Path] = []
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = [f for f in files if not f.startswith(".")]
        found += [Path(directory) / f for f in here if os.path.splitext(f)[1].lower() in VIDEO_SUFFIXES]
        if any(os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES for f in here):
            found.append(Path(directory))
    return sorted(found, key=lambda path: natural(str(path)))


class ClipFiles:
    """The clips of one split.

    Args:
        paths: video files and folders of frames.
        labels: their classes [N], or None.
        image_size: S; frames are cropped as ADM crops images.
        num_frames: F.
        frame_interval: frames of the video from one frame of the clip to the next.
        image_frames: I single frames of other videos behind each clip.
        random: start anywhere and mirror (`flip`), keyed by the sample's position; otherwise the clip in the middle.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int] | None,
        image_size: int,
        num_frames: int,
        frame_interval: int,
        image_frames: int = 0,
        random: bool = True,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.paths = [os.fspath(p) for p in paths]
        self.y = None if labels is None else torch.tensor(labels)
        self.image_size, self.num_frames, self.frame_interval = image_size, num_frames, frame_interval
        self.image_frames, self.random, self.flip, self.seed = image_frames, random, flip, seed

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Clip `index`: x float32 [F + I, 3, S, S] in [-1, 1] ([3, S, S] for one frame), y its class, or [1 + I].

        Raises:
            BrokenSample: the video cannot be decoded; the message names it.
        """
        draws = uniform(self.seed, "clip", [key * 64 + i for i in range(2 + 2 * self.image_frames)])
        start, mirror = draws[:2] if self.random else (0.5, 1.0)
        frames = self._frames(index, self.num_frames, start)
        if self.flip and self.random and mirror < 0.5:
            frames = [frame[:, ::-1] for frame in frames]
        labels = [] if self.y is None else [self.y[index]]
        for which, moment in draws[2:].reshape(-1, 2):
            other = int(which * len(self))
            frames += self._frames(other, 1, moment)
            labels += [] if self.y is None else [self.y[other]]
        x = torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32)).div_(127.5).sub_(1)
        sample: dict[str, Any] = {"x": x if len(x) > 1 else x[0]}
        if labels:
            sample["y"] = torch.stack(labels) if len(labels) > 1 else int(labels[0])
        return sample

    def _frames(self, index: int, num_frames: int, u: float) -> list[NDArray[np.uint8]]:
        video = open_video(self.paths[index])
        try:
            if video.length() < 1:
                raise BrokenSample(f"the video {self.paths[index]} has no frames. Replace it or delete it.")
            chosen = frame_numbers(video.length(), num_frames, self.frame_interval, u)
            return [adm_crop(frame, self.image_size) for frame in video.frames(chosen.tolist())]
        finally:
            video.close()


def natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key by the numbers in a name: frame_10 follows frame_9."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", name) if part]


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
