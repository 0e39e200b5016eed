"""Videos as frames: one interface, behind which are PyAV, decord, torchcodec, and folders of image files.

All of them count the frames alike: index i is the i-th picture that is shown (see `videos.Video`). PyAV lists the
frames of every file, and reads those in which the other two would find other frames. Only what a read needs is decoded,
from the key frame before it on. Every decoder keeps to one thread; the loader's processes are the parallelism.

Seen with decord 0.6 and torchcodec 0.13: decord counts packets that an edit list cuts off, seeks to other frames in
AVIs, in open groups of pictures and under intra-refresh, repeats frames of some fragmented MP4s, and does not turn a
picture that is mirrored or that says so in the stream; torchcodec fails in AVIs and in some trimmed files, and gives
other frames under intra-refresh.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neural_rdm.core.errors import BrokenSample, DataError
from neural_rdm.media.frames import frames_of
from neural_rdm.media.images import read_rgb
from neural_rdm.media.pyav import PyAV
from neural_rdm.media.video import Frame, Video, VideoInfo, address, broken, library


class FrameFolder:
    """A video as a folder of image files, in the order of the numbers in their names; they may differ in size."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.names = frames_of(path).names
        except DataError as error:
            raise BrokenSample(str(error), path) from error

    def info(self) -> VideoInfo:
        """How many frames there are, and the size of the first one."""
        width, height = self._frame(0).shape[1::-1]
        return VideoInfo(len(self.names), 0.0, width, height)

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`."""
        return [self._frame(i) for i in indices]

    def close(self) -> None:
        """Nothing is held open."""

    def _frame(self, index: int) -> Frame:
        if index >= len(self.names):
            raise BrokenSample(f"the folder holds {len(self.names)} frames; number {index} is not there", self.path)
        return np.asarray(read_rgb(self.path / self.names[index]))


class PlainVideo:
    """A plain video file (`PyAV.plain`) in another decoder than PyAV, which reads what this decoder fails to read.

    Args:
        listed: the same file, which is closed with this one.

    Raises:
        BrokenSample: the decoder cannot open it, or finds other frames in it.
    """

    def __init__(self, listed: PyAV) -> None:
        self.path, self._listed = listed.path, listed
        try:
            self._open()
        except Exception as error:  # each has errors of its own, and RuntimeError
            raise broken(error, self.path) from error

    def info(self) -> VideoInfo:
        """What it is; see `Video`."""
        return self._listed.info()

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`; see `Video`."""
        try:
            return self._read(list(indices))
        except Exception:  # damage, or another size of the picture from here on
            return self._listed.read(indices)

    def close(self) -> None:
        """Free the decoder."""
        self._decoder: Any = None
        self._listed.close()

    def _open(self) -> None:
        raise NotImplementedError

    def _read(self, indices: list[int]) -> list[Frame]:
        raise NotImplementedError


class Decord(PlainVideo):
    """A plain video file, decoded by decord.

    Open it where it is used and close it at once: a reader that a forked process inherits hangs. Where the rows of a
    frame end in padding that is a multiple of its width (8, 12, 16, 24, 48, 72, ... pixels), decord takes it for
    further channels and cannot make a batch: such frames come one at a time, without their padding.
    """

    def _open(self) -> None:
        decord = library("decord")
        decord.logging.set_level(decord.logging.QUIET)
        self._decoder = decord.VideoReader(address(self.path), num_threads=1)
        seconds = self._decoder.get_frame_timestamp(range(len(self._decoder)))[:, 0]
        listed = self._listed.seconds()
        if self._decoder.get_key_indices() != self._listed.keys or seconds.shape != listed.shape:
            raise ValueError("decord counts other frames in it than PyAV")
        if np.abs(seconds - seconds[0] - listed).max() > 1e-3:  # it begins at 0, and in float32
            raise ValueError("decord finds other time stamps in it than PyAV")

    def _read(self, indices: list[int]) -> list[Frame]:
        try:
            return list(self._decoder.get_batch(indices).asnumpy())
        except Exception as error:
            if "size must exactly match" not in str(error):
                raise
        return [_without_padding(self._decoder[index]) for index in indices]


class TorchCodec(PlainVideo):
    """A plain video file, decoded by torchcodec (FFmpeg)."""

    def _open(self) -> None:
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1}
        self._decoder = library("torchcodec.decoders").VideoDecoder(address(self.path), **options)
        if len(self._decoder) != len(self._listed.stamps):
            raise ValueError("torchcodec counts other frames in it than PyAV")

    def _read(self, indices: list[int]) -> list[Frame]:
        return list(self._decoder.get_frames_at(indices=indices).data.numpy())


def _without_padding(frame: Any) -> Frame:
    """A frame of decord as [H, W, 3]; see there."""
    pixels = frame.asnumpy()
    height, width = pixels.shape[:2]
    return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


#: `data.decoder` -> what reads plain files in PyAV's place, and the module that it needs
DECODERS: dict[str, tuple[type[Decord | TorchCodec] | None, str]] = {
    "decord": (Decord, "decord"),
    "pyav": (None, "av"),
    "torchcodec": (TorchCodec, "torchcodec.decoders"),
}


def open_video(path: str | os.PathLike[str], decoder: str = "pyav") -> Video:
    """Open a video file with `decoder`, one of `DECODERS`, or a folder of frames, which needs none.

    decord and torchcodec read plain files (`PyAV.plain`) whose frames they list as PyAV does; PyAV reads all others.

    Raises:
        BrokenSample: it cannot be opened.
        ConfigError: the decoder is not installed.
    """
    if os.path.isdir(path):
        return FrameFolder(path)
    check_decoder(decoder)
    video = PyAV(path)
    chosen = DECODERS[decoder][0]
    if chosen is None or not video.plain:
        return video
    try:
        return chosen(video)
    except BrokenSample:
        return video


def check_decoder(decoder: str) -> None:
    """Import what a decoder needs: PyAV, and itself.

    Raises:
        ConfigError: it is not installed.
    """
    for module in ("av", DECODERS[decoder][1]):
        library(module)
