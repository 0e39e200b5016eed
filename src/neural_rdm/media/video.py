"""What an open video is, whatever decodes it, and what its decoders share."""

from __future__ import annotations

import importlib
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import BrokenSample, ConfigError

Frame = NDArray[np.uint8]

#: module that reads videos -> (what it is called where it is missing, how to get it)
MODULES = {
    "av": ("video files are read with PyAV, which", "pip install av"),
    "decord": (
        "data.decoder=decord: decord",
        "pip install decord (wheels for x86-64 only), or choose data.decoder=pyav",
    ),
    "torchcodec.decoders": (
        "data.decoder=torchcodec: torchcodec",
        "Install the torchcodec that goes with your torch, and FFmpeg's shared libraries, or choose data.decoder=pyav",
    ),
}


class VideoInfo(NamedTuple):
    """frames: how many are shown; fps: frames a second, 0 where nothing says; width, height: in pixels, as shown."""

    frames: int
    fps: float
    width: int
    height: int


class Video(Protocol):
    """An open video. Whatever is wrong with its file comes out as `BrokenSample`.

    Frame i is the i-th picture that is shown when the file is played from its start: what an edit list cuts off does
    not count. A picture is given the way up it is shown (display matrix), with the pixels that are stored: where they
    are not square, nothing is stretched, as in Latte's and StyleGAN-V's readers.
    """

    def info(self) -> VideoInfo:
        """What it is; it decodes the last frames, or all where the container does not tell their number."""
        ...

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`, in this order (repeats allowed), each uint8 RGB [H, W, 3]."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def library(module: str) -> Any:
    """Import one of `MODULES`.

    Raises:
        ConfigError: it is not installed, or its own libraries are not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two where torchcodec does not find FFmpeg
        name, advice = MODULES[module]
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        raise ConfigError(f"{name} {why}. {advice}. Folders of frames and GIFs need no decoder.") from error


def address(path: str | os.PathLike[str]) -> str | io.BytesIO:
    """What FFmpeg opens: the absolute path, since it takes the `a` of `a:b/0.mp4` for a protocol, or the file's bytes
    where its name is not UTF-8, which the libraries require.
    """
    name = os.path.abspath(path)
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        return io.BytesIO(Path(name).read_bytes())


def broken(error: Exception, path: str | os.PathLike[str]) -> BrokenSample:
    """An error of a decoder as the sentence that it ends with."""
    # decord puts "[12:00:00] /its/source.cc:292: " before its words, a time that would make equal runs differ
    text = re.sub(r"\[[\d:]+\] \S+?:\d+: ", "", str(error)).strip()
    return BrokenSample(f"cannot be decoded ({text.splitlines()[-1] if text else type(error).__name__})", path)
