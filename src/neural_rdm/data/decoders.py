"""Videos as frames: three methods, behind which are decord, PyAV, torchcodec, and folders of image files.

All of them count the frames alike: index i is the i-th picture that is shown. Only what a read needs is decoded, from
the key frame before it on. Every decoder keeps to one thread; the loader's processes are the parallelism.
"""

from __future__ import annotations

import bisect
import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.frames import frames_of
from neural_rdm.data.image_folder import read_rgb

Frame = NDArray[np.uint8]


class VideoInfo(NamedTuple):
    """frames: how many there are; fps: frames a second, 0 where nothing says; width, height: in pixels."""

    frames: int
    fps: float
    width: int
    height: int


class Video(Protocol):
    """An open video. Whatever is wrong with its file comes out as `BrokenSample`."""

    def info(self) -> VideoInfo:
        """What it is, as its container says: see `video_index` for what can be read of it."""
        ...

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices` (ascending, repeats allowed), each uint8 RGB [H, W, 3]."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


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


class Decord:
    """A video file, decoded by decord.

    Open it where it is used and close it at once: a reader that a forked process inherits hangs. In an AVI its seeks
    land on wrong frames (issues 195 and 252 of dmlc/decord), so these are read from the first frame on. In other
    files they are exact unless a group of pictures refers to the one before (x264's open-gop): PyAV is exact there too.
    Where the rows of a frame end in padding that is a multiple of its width (8, 12, 16, 24, 48, 72, ... pixels), decord
    takes it for further channels and cannot make a batch: such frames come one at a time, without their padding.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        decord = library("decord")
        self.path = path
        try:
            decord.logging.set_level(decord.logging.QUIET)
            self._reader: Any = decord.VideoReader(_source(path), num_threads=1)
        except Exception as error:  # decord raises its own errors and RuntimeError
            raise _broken(error, path) from error

    def info(self) -> VideoInfo:
        """What it is; decodes the first frame, which alone says the size."""
        height, width = self.read([0])[0].shape[:2]
        return VideoInfo(len(self._reader), float(self._reader.get_avg_fps()), width, height)

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`."""
        try:
            if not _is_avi(self.path):
                try:
                    return list(self._reader.get_batch(list(indices)).asnumpy())
                except Exception as error:
                    if "size must exactly match" not in str(error):
                        raise
                    return [_without_padding(self._reader[index]) for index in indices]
            found, wanted = {}, set(indices)
            self._reader.seek(0)
            for index in range(max(wanted) + 1):
                frame = self._reader.next()
                if index in wanted:
                    found[index] = _without_padding(frame)
            return [found[index] for index in indices]
        except Exception as error:
            raise _broken(error, self.path) from error

    def close(self) -> None:
        """Free the decoder."""
        self._reader = None


class PyAV:
    """A video file, decoded by PyAV (FFmpeg).

    The packets are listed when it is opened, without decoding. A read then begins at the last key frame before each
    frame. In an AVI, whose time stamps are guesses, it begins at the first frame: there, only counting is exact.
    """

    _container: Any = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._av = library("av")
        self.path = path
        self._keys: list[int] = [0]
        self._stamps: list[int] = []
        try:
            self._open()
            packets = self._packets()
            self._count = len(packets)
            if not packets:
                raise ValueError("no frames in it")
            stamps = [stamp for stamp, _ in packets if stamp is not None]
            if len(set(stamps)) == self._count and self._container.format.name != "avi":
                self._stamps = sorted(stamps)
                keys = [stamp for stamp, key in packets if key and stamp is not None]
                self._keys = sorted({0, *(bisect.bisect_left(self._stamps, stamp) for stamp in keys)})
        except Exception as error:
            self.close()
            raise _broken(error, path) from error

    def info(self) -> VideoInfo:
        """What it is."""
        context, rate = self._stream.codec_context, self._stream.average_rate
        return VideoInfo(self._count, float(rate or 0), context.width, context.height)

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`."""
        found: dict[int, Frame] = {}
        groups: dict[int, set[int]] = {}  # key frame -> what is decoded from it on
        for index in indices:
            groups.setdefault(self._keys[bisect.bisect_right(self._keys, index) - 1], set()).add(index)
        try:
            for key, wanted in groups.items():
                for index, frame in self._from(key):
                    if index in wanted:
                        found[index] = frame.to_ndarray(format="rgb24")
                    if index >= max(wanted):
                        break
            return [found[index] for index in indices]
        except KeyError as error:
            raise BrokenSample(f"the video ends before its frame {error}", self.path) from error
        except Exception as error:
            raise _broken(error, self.path) from error

    def close(self) -> None:
        """Free the decoder."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self.close()
        self._container = self._av.open(_source(self.path))
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise ValueError("no video in it")
        self._stream.codec_context.thread_count = 1

    def _packets(self) -> list[tuple[int | None, bool]]:
        """(presentation time stamp, is a key frame) of every frame, in the order in which they are stored."""
        found = []
        with contextlib.suppress(self._av.FFmpegError):  # cut off: what is before the cut counts
            for packet in self._container.demux(self._stream):
                if packet.size:
                    found.append((packet.pts, packet.is_keyframe))
        return found

    def _from(self, key: int) -> Iterator[tuple[int, Any]]:
        """(index, frame) from the key frame `key` on."""
        if key:
            stamp = self._stamps[key]
            self._container.seek(stamp, stream=self._stream)
            frames = self._container.decode(self._stream)
            first = next((frame for frame in frames if frame.pts is None or frame.pts >= stamp), None)
            if first is not None and first.pts == stamp:
                yield key, first
                yield from enumerate(frames, key + 1)
                return
        self._open()  # the packets were read to their end, and not every file can be rewound
        yield from enumerate(self._container.decode(self._stream))


class TorchCodec:
    """A video file, decoded by torchcodec (FFmpeg). It goes by time stamps, so AVI files are refused (see `PyAV`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        decoders = library("torchcodec.decoders")
        self.path = path
        try:
            if _is_avi(path):
                raise ValueError("torchcodec gives the frames of an AVI in a wrong order; choose another data.decoder")
            self._decoder: Any = decoders.VideoDecoder(_source(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        except Exception as error:
            raise _broken(error, path) from error

    def info(self) -> VideoInfo:
        """What it is."""
        said = self._decoder.metadata
        return VideoInfo(len(self._decoder), float(said.average_fps or 0), said.width, said.height)

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`."""
        try:
            return list(self._decoder.get_frames_at(indices=list(indices)).data.numpy())
        except Exception as error:
            raise _broken(error, self.path) from error

    def close(self) -> None:
        """Free the decoder."""
        self._decoder = None


#: `data.decoder` -> (class, module that it needs, how to get that)
DECODERS: dict[str, tuple[Callable[[str | os.PathLike[str]], Video], str, str]] = {
    "decord": (Decord, "decord", "pip install decord (wheels for x86-64 only), or choose data.decoder=pyav"),
    "pyav": (PyAV, "av", 'pip install av, or "neural-rdm[mp4]"'),
    "torchcodec": (
        TorchCodec,
        "torchcodec.decoders",
        "Install the torchcodec that goes with your torch, and FFmpeg's shared libraries, or choose another decoder",
    ),
}


def open_video(path: str | os.PathLike[str], decoder: str = "decord") -> Video:
    """Open a video file with `decoder`, one of `DECODERS`, or a folder of frames, which needs none.

    Raises:
        BrokenSample: it cannot be opened.
        ConfigError: the decoder is not installed.
    """
    return FrameFolder(path) if os.path.isdir(path) else DECODERS[decoder][0](path)


def library(module: str) -> Any:
    """Import what a decoder needs.

    Raises:
        ConfigError: it is not installed, or its own libraries are not.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # the last two where torchcodec does not find FFmpeg
        name, advice = next((name, advice) for name, (_, needed, advice) in DECODERS.items() if needed == module)
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        raise ConfigError(
            f"data.decoder={name}: {module.partition('.')[0]} {why}. {advice}. Folders of frames need no decoder."
        ) from error


def _source(path: str | os.PathLike[str]) -> str | io.BytesIO:
    """What the libraries open: the path, or the file's bytes where its name is not UTF-8, which they require."""
    name = os.fspath(path)
    try:
        name.encode("utf-8")
        return name
    except UnicodeEncodeError:
        return io.BytesIO(Path(path).read_bytes())


def _is_avi(path: str | os.PathLike[str]) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
    return head[:4] == b"RIFF" and head[8:] == b"AVI "


def _without_padding(frame: Any) -> Frame:
    """A frame of decord as [H, W, 3]; see there."""
    pixels = frame.asnumpy()
    height, width = pixels.shape[:2]
    return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _broken(error: Exception, path: str | os.PathLike[str]) -> BrokenSample:
    # decord puts "[12:00:00] /its/source.cc:292: " before its words, a time that would make equal runs differ
    text = re.sub(r"\[[\d:]+\] \S+?:\d+: ", "", str(error)).strip()
    return BrokenSample(f"cannot be decoded ({text.splitlines()[-1] if text else type(error).__name__})", path)
