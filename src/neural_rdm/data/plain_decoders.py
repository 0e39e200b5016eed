"""Plain H.264 MP4s (`PyAV.plain`) through decord and torchcodec, which give other frames of others.

Seen with decord 0.6 and torchcodec 0.13: decord counts packets that an edit list cuts off, seeks to other frames in
AVIs, in open groups of pictures and under intra-refresh, repeats frames of some fragmented MP4s, and does not turn a
picture that is mirrored or that says so in the stream; torchcodec fails in AVIs and in some trimmed files, and gives
other frames under intra-refresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from neural_rdm.data.pyav import PyAV
from neural_rdm.data.videos import Frame, VideoInfo, address, broken, library


class PlainVideo:
    """A plain video file in another decoder than PyAV, which reads what this decoder fails to read.

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
