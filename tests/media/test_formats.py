"""White is what a file says, or the file is refused; what is no image is called what it is."""

from __future__ import annotations

import io
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from neural_rdm.data.base import BrokenSample
from neural_rdm.media.images import read_rgb

RAMP = np.linspace(0, 1, 64)[None].repeat(8, 0)


def values(top: int) -> np.ndarray:
    """A ramp from 0 to `top`, whole numbers."""
    return np.round(RAMP * top)


def tiff(pixels: np.ndarray, **tags: object) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="TIFF", **tags)
    return file


def png16(pixels: np.ndarray) -> io.BytesIO:
    """A PNG of 16 bits a channel [H, W, C]: Pillow cannot write one of colours."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def tiff12(pixels: np.ndarray) -> io.BytesIO:
    """A grey TIFF of 12 bits, two values in three bytes; Pillow cannot write one."""
    height, width = pixels.shape
    pairs = pixels.astype(np.uint16).reshape(-1, 2)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    body = packed.astype(np.uint8).tobytes()
    tags = ((256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height))
    entries = [struct.pack("<HHII", tag, 4 if tag in (256, 257, 273, 278) else 3, 1, value) for tag, value in tags]
    entries.append(struct.pack("<HHII", 279, 4, 1, len(body)))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0)
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory)


def pgm(pixels: np.ndarray, top: int) -> io.BytesIO:
    height, width = pixels.shape
    return io.BytesIO(b"P5 %d %d %d\n" % (width, height, top) + pixels.astype(">u2").tobytes())


def colours(top: int, channels: int = 3) -> np.ndarray:
    pixels = values(top)[..., None].repeat(channels, 2)
    if channels in (2, 4):
        pixels[..., -1] = 65535  # alpha
    return pixels


@pytest.mark.parametrize(
    "file",
    [
        png16(values(65535)[..., None]),
        png16(colours(65535)),
        png16(colours(65535, 4)),
        tiff(values(65535).astype(np.uint16)),
        tiff(values(65535).astype(">u2")),
        tiff12(values(4095)),
        pgm(values(1023), 1023),
        pgm(values(65535), 65535),
        tiff(values(255).astype(np.uint8)),
        tiff(65535 - values(65535).astype(np.uint16), tiffinfo={262: 0}),
    ],
    ids=["png16", "rgb16", "rgba16", "tiff16", "tiff16-big", "tiff12", "pgm10", "pgm16", "tiff8", "white-is-zero"],
)
def test_white_is_what_the_file_says(file: io.BytesIO) -> None:
    grey = np.asarray(read_rgb(file, "x"))[..., 0].astype(int)
    assert np.abs(grey - RAMP * 255).max() < 1.5


@pytest.mark.parametrize(
    "file",
    [
        *(tiff(values(top).astype(np.int32)) for top in (255, 4095, 65535, 2**31 - 1)),
        *(png16(values(top)[..., None]) for top in (255, 1023, 4095, 16383)),
        *(png16(colours(top, channels)) for top in (255, 4095) for channels in (2, 3, 4)),
        tiff(values(4095).astype(np.uint16)),
        tiff(values(127).astype(np.uint8), tiffinfo={339: 2}),  # signed
        pgm(values(4095), 65535),
        tiff(RAMP.astype(np.float32)),
    ],
)
def test_where_white_is_not_known_the_file_is_refused(file: io.BytesIO) -> None:
    with pytest.raises(BrokenSample, match=r"cannot read set/x\.png: .*(white is not|no) known"):
        read_rgb(file, "set/x.png")


def test_a_black_picture_is_black_in_any_range() -> None:
    assert np.asarray(read_rgb(png16(np.zeros((4, 4, 1))), "x")).max() == 0


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\x76\x2f\x31\x01\2", "OpenEXR"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "^empty$"),
        (b"\1\2\3", "not an image that Pillow can read"),
    ],
)
def test_other_bytes_are_called_what_they_are(tmp_path, start: bytes, name: str) -> None:
    (tmp_path / "x.jpg").write_bytes(start + bytes(40) * bool(start))
    for file in (tmp_path / "x.jpg", io.BytesIO(start + bytes(40) * bool(start))):
        with pytest.raises(BrokenSample) as error:
            read_rgb(file, "key")
        assert re.search(name, error.value.reason)


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000")])
def test_real_files_of_other_formats(tmp_path, kind: str, name: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    Image.fromarray(colours(255).astype(np.uint8)).save(tmp_path / "x.jpg", format=kind)
    with pytest.raises(BrokenSample, match=f"its bytes are an? {name}"):
        read_rgb(tmp_path / "x.jpg")
