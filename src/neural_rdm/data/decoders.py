"""Videos as frames: one interface, behind which are PyAV, decord, torchcodec, and folders of image files.

All of them count the frames alike: index i is the i-th picture that is shown (see `videos.Video`). PyAV lists the
frames of every file, and reads those in which the other two would find other frames. Only what a read needs is decoded,
from the key frame before it on. Every decoder keeps to one thread; the loader's processes are the parallelism.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neural_rdm.core.errors import DataError
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.frames import frames_of
from neural_rdm.data.image_folder import read_rgb
from neural_rdm.data.plain_decoders import Decord, TorchCodec
from neural_rdm.data.pyav import PyAV
from neural_rdm.data.videos import Frame, Video, VideoInfo, library

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
