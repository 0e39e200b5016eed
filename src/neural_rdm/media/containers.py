"""What holds samples on disk, and whether it keeps them exactly: a lossy one has a Frechet distance of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.media.frames import files_of
from neural_rdm.media.suffixes import is_video

#: codecs that give back what they were given, of pixels that are not converted to 4:2:0 first
_EXACT = {"ffv1", "rawvideo", "png", "huffyuv", "ffvhuff", "utvideo", "qtrle", "apng"}


class Container(NamedTuple):
    """How samples are kept; None where it is not known.

    container: `npz`, or what the names of the files end in.
    codec, pixel_format: of its pixels, as FFmpeg and Pillow name them.
    lossless: whether it gives back what was written into it.
    """

    container: str
    codec: str | None
    pixel_format: str | None
    lossless: bool | None

    def __str__(self) -> str:
        loss = {True: "exact", False: "lossy", None: "perhaps lossy"}[self.lossless]
        return f"{', '.join(filter(None, (self.container, self.codec, self.pixel_format)))} ({loss})"


def container_of(paths: Sequence[Path]) -> Container:
    """The container of samples: one file of each ending is looked at, of folders of frames the first one's."""
    files: dict[str, str] = {}
    for path in paths:
        with contextlib.suppress(DataError):  # reading them will say so
            for file in files_of(path):
                files.setdefault(os.path.splitext(file)[1].lower().lstrip("."), file)
        if path.is_dir() and files:
            break
    found = [(_video if is_video(file) else _picture)(kind, file) for kind, file in files.items()]
    if len(found) == 1:
        return found[0]
    exact = all(c.lossless for c in found) if all(c.lossless is not None for c in found) else None
    name, codec, pixels = (" and ".join(dict.fromkeys(str(c[i]) for c in found)) for i in range(3))
    return Container(name, codec, pixels, exact)


def _picture(kind: str, file: str) -> Container:
    """The ending may lie: what Pillow finds counts."""
    try:
        with open(file, "rb") as head:
            start = head.read(1 << 16)
        with Image.open(file) as image:
            codec, pixels, how = image.format or "", image.mode, str(image.info.get("compression", ""))
    except Exception:  # damaged: reading it will say so
        return Container(kind, None, None, None)
    if codec == "WEBP":
        return Container(kind, "webp", pixels, b"VP8L" in start and b"VP8 " not in start)
    lossy = codec in ("JPEG", "MPO", "GIF", "AVIF", "JPEG2000") or how in ("jpeg", "tiff_jpeg", "webp")
    return Container(kind, codec.lower(), "palette of 256 colours" if codec == "GIF" else pixels, not lossy)


def _video(kind: str, file: str) -> Container:
    """By PyAV, where it is installed; the codecs of these endings are lossy but for a few."""
    try:
        import av

        with open(file, "rb") as opened, av.open(opened) as container:  # opened here: FFmpeg takes `a:b` for an address
            codec = container.streams.video[0].codec_context
            name, pixels = codec.name, str(codec.pix_fmt)
    except Exception:  # not installed, or damaged
        return Container(kind, None, None, None)
    return Container(kind, name, pixels, name in _EXACT and not pixels.startswith(("yuv", "nv")))
