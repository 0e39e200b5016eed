"""Clips out of videos: which of their frames make a clip, and the clip as a tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from neural_rdm.core.errors import BrokenSample
from neural_rdm.core.seeding import uniform
from neural_rdm.data.packed import PackedStrings
from neural_rdm.data.source import Source
from neural_rdm.media.decoders import Video, open_video
from neural_rdm.media.images import adm_crop, from_bytes
from neural_rdm.media.video import VideoInfo


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


class ClipSource(Source):
    """Clips drawn of videos: what `ClipFiles` and the latents of videos share.

    Attributes:
        num_frames: F.
        frame_interval: frames of the video from one frame of the clip to the next.
        image_frames: I single frames of other videos behind each clip, at most 31.
        random: start anywhere and mirror (`flip`), keyed by the sample's position; otherwise the clip in the middle.
    """

    num_frames: int
    frame_interval: int
    image_frames: int

    def part(self, index: int, num_frames: int, u: float, mirrored: bool) -> tuple[Tensor, int | None]:
        """Frames [num_frames, ...] of video `index` from where `u` says (`frame_numbers`), and its class."""
        raise NotImplementedError

    def others(self) -> Sequence[int] | NDArray[np.int64]:
        """Of which videos single frames are drawn."""
        return range(len(self))

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Clip `index`: x [F + I, C, S, S] ([C, S, S] for one frame), y its class, or [1 + I].

        Raises:
            BrokenSample: a video cannot be decoded; it says which.
        """
        draws = uniform(self.seed, "clip", [key * 64 + i for i in range(2 + 2 * self.image_frames)])
        start, mirror = draws[:2] if self.random else (0.5, 1.0)
        parts = [self.part(index, self.num_frames, start, self.flip and mirror < 0.5)]
        others = self.others()
        for which, moment in draws[2:].reshape(-1, 2):
            # of those that can be read, and others for the sample that takes the place of a broken one
            other = int(others[(int(which * len(others)) + index) % len(others)])
            parts.append(self.part(other, 1, moment, False))
        x, labels = torch.cat([frames for frames, _ in parts]), [label for _, label in parts]
        sample: dict[str, Any] = {"x": x if len(x) > 1 else x[0]}
        if labels[0] is not None:
            sample["y"] = torch.tensor(labels) if len(labels) > 1 else labels[0]
        return sample


class ClipFiles(ClipSource):
    """The clips of one split, float32 [F + I, 3, S, S] in [-1, 1].

    Args:
        paths: video files and folders of frames.
        frames, broken: see `Source`.
        decoder: opens the files; one of `DECODERS`.
        labels: their classes [N], or None.
        image_size: S; frames are cropped as ADM crops images.
        num_frames, frame_interval, image_frames, random, flip, seed: see `ClipSource`.
    """

    frames: NDArray[np.int64]

    def __init__(
        self,
        paths: Sequence[str],
        frames: NDArray[np.int64],
        broken: Mapping[int, str],
        decoder: str,
        labels: Sequence[int] | None,
        image_size: int,
        num_frames: int,
        frame_interval: int,
        image_frames: int = 0,
        random: bool = True,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.paths = PackedStrings(paths)
        self.frames, self.broken, self.decoder = frames, broken, decoder
        self.readable = np.flatnonzero(frames)
        self.y = None if labels is None else torch.tensor(labels)
        self.image_size, self.num_frames, self.frame_interval = image_size, num_frames, frame_interval
        self.image_frames, self.random, self.flip, self.seed = image_frames, random, flip, seed

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The video file or folder of frames `index`."""
        return self.paths[index]

    def open(self, index: int) -> Video:
        """The video `index`; close it again.

        Raises:
            BrokenSample: it cannot be opened, now or when the index was made.
        """
        if index in self.broken:
            raise BrokenSample(self.broken[index], self.path(index), index)
        return open_video(self.path(index), self.decoder)

    def info(self, index: int) -> VideoInfo:
        """Length, frames a second and size of the video `index`."""
        with contextlib.closing(self.open(index)) as video:
            return video.info()

    def raw(self, index: int) -> Tensor:
        """Every frame of a video, cropped, uint8 [T, 3, S, S]."""
        with contextlib.closing(self.open(index)) as video:
            length, frames = int(self.frames[index]), []
            for first in range(0, length, 64):  # a decoder's frames are larger than the crops of them
                read = video.read(range(first, min(first + 64, length)))
                frames += [adm_crop(Image.fromarray(frame), self.image_size) for frame in read]
        return _stacked(frames)

    def others(self) -> NDArray[np.int64]:
        """Those that can be read."""
        return self.readable

    def part(self, index: int, num_frames: int, u: float, mirrored: bool) -> tuple[Tensor, int | None]:
        """See `ClipSource`."""
        try:
            with contextlib.closing(self.open(index)) as video:
                chosen = frame_numbers(int(self.frames[index]), num_frames, self.frame_interval, u)
                frames = [adm_crop(Image.fromarray(frame), self.image_size) for frame in video.read(chosen.tolist())]
        except BrokenSample as error:
            error.index = index
            raise
        if mirrored:
            frames = [frame[:, ::-1] for frame in frames]
        return from_bytes(_stacked(frames)), None if self.y is None else int(self.y[index])


def _stacked(frames: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Frames [S, S, 3] as one tensor uint8 [T, 3, S, S]."""
    return torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).copy())
