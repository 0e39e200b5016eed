"""Video files through PyAV (FFmpeg): which frames they show, and these, found by time stamps that are checked."""

from __future__ import annotations

import bisect
import os
import struct
from collections.abc import Iterator, Sequence
from itertools import dropwhile, pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.errors import BrokenSample
from neural_rdm.media.video import Frame, VideoInfo, address, broken, library

READABLE = 0.9  # share of the frames that the container claims; a video of which less can be read is broken
#: containers whose time stamps are stored, and codecs of which each packet is one picture that is shown
_STAMPED = {"mov", "matroska"}
_ONE_TO_ONE = {"h264", "hevc", "vp9", "av1", "mjpeg"}
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of an album
_IDR = 5  # NAL unit type of H.264: a picture behind which nothing refers to anything before it


class Packet(NamedTuple):
    """A stored packet: its time stamps, is it shown, is it damaged, is it a key frame, and an IDR picture of H.264."""

    pts: int | None
    dts: int | None
    shown: bool
    corrupt: bool
    key: bool
    idr: bool


class PyAV:
    """A video file, decoded by PyAV (FFmpeg).

    Opening lists the packets and decodes the first frame. Where the packets tell which frames are shown, a read begins
    at the last key frame before each of them, and every frame must bear the time stamp that was listed for it. Where
    they do not (AVI, whose time stamps are guesses; packets without or with equal time stamps; a file that begins
    between two key frames), or where a seek lands elsewhere, frames are counted from the first one on.

    Attributes:
        stamps: time stamps of the frames that are shown, ascending, in units of the stream; empty where the packets
            do not tell them.
        keys: which of these frames can be decoded without those before them; 0 always counts as one.
        plain: an H.264 MP4 in which decoders that count packets, and do not check where a seek lands, find the same.
    """

    _container: Any = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._av = library("av")
        self.path = path
        self._options: dict[str, Any] = {"threads": 1} if int(self._av.__version__.partition(".")[0]) >= 17 else {}
        self._reformatter = self._av.video.reformatter.VideoReformatter()
        try:
            self._open()
            packets, first = self._listed()
            if first is None:
                raise ValueError("no frames in it")
            self._claimed = sum(packet.shown for packet in packets)
            # those of the whole video: a stream may say once which way up it is, and change its size
            self._options |= {"format": "rgb24", "width": first.width, "height": first.height}
            self._matrix = _matrix(first)
            self._shown = turned(np.empty((first.height, first.width, 0), np.uint8), self._matrix).shape
            self.stamps = self._told(packets, first.pts)
            keys = [p.pts for p in packets if p.key and p.shown and p.pts is not None]
            self.keys = sorted({0, *(bisect.bisect_left(self.stamps, pts) for pts in keys)})
            self.plain = self._matrix is None and self._is_plain(packets)
        except Exception as error:
            self.close()
            raise broken(error, path) from error

    def info(self) -> VideoInfo:
        """What it is; see `Video`."""
        rate = self._stream.average_rate
        return VideoInfo(self._count(), float(rate or 0), self._shown[1], self._shown[0])

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """The frames `indices`; see `Video`."""
        found: dict[int, Frame] = {}
        groups: dict[int, set[int]] = {}  # key frame -> what is decoded from it on
        for index in indices if self.stamps else ():
            groups.setdefault(self.keys[bisect.bisect_right(self.keys, index) - 1], set()).add(index)
        try:
            for key, wanted in groups.items():
                self._take(self._from(key), wanted, found)
            if missing := set(indices) - found.keys():
                self._take(self._in_order(), missing, found)
            return [found[index] for index in indices]
        except KeyError as error:
            raise BrokenSample(f"the video ends before its frame {error}", self.path) from error
        except Exception as error:
            raise broken(error, self.path) from error

    def seconds(self) -> NDArray[np.float64]:
        """When each of the frames in `stamps` is shown, counted from the first one."""
        return (np.array(self.stamps) - self.stamps[0]) * float(self._stream.time_base)

    def close(self) -> None:
        """Free the decoder."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def _open(self) -> None:
        self.close()
        # a playlist by the name of a video must not fetch anything
        self._container = self._av.open(address(self.path), options={"protocol_whitelist": "file"})
        videos = [s for s in self._container.streams.video if not s.disposition & _ATTACHED_PICTURE]
        if not videos:
            raise ValueError("no video in it")
        best = self._container.streams.best("video")
        self._alone, self._stream = len(self._container.streams.video) == 1, best if best in videos else videos[0]
        codec, most = self._stream.codec_context, Image.MAX_IMAGE_PIXELS
        if most and codec.width * codec.height > most:
            raise ValueError(f"its pictures of {codec.width}x{codec.height} have more than {most:,} pixels")
        codec.options |= {"max_pixels": str(most)} if most else {}  # of pictures that are larger than it says
        codec.thread_count = 1

    def _listed(self) -> tuple[list[Packet], Any]:
        """All packets in the order in which they are stored, and the first frame that is shown."""
        packets: list[Packet] = []
        first, failed, codec = None, False, self._stream.codec_context
        length = 1 + (codec.extradata[4] & 3) if codec.name == "h264" and len(codec.extradata or b"") > 6 else 0
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    key = packet.is_keyframe
                    idr = key and length > 0 and _IDR in _nal_types(bytes(packet), length)
                    shown = not packet.is_discard
                    packets.append(Packet(packet.pts, packet.dts, shown, packet.is_corrupt, key, idr))
                if first is None and not failed:
                    try:
                        first = next(iter(packet.decode()), None)
                    except self._av.FFmpegError:
                        failed = True
        except self._av.FFmpegError:  # cut off: what is before the cut counts
            pass
        return packets, first

    def _told(self, packets: list[Packet], begin: int | None) -> list[int]:
        """The ascending time stamps of the frames that are shown, if the packets tell them; `begin`: of the first."""
        stamps = sorted(p.pts for p in packets if p.shown and p.pts is not None)
        hidden = [p.pts for p in packets if not p.shown]
        trusted = (
            bool(stamps)
            and self._stream.codec_context.codec.canonical_name in _ONE_TO_ONE
            and not _STAMPED.isdisjoint(self._container.format.name.split(","))
            and len(set(stamps)) == sum(p.shown for p in packets)
            and packets[0].key
            and not any(p.corrupt for p in packets)
            and begin == stamps[0]
            # only cut off at both ends: edits in between may show a stretch twice
            and all(pts is not None and not stamps[0] <= pts <= stamps[-1] for pts in hidden)
        )
        return stamps if trusted else []

    def _is_plain(self, packets: list[Packet]) -> bool:
        # decord takes the position of a key packet for the number of its picture, and its FFmpeg seeks by dts
        keys = [(i, p) for i, p in enumerate(packets) if p.key]
        return (
            bool(self.stamps)
            and self._alone
            and "mov" in self._container.format.name.split(",")
            and all(p.shown for p in packets)
            and all(p.idr and self.stamps[i] == p.pts for i, p in keys)
            and all(a.pts is not None and b.dts is not None and a.pts < b.dts for (_, a), (_, b) in pairwise(keys))
        )

    def _count(self) -> int:
        """How many frames are shown: as many as are listed, if the last of these come out, or all are decoded."""
        count = 0
        try:
            if self.stamps:
                last = max((index for index, _ in self._from(self.keys[-1])), default=0)
                if last + 1 == len(self.stamps):
                    return last + 1
        except self._av.FFmpegError:
            pass  # it is met again below
        try:
            for _ in self._in_order():
                count += 1
        except self._av.FFmpegError as error:
            if count < READABLE * self._claimed:  # its clips would end in stills
                raise BrokenSample(f"only {count} of {self._claimed} frames can be decoded", self.path) from error
        if not count:
            raise BrokenSample("none of its frames can be decoded", self.path)
        return count

    def _from(self, key: int) -> Iterator[tuple[int, Any]]:
        """(index, frame) from the key frame `key` on, as long as they bear the time stamps that were listed."""
        try:
            self._container.seek(self.stamps[key], stream=self._stream)
        except self._av.FFmpegError:  # some files cannot be rewound
            return
        frames = self._container.decode(self._stream)
        # an open group of pictures begins with some that are shown before its key frame
        frames = dropwhile(lambda frame: frame.pts is None or frame.pts < self.stamps[key], frames)
        for index, frame in zip(range(key, len(self.stamps)), frames, strict=False):
            if frame.pts != self.stamps[index]:
                return
            yield index, frame

    def _in_order(self) -> Iterator[tuple[int, Any]]:
        """(index, frame) from the first one on."""
        self._open()  # the packets were read to their end, and not every file can be rewound
        yield from enumerate(self._container.decode(self._stream))

    def _take(self, frames: Iterator[tuple[int, Any]], wanted: set[int], found: dict[int, Frame]) -> None:
        last = max(wanted)
        for index, frame in frames:
            if index in wanted:
                rgb = self._reformatter.reformat(frame, **self._options).to_ndarray()
                found[index] = turned(rgb, self._matrix)
            if index >= last:
                break


def turned(pixels: Frame, matrix: bytes | None) -> Frame:
    """A picture [H, W, C] the way up that it is shown, [W, H, C] after a quarter turn.

    Args:
        matrix: FFmpeg's display matrix: a stored point (x, y) is shown at (a x + c y, b x + d y), where a, b, _, c, d
            are its first numbers (libavutil/display.h); None leaves the picture as it is.

    Raises:
        ValueError: it is turned by another angle than a multiple of 90 degrees.
    """
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack("=5i", matrix[:20])
    straight, across = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, across) > 0.01 * max(straight, across):
        raise ValueError("it is shown at an angle that is not a multiple of 90 degrees: turn it upright with ffmpeg")
    right, down = (a, d)
    if across > straight:
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def _matrix(frame: Any) -> bytes | None:
    side = frame.side_data.get("DISPLAYMATRIX")
    return None if side is None else bytes(side)


def _nal_types(packet: bytes, length: int) -> Iterator[int]:
    """Types of the NAL units in a packet of an MP4; the size of each is in `length` bytes before it."""
    at = 0
    while at + length < len(packet):
        yield packet[at + length] & 31
        at += length + int.from_bytes(packet[at : at + length], "big")
