"""Tiles read back from the files that `save_grid` writes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neural_rdm.core.errors import DataError
from neural_rdm.reports.grids import save_grid
from neural_rdm.reports.tiles import read_tiles
from tests.reports.test_grids import as_uint8


def test_tiles_are_read_back(tmp_path):
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tiles = read_tiles(save_grid(images, tmp_path / "x.png", 2, row_labels=["a", "<b>", "é"], title="t", scale=2))
    assert (tiles.pixels.shape, tiles.labels, tiles.frames) == ((3, 2, 1, 16, 16, 3), ["a", "<b>", "é"], False)
    for index in range(5):
        np.testing.assert_array_equal(tiles.pixels[index // 2, index % 2, 0, ::2, ::2], as_uint8(images[index]))
    assert (tiles.pixels[2, 1] == 255).all()
    clips = torch.rand(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same = {"columns": 2, "row_labels": ["a", "b"], "scale": 1, "title": "a title wider than all of its tiles are"}
    save_grid(clips, tmp_path / "c.gif", **same)
    path = save_grid(clips[::2], tmp_path / "c.png", **same)
    rows, played = read_tiles(path), read_tiles(path, gif=True)
    assert (rows.pixels.shape, rows.frames, played.pixels.shape) == ((2, 3, 1, 8, 8, 3), True, (2, 2, 3, 8, 8, 3))
    for frame in range(3):
        np.testing.assert_array_equal(rows.pixels[1, frame, 0], np.broadcast_to(as_uint8(clips[2, frame]), (8, 8, 3)))
        np.testing.assert_array_equal(played.pixels[1, 1, frame], np.broadcast_to(as_uint8(clips[3, frame]), (8, 8, 3)))
    unlabelled = read_tiles(save_grid(images[:1], tmp_path / "one.png", 1))
    assert (unlabelled.pixels.shape, unlabelled.labels) == ((1, 1, 1, 48, 48, 3), None)
    real = -torch.ones(2, 3, 1, 8, 8)
    save_grid(clips, tmp_path / "c.gif", **same, real=real)
    beside = save_grid(clips[::2], tmp_path / "c.png", **same, real=real)
    np.testing.assert_array_equal(read_tiles(beside).pixels, rows.pixels)
    np.testing.assert_array_equal(read_tiles(beside, gif=True).pixels, played.pixels)
    Image.new("L", (9, 9)).save(tmp_path / "other.png")
    for name in ("other.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            read_tiles(tmp_path / name)


@pytest.mark.parametrize("place", [[8, 8, 10**9, 10**9], [8, 8, 1, 10**9], [8, 8, 0, 1], [-8, 8, 1, 1], [90, 8, 1, 1]])
def test_tiles_that_lie_outside_of_their_page_are_none(tmp_path, place):
    said = PngInfo()
    said.add_text("neural_rdm_tiles", json.dumps({"labels": None, "size": [8, 8], "png": place, "frames": False}))
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=said)
    with pytest.raises(DataError, match=r"x\.png is no grid .*its tiles lie outside of it"):
        read_tiles(tmp_path / "x.png")
