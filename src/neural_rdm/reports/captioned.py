"""Words below pictures: tiles that say what they show, for `save_grid`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MIN_WIDTH = 96  # pixels; below this there is no room for a word
MOST_LINES = 3
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def with_words(x: Tensor, words: Sequence[str]) -> Tensor:
    """Images or clips [N, (F,) C, H, W] in [-1, 1], C = 1 or 3, with a white strip of text below: [N, (F,) 3, H', W'].

    Tiles narrower than 96 pixels are first enlarged by a whole number, nearest neighbour. A text takes at most three
    lines; what is longer is cut off with dots.

    Raises:
        ValueError: not one text a sample.
    """
    if len(words) != len(x):
        raise ValueError(f"{len(words)} texts for {len(x)} pictures")
    scale = max(1, -(-MIN_WIDTH // x.shape[-1]))
    x = x.detach().float().cpu().repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    x = x.expand(*x.shape[:-3], 3, *x.shape[-2:])
    width = x.shape[-1]
    size = max(11, min(16, width // 16))
    font = ImageFont.load_default(size=size)
    texts = [_wrapped(text, width - 4, font) for text in words]
    line = int(size * 1.25)
    height = line * max(1, *(len(lines) for lines in texts)) + 6
    strips = torch.stack([_strip(lines, width, height, line, font) for lines in texts])  # [N, 1, H, W]
    strips = strips.reshape(len(x), *[1] * (x.ndim - 3), height, width).expand(*x.shape[:-2], height, width)
    return torch.cat([x, strips], dim=-2)


def _wrapped(text: str, width: int, font: Font) -> list[str]:
    """The text in at most three lines of `width` pixels, broken between words, or inside one that is too long."""
    lines = [""]
    rest = text.split()
    while rest:
        word = rest.pop(0)
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
        elif lines[-1]:
            lines.append("")
            rest.insert(0, word)
        else:
            fits = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            lines[-1] = word[:fits]
            rest[:0] = [word[fits:]] if word[fits:] else []
    if len(lines) > MOST_LINES:
        last = lines[MOST_LINES - 1]
        while last and font.getlength(f"{last}...") > width:
            last = last[:-1]
        lines = [*lines[: MOST_LINES - 1], f"{last}..."]
    return lines


def _strip(lines: list[str], width: int, height: int, line: int, font: Font) -> Tensor:
    page = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(page)
    for number, text in enumerate(lines):
        draw.text((2, 2 + number * line), text, fill=0, font=font)
    return torch.from_numpy(np.asarray(page, dtype=np.float32)).div(127.5).sub(1)[None]
