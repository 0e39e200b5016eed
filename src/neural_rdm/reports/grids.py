"""Sample grids: crisp PNGs of images and of clips' frames, and animated GIFs of clips."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin
from torch import Tensor

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_atomically
from neural_rdm.media.gifs import save_gif
from neural_rdm.media.images import to_bytes
from neural_rdm.reports.figures import spread
from neural_rdm.reports.tiles import GAP, KEY, MARGIN

WIDEST = 2048  # pixels of a row of a clip's frames; of longer ones some are shown, evenly spread
MIN_TILE = 48  # pixels; a tile below this cannot be judged by eye


def save_grid(
    x: Tensor,
    path: str | Path,
    columns: int,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
    scale: int | None = None,
    fps: int = 8,
    column_labels: Sequence[str] | None = None,
    real: Tensor | None = None,
) -> Path:
    """Write samples as one picture and return its path (atomically: never a half-written file).

    Pixels become `127.5 x + 128` clamped to [0, 255] and truncated to uint8, DiT's rule. NaN is black. One channel is
    grey, three are RGB; any other number is a latent: its first three channels, each stretched from its smallest value
    in `x` to its largest.

    Args:
        x: images [N, C, H, W] or clips [N, F, C, H, W] in [-1, 1], any device and floating type.
        path: `.png` (a clip becomes a row of its frames, with their numbers above; `columns` is then not used) or
            `.gif` (clips play in a grid).
        columns: tiles in a row.
        row_labels: text at the left of each row; for the frames of clips one a clip, or one for each `columns` clips.
        scale: whole-number enlargement, nearest neighbour; by default just enough for tiles of 48 pixels.
        fps: frames a second of a GIF.
        column_labels: text above each column, short enough for the width of a tile.
        real: real samples of the same shape, equally many for each row, one after the other: a block of their own at
            the right, with "real" above each column. All rows are full then. For the frames of clips one a clip; where
            these have no labels, the real ones, any number of them, are rows below, and each row says what it is.

    Raises:
        ConfigError: another suffix, shape, or number of labels or real samples; columns, scale or fps below 1.
    """
    path = Path(path)
    if path.suffix not in (".png", ".gif"):
        raise ConfigError(f"cannot write a sample grid to {path.name!r}: give the file the ending .png or .gif.")
    if x.ndim not in (4, 5) or 0 in x.shape:
        raise ConfigError(f"a sample grid takes images [N, C, H, W] or clips [N, F, C, H, W]; got {list(x.shape)}.")
    if min(columns, 1 if scale is None else scale, fps) < 1:
        raise ConfigError(f"a sample grid needs columns, scale and fps of at least 1; got {columns}, {scale}, {fps}.")
    strips = path.suffix == ".png" and x.ndim == 5
    together = _to_uint8(x if real is None else torch.cat([x, real]))  # latents share one range
    clips, beside = together[: len(x)], together[len(x) :]  # [N, F, H, W, 3]
    scale = scale or max(1, -(-MIN_TILE // min(clips.shape[2:4])))
    labels = [" ".join(label.split()) for label in row_labels] if row_labels is not None else None
    rows, playing = -(-len(clips) // columns), columns
    named = labels  # of what is drawn
    if strips:
        if labels is not None and len(labels) == rows:
            named = labels = [labels[clip // columns] for clip in range(len(clips))]
        elif labels is None and real is not None:
            labels = ["drawn"] * len(clips) + ["real"] * len(beside)
            clips, beside, real = together, together[:0], None
        most = WIDEST // (clips.shape[3] * scale) // (1 if real is None else 2)
        frames = spread(range(clips.shape[1]), max(4, most))
        column_labels, clips = [str(frame) for frame in frames], clips[:, frames]
        rows, columns = len(clips), clips.shape[1]
        clips, beside = (part.reshape(-1, 1, *part.shape[2:]) for part in (clips, beside[:, frames]))
    if labels is not None and len(labels) != rows:
        raise ConfigError(f"{path.name}: {len(labels)} row labels for {rows} rows; give one label for each row.")
    title = " ".join((title or "").split())
    heads, drawn = list(column_labels or ()), min(columns, len(clips))
    if real is not None:
        if len(clips) % columns or len(beside) % rows:
            raise ConfigError(f"{path.name}: {len(x)} samples and {len(real)} real ones do not fill {rows} rows.")
        parts = [part.reshape(rows, -1, *part.shape[1:]) for part in (clips, beside)]
        clips, columns = np.concatenate(parts, axis=1).reshape(-1, *clips.shape[1:]), sum(p.shape[1] for p in parts)
        above = [f"real {head}" for head in heads] if strips else ["real"] * (columns - drawn)
        heads = [*(heads or [""] * drawn), *above]
    left, top = _corner(labels, title, clips.shape[2] * scale, bool(heads))
    pages = [
        _page(clips[:, frame], columns, drawn, labels, title, scale, left, top, heads)
        for frame in range(clips.shape[1])
    ]
    if x.shape[-3] == 1:
        pages = [page.convert("L") for page in pages]  # a GIF's palette then holds every level exactly
    if path.suffix == ".png":
        size = [clips.shape[2] * scale, clips.shape[3] * scale]
        said = PngImagePlugin.PngInfo()
        tiles = {"size": size, "labels": named, "frames": strips, "png": [left, top, drawn, len(x) if strips else rows]}
        if strips:  # the GIF beside it has no numbers of frames
            tiles["gif"] = [*_corner(named, title, size[0], len(together) > len(x)), playing, None]
        said.add_text(KEY, json.dumps(tiles))
        write_atomically(path, lambda file: pages[0].save(file, format="PNG", pnginfo=said))
    else:
        write_atomically(path, lambda file: save_gif(file, pages, fps))
    return path


def _to_uint8(x: Tensor) -> NDArray[np.uint8]:
    """Clips [N, F, C, H, W], or images without F, in [-1, 1] to [N, F, H, W, 3] uint8."""
    x = x.detach().to("cpu", torch.float32)
    x = x if x.ndim == 5 else x[:, None]
    if x.shape[2] not in (1, 3):
        x = _stretch(x[:, :, :3])
    return to_bytes(x).expand(-1, -1, 3, -1, -1).permute(0, 1, 3, 4, 2).contiguous().numpy()


def _stretch(latents: Tensor) -> Tensor:
    """Each of up to three channels from its own range over all samples to [-1, 1]; a missing channel is black."""
    shown = torch.full((*latents.shape[:2], 3, *latents.shape[3:]), -1.0)
    for channel in range(latents.shape[2]):
        values = latents[:, :, channel]
        finite = values[values.isfinite()]
        if finite.numel():
            low, high = finite.min(), finite.max()
            shown[:, :, channel] = 2 * (values - low) / (high - low).clamp(min=1e-12) - 1
    return shown


def _head(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """For the names of columns, above tiles so many pixels tall."""
    return ImageFont.load_default(size=max(11, min(20, height // 10)))


def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """For words beside tiles so many pixels tall."""
    return ImageFont.load_default(size=max(12, min(24, height // 3)))


def _corner(labels: list[str] | None, title: str, height: int, heads: bool) -> tuple[int, int]:
    """Where the first tile stands, right of the labels and below the title and the columns' names: left, top."""
    font = _font(height)
    widest = max((int(font.getbbox(label)[2]) for label in labels or []), default=-MARGIN)
    top = MARGIN + (int(font.getbbox(title)[3]) + MARGIN if title else 0)
    return 2 * MARGIN + widest, top + (int(_head(height).getbbox("Ag")[3]) + GAP) * heads


def _page(
    tiles: NDArray[np.uint8],
    columns: int,
    drawn: int,
    labels: list[str] | None,
    title: str,
    scale: int,
    left: int,
    top: int,
    heads: list[str],
) -> Image.Image:
    """Lay tiles [N, H, W, 3] out row by row on white, columns from `drawn` on a little to the right."""
    tiles = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = tiles.shape
    rows, columns = -(-count // columns), min(columns, count)
    font = _font(height)
    lefts = [left + column * (width + GAP) + MARGIN * (column >= drawn) for column in range(columns)]
    page_width = max(lefts[-1] + width, MARGIN + int(font.getbbox(title)[2])) + MARGIN
    canvas = np.full((top + rows * (height + GAP) - GAP + MARGIN, page_width, 3), 255, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        y, x = top + index // columns * (height + GAP), lefts[index % columns]
        canvas[y : y + height, x : x + width] = tile
    page = Image.fromarray(canvas)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((MARGIN, MARGIN), title, fill="black", font=font)
    for start, head in zip(lefts, heads, strict=False):
        draw.text((start + width // 2, top - 2 * GAP), head, fill="black", font=_head(height), anchor="ms")
    for row, label in enumerate(labels or []):
        middle = top + row * (height + GAP) + height // 2
        draw.text((left - MARGIN, middle), label, fill="black", font=font, anchor="rm")
    return page
