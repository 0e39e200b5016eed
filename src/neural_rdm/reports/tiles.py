"""The tiles of a grid of samples, read back from its file: what `grids` lays out, a report lays side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.errors import DataError, first_line
from neural_rdm.core.given import regular
from neural_rdm.media.gifs import read_gif

GAP = 2  # pixels between two tiles
MARGIN = 8  # around the page, and right of labels and below a title
#: the text of a PNG that says where its tiles are
KEY = "neural_rdm_tiles"


@dataclass(frozen=True)
class Tiles:
    """The tiles of a grid as they stand in its file, enlarged as they are there.

    Attributes:
        pixels: uint8 [rows, columns, F, H, W, 3]; F is 1 but for the clips of a GIF.
        labels: one text a row; None where the rows bear none.
        frames: whether a row is one clip, and its columns are its frames.
    """

    pixels: NDArray[np.uint8]
    labels: list[str] | None
    frames: bool


def read_tiles(path: str | Path, gif: bool = False) -> Tiles:
    """The tiles of a PNG that `save_grid` wrote, without the real samples beside them.

    Args:
        gif: those of the GIF beside it instead, whose rows have the same labels and which bears the same title: the
            clips that the PNG shows frame by frame, and the others of each row.

    Raises:
        DataError: a file is missing or damaged, or is no such grid.
    """
    try:
        with Image.open(regular(path), formats=["PNG"]) as file:
            said = json.loads(file.text[KEY])
            pages = np.asarray(file.convert("RGB"))[None]
        if gif:
            pages = read_gif(Path(path).with_suffix(".gif"))
        labels, (height, width) = said["labels"], map(int, said["size"])
        left, top, columns, rows = (place and int(place) for place in said["gif" if gif else "png"])
        rows = rows or (pages.shape[1] - top - MARGIN + GAP) // (height + GAP)
        down, right = top + rows * (height + GAP) - GAP, left + columns * (width + GAP) - GAP
        if (
            min(height, width, rows, columns) < 1
            or min(left, top) < 0
            or down > pages.shape[1]
            or right > pages.shape[2]
        ):
            raise ValueError("its tiles lie outside of it")
        cut = [
            [pages[:, y : y + height, x : x + width] for x in range(left, left + columns * (width + GAP), width + GAP)]
            for y in range(top, top + rows * (height + GAP), height + GAP)
        ]
        return Tiles(np.array(cut), None if labels is None else [str(label) for label in labels], bool(said["frames"]))
    except Exception as error:  # whatever Pillow makes of a damaged file
        raise DataError(f"{path} is no grid of samples with its tiles: {first_line(error)}") from error
