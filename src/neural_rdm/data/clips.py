"""Clips out of videos: which of their frames make a clip, and the clip as a tensor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.seeding import uniform
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.decoders import Video, open_video
from neural_rdm.data.image_folder import adm_crop
from neural_rdm.data.packed import PackedStrings


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


class ClipFiles:
    """The clips of one split.

    Args:
        paths: video files and folders of frames.
        frames: int64 [N], how many frames of each can be read.
        broken: {index: what is wrong} of those that cannot be read at all.
        decoder: opens the files; one of `DECODERS`.
        labels: their classes [N], or None.
        image_size: S; frames are cropped as ADM crops images.
        num_frames: F.
        frame_interval: frames of the video from one frame of the clip to the next.
        image_frames: I single frames of other videos behind each clip, at most 31.
        random: start anywhere and mirror (`flip`), keyed by the sample's position; otherwise the clip in the middle.
    """

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

    def origins(self) -> Iterator[str]:
        """Path of each video file or folder of frames."""
        return iter(self.paths)

    def open(self, index: int) -> Video:
        """The video `index`; close it again.

        Raises:
            BrokenSample: it cannot be opened, now or when the index was made.
        """
        if index in self.broken:
            raise BrokenSample(self.broken[index], self.paths[index], index)
        return open_video(self.paths[index], self.decoder)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Clip `index`: x float32 [F + I, 3, S, S] in [-1, 1] ([3, S, S] for one frame), y its class, or [1 + I].

        Raises:
            BrokenSample: a video cannot be decoded; it says which.
        """
        draws = uniform(self.seed, "clip", [key * 64 + i for i in range(2 + 2 * self.image_frames)])
        start, mirror = draws[:2] if self.random else (0.5, 1.0)
        frames = self._frames(index, self.num_frames, start)
        if self.flip and self.random and mirror < 0.5:
            frames = [frame[:, ::-1] for frame in frames]
        labels = [] if self.y is None else [self.y[index]]
        for which, moment in draws[2:].reshape(-1, 2):
            # of those that can be read, and others for the sample that takes the place of a broken one
            other = int(self.readable[(int(which * len(self.readable)) + index) % len(self.readable)])
            frames += self._frames(other, 1, moment)
            labels += [] if self.y is None else [self.y[other]]
        x = torch.from_numpy(np.stack(frames).transpose(0, 3, 1, 2).astype(np.float32)).div_(127.5).sub_(1)
        sample: dict[str, Any] = {"x": x if len(x) > 1 else x[0]}
        if labels:
            sample["y"] = torch.stack(labels) if len(labels) > 1 else int(labels[0])
        return sample

    def _frames(self, index: int, num_frames: int, u: float) -> list[NDArray[np.uint8]]:
        try:
            with contextlib.closing(self.open(index)) as video:
                chosen = frame_numbers(int(self.frames[index]), num_frames, self.frame_interval, u)
                return [adm_crop(Image.fromarray(frame), self.image_size) for frame in video.read(chosen.tolist())]
        except BrokenSample as error:
            error.index = index
            raise
