"""Words below pictures."""

from __future__ import annotations

import pytest
import torch
from PIL import ImageFont

from neural_rdm.reports.captioned import MIN_WIDTH, _wrapped, with_words


def test_pictures_stay_as_they_are_above_their_words() -> None:
    x = torch.rand(3, 3, 100, 120) * 2 - 1
    tiles = with_words(x, ["a cat", "", "a dog that sits on a very long bench in the rain, and waits for somebody"])
    assert tiles.shape[:2] == (3, 3)
    assert tiles.shape[-1] == 120
    assert torch.equal(tiles[:, :, :100], x)
    below = tiles[:, :, 100:]
    assert below[0].min() < 0 < below[0].max()
    assert (below[1] == 1).all()
    assert (below[2] < 0).sum() > (below[0] < 0).sum()


def test_small_grey_clips_are_enlarged_and_every_frame_has_the_words() -> None:
    x = torch.linspace(-1, 1, 2 * 4 * 64).reshape(2, 4, 1, 8, 8)
    tiles = with_words(x, ["1", "2"])
    assert tiles.shape[:3] == (2, 4, 3)
    assert tiles.shape[-1] == MIN_WIDTH
    assert torch.equal(tiles[:, :, 1, :MIN_WIDTH:12, ::12], x[:, :, 0])
    strips = tiles[..., MIN_WIDTH:, :]
    assert torch.equal(strips[:, 0], strips[:, 3])
    assert not torch.equal(strips[0], strips[1])


def test_long_words_and_texts_are_broken_and_cut_off() -> None:
    font = ImageFont.load_default(size=12)
    lines = _wrapped("n" * 300, 100, font)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 100 for line in lines)
    assert _wrapped("two words", 1000, font) == ["two words"]
    assert _wrapped("  ", 100, font) == [""]


def test_every_picture_needs_a_text() -> None:
    with pytest.raises(ValueError, match="1 texts for 2 pictures"):
        with_words(torch.zeros(2, 3, 8, 8), ["one"])
