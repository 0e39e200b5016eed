"""Grids read back with PIL, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

from neural_rdm.core.errors import ConfigError
from neural_rdm.reports.grids import MIN_TILE, save_grid
from neural_rdm.reports.tiles import GAP, MARGIN, read_tiles


def pixels(path):
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def tile(page, row, column, height, width, left=MARGIN, top=MARGIN):
    y, x = top + row * (height + GAP), left + column * (width + GAP)
    return page[y : y + height, x : x + width]


def as_uint8(x):
    """The stated rule, in NumPy: [C, H, W] to [H, W, C]."""
    return np.minimum(np.floor(127.5 * np.clip(x.numpy(), -1, 1) + 128), 255).astype(np.uint8).transpose(1, 2, 0)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 7),
    channels=st.sampled_from([1, 3]),
    columns=st.integers(1, 4),
    scale=st.integers(1, 3),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
)
def test_every_tile_is_its_sample_enlarged(tmp_path_factory, count, channels, columns, scale, height, width):
    x = torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(count)) * 2.4 - 1.2
    page = pixels(save_grid(x, tmp_path_factory.mktemp("grid") / "x.png", columns, scale=scale))
    rows, shown = -(-count // columns), min(columns, count)
    h, w = height * scale, width * scale
    assert page.shape == (2 * MARGIN + rows * (h + GAP) - GAP, 2 * MARGIN + shown * (w + GAP) - GAP, 3)
    covered = np.zeros(page.shape[:2], dtype=bool)
    for index in range(count):
        row, column = divmod(index, columns)
        expected = np.kron(as_uint8(x[index]), np.ones((scale, scale, 1), dtype=np.uint8))
        np.testing.assert_array_equal(tile(page, row, column, h, w), np.broadcast_to(expected, (h, w, 3)))
        tile(covered, row, column, h, w)[:] = True
    assert (page[~covered] == 255).all()


def test_rounding_is_that_of_dit(tmp_path):
    """127.5 x + 128 truncated; half a level away from (x + 1) 127.5 at the middle and at both ends."""
    x = torch.tensor([-1.0, -0.999, 0.0, 0.5, 0.999, 1.0, 7.0, -7.0]).view(1, 1, 1, 8)
    page = pixels(save_grid(x, tmp_path / "x.png", 1, scale=1))
    assert tile(page, 0, 0, 1, 8)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255, 255, 0]


@pytest.mark.parametrize(("size", "expected"), [(8, 48), (7, 49), (32, 64), (48, 48), (256, 256)])
def test_tiny_images_are_enlarged_by_a_whole_number(tmp_path, size, expected):
    page = pixels(save_grid(torch.zeros(2, 1, size, size), tmp_path / "x.png", 2))
    assert page.shape[:2] == (expected + 2 * MARGIN, 2 * expected + GAP + 2 * MARGIN)
    assert expected >= MIN_TILE


def test_values_that_are_not_finite(tmp_path):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0]).view(1, 1, 2, 2)
    page = pixels(save_grid(x, tmp_path / "x.png", 1, scale=1))
    assert tile(page, 0, 0, 2, 2)[..., 0].tolist() == [[0, 255], [0, 128]]
    latents = torch.full((2, 4, 4, 4), float("nan"))
    assert (tile(pixels(save_grid(latents, tmp_path / "z.png", 1, scale=1)), 0, 0, 4, 4) == 0).all()


def test_latents_are_stretched_per_channel(tmp_path):
    z = torch.zeros(2, 4, 1, 2)
    z[:, 0] = torch.tensor([[[0.0, 10.0]], [[20.0, 5.0]]])
    z[:, 1] = torch.tensor([[[-3.0, -3.0]], [[-3.0, -1.0]]])
    page = pixels(save_grid(z, tmp_path / "z.png", 1, scale=1))
    assert tile(page, 0, 0, 1, 2).tolist() == [[[0, 0, 0], [128, 0, 0]]]
    assert tile(page, 1, 0, 1, 2).tolist() == [[[255, 0, 0], [64, 255, 0]]]
    two = pixels(save_grid(z[:, :2], tmp_path / "two.png", 1, scale=1))
    np.testing.assert_array_equal(two, page)


def test_labels_and_title_stand_beside_the_tiles(tmp_path):
    x = -torch.ones(4, 1, 8, 8)
    plain = pixels(save_grid(x, tmp_path / "plain.png", 2))
    page = pixels(save_grid(x, tmp_path / "x.png", 2, row_labels=["0", "golden retriever"], title="samples"))
    left, top = page.shape[1] - plain.shape[1] + MARGIN, page.shape[0] - plain.shape[0] + MARGIN
    assert left > MARGIN
    assert top > MARGIN
    np.testing.assert_array_equal(page[top:-MARGIN, left:-MARGIN], plain[MARGIN:-MARGIN, MARGIN:-MARGIN])
    ink = [(page[top + row * 50 : top + row * 50 + 48, :left] < 128).any() for row in range(2)]
    assert ink == [True, True]
    assert (page[: top - 1] < 128).any()
    wide = pixels(save_grid(x, tmp_path / "wide.png", 2, title="a title that is much longer than two small tiles"))
    assert wide.shape[1] > plain.shape[1]
    assert (wide[:, -MARGIN:] == 255).all()


def test_clips_play_in_a_gif(tmp_path):
    clips = torch.rand(3, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    path = save_grid(clips, tmp_path / "x.gif", 2, scale=1, fps=10)
    with Image.open(path) as gif:
        assert gif.n_frames == 5
        for index, frame in enumerate(ImageSequence.Iterator(gif)):
            assert frame.info["duration"] == 100
            page = np.array(frame.convert("RGB"))
            expected = np.broadcast_to(as_uint8(clips[2, index]), (8, 8, 3))
            np.testing.assert_array_equal(tile(page, 1, 0, 8, 8), expected)


def test_clips_become_rows_of_frames_in_a_png(tmp_path):
    clips = torch.rand(4, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    page = pixels(save_grid(clips, tmp_path / "x.png", 2, scale=1))
    heads = page.shape[0] - (2 * MARGIN + 4 * (8 + GAP) - GAP)  # the numbers of the frames
    assert (page[MARGIN : MARGIN + heads] < 128).any()
    assert page.shape[1] == 2 * MARGIN + 3 * (8 + GAP) - GAP
    page = page[heads:]
    for clip in range(4):
        for frame in range(3):
            np.testing.assert_array_equal(tile(page, clip, frame, 8, 8), as_uint8(clips[clip, frame]))
    each = save_grid(clips, tmp_path / "each.png", 2, row_labels=["a", "a", "b", "b"]).read_bytes()
    assert save_grid(clips, tmp_path / "rows.png", 2, row_labels=["a", "b"]).read_bytes() == each


FRAMES = [0, 2, 4, 6, 9, 11, 13, 15]  # as many as fit into 2048 pixels


def test_a_long_strip_shows_some_of_its_frames(tmp_path):
    path = save_grid(torch.linspace(-1, 1, 16).view(1, 16, 1, 1, 1).expand(1, 16, 1, 256, 256), tmp_path / "x.png", 1)
    shown = read_tiles(path).pixels[0, :, 0, 0, 0, 0].tolist()
    assert shown == [min(255, int(127.5 * (2 * frame / 15 - 1) + 128)) for frame in FRAMES]


def test_columns_are_named(tmp_path):
    x = torch.ones(4, 1, 64, 64)
    plain = read_tiles(save_grid(x, tmp_path / "a.png", 2))
    path = save_grid(
        x, tmp_path / "b.png", 2, row_labels=["t 1", "t 2"], column_labels=["true", "noisy"], title="long" * 9
    )
    named = read_tiles(path)
    np.testing.assert_array_equal(named.pixels, plain.pixels)
    assert named.labels == ["t 1", "t 2"]


def test_real_samples_stand_at_the_right_of_their_row(tmp_path):
    x, real = torch.zeros(4, 1, 8, 8), torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    page = pixels(save_grid(x, tmp_path / "x.png", 2, scale=6, real=real))
    top, left = page.shape[0] - MARGIN - 2 * 48 - GAP, 2 * MARGIN + 2 * (48 + GAP)
    assert (tile(page, 0, 0, 48, 48, left, top) == 0).all()
    assert (tile(page, 1, 0, 48, 48, left, top) == 255).all()
    assert (tile(page, 1, 1, 48, 48, MARGIN, top) == 128).all()
    assert (page[:top, :left] == 255).all()
    assert (page[:top, left:] < 128).any()  # "real"
    clips = torch.zeros(2, 16, 1, 8, 8)
    strip = pixels(save_grid(clips, tmp_path / "clips.png", 1, ["a", "b"], scale=16, real=clips - 1))
    wide = strip.shape[1] - 16 * (128 + GAP) - 2 * MARGIN + GAP
    assert 2 * MARGIN < wide < 4 * MARGIN  # eight frames each
    with pytest.raises(ConfigError, match="3 samples and 2 real ones do not fill 2 rows"):
        save_grid(x[:3], tmp_path / "no.png", 2, real=real)


def test_clips_without_labels_stand_above_real_ones_and_say_so(tmp_path):
    clips = torch.zeros(3, 5, 1, 8, 8)
    path = save_grid(clips, tmp_path / "clips.png", 2, scale=6, real=clips[:2] - 1)
    save_grid(clips, path.with_suffix(".gif"), 2)
    page, read = pixels(path), read_tiles(path)
    assert read.pixels.shape == (3, 5, 1, 48, 48, 3)  # without the real ones
    assert (read.pixels == 128).all()
    assert read.labels is None
    left = page.shape[1] - MARGIN - 5 * (48 + GAP) + GAP
    top = page.shape[0] - MARGIN - 5 * (48 + GAP) + GAP
    assert [int(tile(page, row, 4, 48, 48, left, top).max()) for row in range(5)] == [128] * 3 + [0] * 2
    assert all((tile(page, row, 0, 48, left - MARGIN, 0, top) < 128).any() for row in range(5))  # the words


def test_any_floating_type_and_a_new_folder(tmp_path):
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8).bfloat16()
    path = save_grid(x, tmp_path / "new" / "x.png", 1)
    assert path == tmp_path / "new" / "x.png"
    assert [file.name for file in path.parent.iterdir()] == ["x.png"]
    assert path.read_bytes() == save_grid(x.float(), tmp_path / "y.png", 1).read_bytes()


def test_mistakes_are_named(tmp_path):
    x = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ConfigError, match=r"\.png or \.gif"):
        save_grid(x, tmp_path / "x.jpg", 2)
    with pytest.raises(ConfigError, match=r"\[1, 8, 8\]"):
        save_grid(x[0], tmp_path / "x.png", 2)
    with pytest.raises(ConfigError, match=r"\[0, 1, 8, 8\]"):
        save_grid(x[:0], tmp_path / "x.png", 2)
    with pytest.raises(ConfigError, match="3 row labels for 2 rows"):
        save_grid(x, tmp_path / "x.png", 2, row_labels=["a", "b", "c"])
    for arguments in ({"columns": 0}, {"columns": 1, "scale": 0}, {"columns": 1, "fps": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            save_grid(x, tmp_path / "x.png", **arguments)
    assert not list(tmp_path.iterdir())
