"""Image formats: which are read, what a file of another kind really is, and what is white in pixels of many bits."""

from __future__ import annotations

import os
import re
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, SAMPLEFORMAT

#: what is decoded; Pillow knows more, and would hand PostScript in a file called .jpg to Ghostscript, which runs it
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")
_QUARTER = 2**14  # 16-bit pixels that all stay below it may be of 14 bits or fewer
#: how files of other kinds begin, and what they are
_OTHERS = {
    rb".{4}ftyp(avi[fs]|(mif1|msf1).{4}(.{4})*?avi[fs])": "an AVIF image",
    rb".{4}ftyp(hei|hev|mif1|msf1)": "a HEIC image",
    rb".{4}ftypcrx": "a camera's raw image (CR3)",
    rb".{4}ftyp": "a video (MP4)",
    rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51": "a JPEG 2000 image",
    rb"\x00\x00\x00\x0cJXL |\xff\x0a": "a JPEG XL image",
    rb"\x1aE\xdf\xa3": "a video (Matroska or WebM)",
    rb"RIFF.{4}AVI ": "a video (AVI)",
    rb"\x76\x2f\x31\x01": "an OpenEXR image",
    rb"\x00\x00\x01\x00": "an icon",
    rb"8BPS": "a Photoshop file",
    rb"%!PS|\xc5\xd0\xd3\xc6": "a PostScript file",
    rb"%PDF": "a PDF",
    rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!": "an archive",
    rb"\x93NUMPY": "a NumPy array",
    rb"\x89HDF": "an HDF5 file",
    rb"version https://git-lfs": "a pointer of Git LFS, of which `git lfs pull` makes the file",
    rb"\s*(<\?xml.*)?<svg": "an SVG drawing",
    rb"\s*<(!doctype html|html|head|body)": "a web page",
    rb"\s*[<{\[]": "a text, perhaps a server's error message",
}


def kind_of(file: str | os.PathLike[str] | BinaryIO) -> str:
    """Why a file is no image of `FORMATS`, by its first bytes: what it is instead, whatever its name ends in."""
    try:
        if isinstance(file, (str, os.PathLike)):
            with open(file, "rb") as opened:
                head = opened.read(256)
        else:
            file.seek(0)
            head = file.read(256)
    except OSError as error:
        return error.strerror or str(error)
    if not head:
        return "empty"
    for start, name in _OTHERS.items():
        if re.match(start, head, re.DOTALL | re.IGNORECASE):
            return f"its bytes are {name}; read are {', '.join(FORMATS)}"
    return "not an image that Pillow can read"


class Depth(NamedTuple):
    """What a file says of its integers.

    white: the largest value, which is white.
    stated: whether that is certain; 16 bits also hold values of 10, 12 or 14.
    inverted: the largest value is black.
    """

    white: int
    stated: bool
    inverted: bool = False


def depth_of(file: Image.Image) -> Depth:
    """The depth of an open image whose pixels are not loaded yet.

    Raises:
        ValueError: pixels without a known white.
    """
    if file.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 bits a channel")
    if file.format == "TIFF":
        tags: Any = file.tag_v2  # type: ignore[attr-defined]
        bits = max(tags.get(BITSPERSAMPLE, (1,)))
        kind = max(tags.get(SAMPLEFORMAT, (1,)))  # 1: unsigned, 2: signed
        if bits > 16 or kind == 2 or (bits > 8 and kind != 1):
            raise ValueError(f"signed or {bits}-bit integers, whose white is not known; save it with 8 bits a channel")
        return Depth(2**bits - 1, bits != 16, bits > 8 and tags.get(PHOTOMETRIC_INTERPRETATION) == 0)
    tiles: Any = getattr(file, "tile", None)
    arguments = tiles[0][3] if tiles else None
    raw, *maxval = arguments if isinstance(arguments, tuple) else (arguments,)
    # PNG and PNM; other `maxval`s say what they mean, and Pillow scales these
    return Depth(65535, not str(raw).endswith(";16B") and maxval[:1] != [65535])


def check_range(image: Image.Image) -> None:
    """Refuse 16-bit pixels that do not use their range. Of colours Pillow keeps the upper byte alone.

    Raises:
        ValueError: all stay below a quarter of it, so that white may be another value than the file says.
    """
    grey = image.mode.startswith("I")
    values = np.asarray(image if grey else image.convert("RGB"))
    peak = int(values.max()) if grey else int(values.max()) * 256 + 255
    if peak < _QUARTER and (peak or not grey):
        raise ValueError(
            f"16 bits a channel, but no value above {peak}: it seems to hold fewer bits, so that its white is not "
            "known; scale it to 0 ... 65535, or save it with 8 bits a channel"
        )
