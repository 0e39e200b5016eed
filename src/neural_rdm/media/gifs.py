"""Clips as GIFs, with the number of their frames: Pillow writes equal neighbours as one frame that is shown for longer,
and its version 10.1 a clip of nothing but equal frames as one that is not.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

_COMMENT = re.compile(rb"(\d+) frames of (\d+) ms")


def save_gif(file: BinaryIO, frames: Sequence[Image.Image], fps: int) -> None:
    """Write frames of one size as a GIF that repeats for ever; its comment says how many there are.

    Args:
        fps: frames a second; a GIF counts in hundredths of a second, so that 8 become 8.3.
    """
    unit = 10 * max(1, round(100 / fps))
    comment = b"%d frames of %d ms" % (len(frames), unit)
    more = {"append_images": frames[1:], "duration": unit, "loop": 0, "comment": comment}
    frames[0].save(file, format="GIF", save_all=True, **more)


def read_gif(path: Path) -> NDArray[np.uint8]:
    """All frames [F, H, W, 3]: of a GIF by `save_gif` those that it was given, of others those that are stored.

    Raises:
        DecompressionBombError: it stands for more pixels than Pillow reads of a picture; a frame that is shown for
            longer takes a few bytes.
        Exception: whatever Pillow makes of a damaged file.
    """
    with Image.open(path, formats=["GIF"]) as file:
        said = _COMMENT.fullmatch(file.info.get("comment", b""))
        count = int(said[1]) if said else 0
        most = 2 * (Image.MAX_IMAGE_PIXELS or sys.maxsize) // (file.width * file.height)
        frames: list[NDArray[np.uint8]] = []
        for frame in ImageSequence.Iterator(file):
            shown = round(frame.info.get("duration", 0) / int(said[2])) if said else 1
            if max(count, len(frames) + shown) > most:
                raise Image.DecompressionBombError(f"it stands for more than {most:,} frames")
            frames += [np.asarray(frame.convert("RGB"))] * max(shown, 1)
    frames += frames[-1:] * (count - len(frames))
    return np.stack(frames)
