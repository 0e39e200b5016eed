"""Videos with the features of containers that decoders stumble over, each picture bearing its number."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

COUNT, FIRST, STEP = 40, 2, 512  # frames; B frames delay the first by so many; time units of a frame (see `encoded`)
_BOXES = {b"moov", b"trak", b"edts"}


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """Ten light or dark blocks above, the bits of the number from the lowest on; red and blue below."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = (190, 60, 50), (50, 80, 200)
    for bit in range(10):
        light = 220 if number >> bit & 1 else 30
        pixels[: height // 2, bit * width // 10 : (bit + 1) * width // 10] = light
    return pixels


def number(frame: np.ndarray) -> int:
    """The number that a picture bears; -1 where the colours below say that it is not upright."""
    height, width = frame.shape[:2]
    red, blue = frame[height // 2 + 4 :, : width // 2 - 4], frame[height // 2 + 4 :, width // 2 + 4 :]
    if red[..., 0].mean() < red[..., 2].mean() + 60 or blue[..., 2].mean() < blue[..., 0].mean() + 60:
        return -1
    middles = [(2 * bit + 1) * width // 20 for bit in range(10)]
    return sum(int(frame[4 : height // 2 - 4, at - 2 : at + 3].mean() > 125) << bit for bit, at in enumerate(middles))


def encoded(
    path: Path,
    count: int = COUNT,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (96, 64),
    times: Callable[[int], int] = lambda i: i,
    x264: str = "scenecut=0",
    shape: Fraction | None = None,
    options: dict[str, str] | None = None,
    **more: str,
) -> Path:
    """A video of `picture(0)`, `picture(1)`, ... at 25 frames a second, B frames, a key frame every 12.

    Args:
        times: when a frame is shown, in 25ths of a second.
        shape: width to height of a pixel.
        options: of the container; `more` are those of the encoder.
    """
    av = pytest.importorskip("av", reason="makes a video with PyAV")
    settings = {"g": "12", "bf": "2", **({"crf": "10", "x264-params": x264} if codec == "libx264" else {}), **more}
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        if shape is not None:
            stream.codec_context.sample_aspect_ratio = shape
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), format="rgb24")
            frame.pts, frame.time_base = times(i), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def rewritten(path: Path, edits: Sequence[tuple[int, int | None]] = (), matrix: Sequence[int] = ()) -> Path:
    """An MP4 with another edit list or display matrix.

    Args:
        edits: (how many frames, the first of them or None for nothing), shown one after the other.
        matrix: a, b, c, d of a display matrix.
    """

    def boxes(content: bytes) -> bytes:
        made = b""
        while content:
            size, kind = struct.unpack(">I4s", content[:8])
            body, content = content[8:size], content[size:]
            if kind in _BOXES:
                body = boxes(body)
            elif kind == b"elst" and edits:
                rows = [(40 * n, -1 if first is None else (first + FIRST) * STEP, 1, 0) for n, first in edits]
                body = struct.pack(">II", 0, len(rows)) + b"".join(struct.pack(">IiHH", *row) for row in rows)
            elif kind == b"tkhd" and matrix:
                a, b, c, d = matrix  # 16.16
                body = (
                    body[:40] + struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30) + body[76:]
                )
            made += struct.pack(">I4s", 8 + len(body), kind) + body
        return made

    content = path.read_bytes()
    path.write_bytes(boxes(content))
    return path


def with_cover(path: Path) -> Path:
    """The video `encoded` makes, behind a picture that belongs to it as an album's cover."""
    av = pytest.importorskip("av", reason="makes a video with PyAV")
    if not hasattr(av.stream, "Disposition"):
        pytest.skip("this PyAV cannot attach a picture")
    source = encoded(path.with_name(f"plain_{path.name}"))
    with av.open(str(path), "w") as container, av.open(str(source)) as video:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 200, 200, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        copy = container.add_stream_from_template(video.streams.video[0])
        picture = av.VideoFrame.from_ndarray(np.full((200, 200, 3), 128, np.uint8), format="rgb24")
        packets = [*cover.encode(picture), *cover.encode()]
        for packet in video.demux(video.streams.video[0]):
            if packet.size:
                packet.stream = copy
                packets.append(packet)
        container.mux(packets)
    source.unlink()
    return path
