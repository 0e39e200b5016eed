"""Samples of several groups side by side: one row a group, every column the same class and the same noise.

Sample i of a run depends on its seed and on i alone, so that runs of one seed drew their grids from the same noise.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import natural_order
from neural_rdm.media.gifs import save_gif
from neural_rdm.reports.groups import Group, Seed
from neural_rdm.reports.pages.render import Picture, picture
from neural_rdm.reports.tiles import Tiles, read_tiles

MOST_COLUMNS, MOST_ROWS, MOST_CLIPS = 16, 12, 6
LARGEST_TILE = 128  # pixels
#: pixels of all tiles together; a colour picture takes one to three bytes a pixel, so that a page stays small
ALL_PIXELS = 2_500_000
ALL_PIXELS_PLAYED = 4_000_000
GAP = 2


@dataclass(frozen=True)
class Row:
    """What a group drew: one picture for each block of the table, and what its samples do not share with the others."""

    label: str
    note: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Samples:
    """A table of samples.

    Attributes:
        seed: from which all rows were drawn that do not say otherwise.
        frames: whether the columns are the frames of a clip, and not one sample each.
        columns: what stands above each column.
        width: of a column, pixels.
        blocks: what all rows of a block show: the first sample of each class, the second; or a class.
        rows: one a group.
        played: the clips in motion, one picture a group.
        missing: groups without samples that could be shown, with the reason.
    """

    seed: Seed
    frames: bool
    columns: list[str]
    width: int
    blocks: list[str]
    rows: list[Row]
    played: list[tuple[str, Picture]]
    missing: list[str]


@dataclass(frozen=True)
class _Drawn:
    group: Group
    seed: Seed
    path: Path
    tiles: Tiles


def side_by_side(groups: Sequence[Group]) -> Samples | None:
    """The newest grids of the groups' runs, tile by tile; None where no run has one.

    Shown is the seed that most groups have. A group without it shows another seed, and says so; it also says where its
    classes or its sampler are others, or where its run is not finished.
    """
    seed = _common_seed(groups)
    drawn, missing = [], []
    for group in groups:
        try:
            drawn.append(_drawn(group, seed))
        except DataError as error:
            missing.append(f"{group.label} ({error})")
    if not drawn:
        return None
    first = drawn[0]
    frames = first.tiles.frames
    missing += [f"{d.group.label} (its samples are of another kind)" for d in drawn if d.tiles.frames != frames]
    drawn = [d for d in drawn if d.tiles.frames == frames]
    # images: a row of a grid is a class, which becomes a column here; clips: a column is a frame, and stays one
    arrays = [d.tiles.pixels[:, :, 0] if frames else d.tiles.pixels[:, :, 0].swapaxes(0, 1) for d in drawn]
    places = _places(max(a.shape[1] for a in arrays), MOST_COLUMNS)
    count = max(1, min(max(a.shape[0] for a in arrays), MOST_ROWS // len(drawn)))
    names = first.tiles.labels or []
    classes = [names[i] if i < len(names) else str(i + 1) for i in range(max(*first.tiles.pixels.shape[:2]))]
    columns = [str(i + 1) if frames else classes[i] for i in places]
    blocks = [f"a clip of {classes[b]}" if frames else f"sample {b + 1} of each" for b in range(count)]
    limit = math.sqrt(ALL_PIXELS / (len(drawn) * count * len(places)))
    arrays = [_smaller(a, min(LARGEST_TILE, int(limit))) for a in arrays]
    rows = []
    for d, array in zip(drawn, arrays, strict=True):
        shown = [_strip(array[b, [p for p in places if p < array.shape[1]]]) for b in range(min(count, len(array)))]
        alts = [_alt(d, frames, columns, blocks[b]) for b in range(len(shown))]
        pictures = [picture(content, alt) for content, alt in zip(shown, alts, strict=True)]
        rows.append(Row(d.group.label, _note(d, first, seed), pictures))
    width = max(a.shape[3] for a in arrays) + GAP
    return Samples(seed, frames, columns, width, blocks, rows, _played(drawn) if frames else [], missing)


def _common_seed(groups: Sequence[Group]) -> Seed:
    """The seed that most groups have, of equals the smallest."""
    counts = Counter(seed for group in groups for seed in group.runs)
    return min(counts, key=lambda s: (-counts[s], s is None, s), default=None)


def _drawn(group: Group, seed: Seed) -> _Drawn:
    if not group.runs:
        raise DataError("no run")
    seed = seed if seed in group.runs else next(iter(group.runs))
    folder = group.runs[seed] / "samples"
    previews = natural_order(folder.glob("step=*.png"))
    found = [path for path in (folder / "final.png", *reversed(previews)) if path.is_file()]
    if not found:
        raise DataError("no samples yet")
    try:
        return _Drawn(group, seed, found[0], read_tiles(found[0]))
    except DataError as error:
        raise DataError("its samples cannot be read") from error


def _note(drawn: _Drawn, first: _Drawn, seed: Seed) -> str:
    """What a row does not share with the others, in a few words."""
    words = []
    if drawn.seed != seed:
        words.append(f"seed {drawn.seed}: other noise")
    if drawn.path.stem != "final":
        words.append(f"step {int(drawn.path.stem.partition('=')[2] or 0):,}, not the end")
    if drawn.tiles.labels != first.tiles.labels or drawn.tiles.pixels.shape[:2] != first.tiles.pixels.shape[:2]:
        words.append("other classes")
    if _of(drawn, "sampler") != _of(first, "sampler"):
        words.append("another sampler")
    return "; ".join(words)


def _of(drawn: _Drawn, key: str) -> Any:
    return drawn.group.config.get(key)


def _alt(drawn: _Drawn, frames: bool, columns: Sequence[str], block: str) -> str:
    what = f"{block}, {len(columns)} frames" if frames else f"{block}: {', '.join(columns)}"
    return f"Drawn by {drawn.group.label}, seed {drawn.seed}: {what}"


def _places(count: int, most: int) -> list[int]:
    """At most so many of the places 0 to count - 1, evenly spread."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _smaller(tiles: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Tiles [..., H, W, 3] of at most `side` pixels; those that are small enough stay as they are."""
    height, width = tiles.shape[-3:-1]
    if max(height, width) <= side:
        return tiles
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    flat = [np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.LANCZOS)) for tile in _flat(tiles)]
    return np.stack(flat).reshape(*tiles.shape[:-3], size[1], size[0], 3)


def _flat(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return tiles.reshape(-1, *tiles.shape[-3:])


def _strip(tiles: NDArray[np.uint8]) -> bytes:
    """Tiles [N, H, W, 3] in a row as a PNG, with nothing between them, so that any paper shows through."""
    height, width = tiles.shape[1:3]
    page = np.zeros((height, len(tiles) * (width + GAP), 4), dtype=np.uint8)
    for place, tile in enumerate(tiles):
        left = place * (width + GAP)
        page[:, left : left + width, :3], page[:, left : left + width, 3] = tile, 255
    image = Image.fromarray(page)
    if (tiles == tiles[..., :1]).all():
        image = image.convert("LA")
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _played(drawn: Sequence[_Drawn]) -> list[tuple[str, Picture]]:
    """The clips of each group in motion, the first of each class; nothing of a group whose GIF is not there."""
    found = []
    for d in drawn:
        try:
            clips = read_tiles(d.path, gif=True).pixels[:MOST_CLIPS, 0]  # [N, F, H, W, 3]
        except DataError:
            continue
        clips = _smaller(clips, int(math.sqrt(ALL_PIXELS_PLAYED / (len(drawn) * clips.shape[0] * clips.shape[1]))))
        pages = [Image.fromarray(np.concatenate(list(clips[:, frame]), axis=1)) for frame in range(clips.shape[1])]
        if (clips == clips[..., :1]).all():
            pages = [page.convert("L") for page in pages]
        file = io.BytesIO()
        save_gif(file, pages, fps=8)
        alt = f"Clips drawn by {d.group.label}, seed {d.seed}, in motion"
        found.append((d.group.label, picture(file.getvalue(), alt)))
    return found
