"""Damaged files either decode to pixels of the right shape and range, or are a BrokenSample; nothing else."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.data.base import BrokenSample
from neural_rdm.media.images import load_pixels


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    y, x = np.mgrid[0:18, 0:24]
    pixels = np.stack([x * 10, y * 12, (x * y) % 251], -1).astype(np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


FILES = {
    "jpeg": encoded("JPEG", quality=90, exif=exif()),
    "progressive": encoded("JPEG", progressive=True),
    "grey": encoded("JPEG", "L"),
    "cmyk": encoded("JPEG", "CMYK"),
    "png": encoded("PNG"),
    "palette": encoded("PNG", "P", transparency=3),
    "deep": encoded("PNG", "I;16"),
    "alpha": encoded("PNG", "LA"),
    "webp": encoded("WEBP"),
    "tiff": encoded("TIFF", compression="tiff_lzw"),
    "bmp": encoded("BMP"),
    "gif": encoded("GIF", "P"),
    "ppm": encoded("PPM"),
}


def check(content: bytes, size: int = 16) -> bool:
    """Whether it decodes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow says what it finds odd; the sample is read or it is not
        try:
            x = load_pixels(io.BytesIO(content), size, name="shard/key")
        except BrokenSample as error:
            broken = error
        else:
            broken = None
    if broken is not None:
        assert broken.path == "shard/key"
        assert broken.reason
        assert "\n" not in broken.reason
        return False
    assert x.shape == (3, size, size)
    assert x.dtype == torch.float32
    assert x.abs().max() <= 1
    return True


@pytest.mark.parametrize("name", FILES)
def test_whole_files_decode(name):
    assert check(FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_truncated_anywhere(name):
    content = FILES[name]
    read = [check(content[:length]) for length in range(0, len(content), max(1, len(content) // 60))]
    assert not any(read[: len(read) // 3])


edits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8)


@pytest.mark.timeout(120)
@settings(max_examples=400, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(FILES)), changes=edits, cut=st.integers(0, 40), early=st.booleans())
def test_any_bytes_changed(name, changes, cut, early):
    content = bytearray(FILES[name])
    for place, value in changes:
        content[place % (64 if early else len(content))] = value  # headers say sizes, so they are changed more often
    check(bytes(content[: len(content) - cut]))


@settings(max_examples=100, deadline=2000)
@given(
    start=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"P6 "]), rest=st.binary()
)
def test_any_bytes_at_all(start, rest):
    check(start + rest)
