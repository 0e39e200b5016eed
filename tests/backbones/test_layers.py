"""The shared layers against plain re-statements of the official formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.backbones.layers import (
    FinalLayer,
    LabelEmbedder,
    TimestepEmbedder,
    modulate,
    sincos_1d,
    sincos_2d,
    unpatchify,
)


def official_table(dim: int, side: int) -> np.ndarray:
    """MAE's and DiT's `get_2d_sincos_pos_embed`, written as loops over cells (row-major) and channels."""
    quarter = dim // 4
    table = np.zeros((side * side, dim))
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                omega = 1.0 / 10000 ** (k / quarter)
                for part, position in enumerate((column, row)):  # "here w goes first"
                    table[row * side + column, part * 2 * quarter + k] = np.sin(position * omega)
                    table[row * side + column, part * 2 * quarter + quarter + k] = np.cos(position * omega)
    return table


@pytest.mark.parametrize(("dim", "side"), [(4, 1), (8, 3), (24, 5), (96, 4), (384, 16)])
def test_the_position_table_is_the_official_one(dim: int, side: int) -> None:
    table = sincos_2d(dim, side)
    assert table.shape == (side * side, dim)
    assert table.dtype == torch.float32
    np.testing.assert_allclose(table.numpy(), official_table(dim, side), rtol=0, atol=1e-7)


def test_sincos_1d_has_sines_first() -> None:
    table = sincos_1d(4, np.array([0.0, 2.0]))
    np.testing.assert_allclose(table, [[0, 0, 1, 1], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)]], atol=1e-15)


def test_modulate_shifts_and_scales_each_sample() -> None:
    x, shift, scale = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 4), (2, 4), (2, 4)))
    expected = x * (1 + scale[:, None]) + shift[:, None]
    torch.testing.assert_close(modulate(x, shift, scale), expected, rtol=1e-14, atol=1e-14)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_unpatchify_puts_every_value_in_its_place(side: int, patch: int, channels: int, batch: int) -> None:
    x = torch.arange(batch * side**2 * patch**2 * channels).view(batch, side**2, patch**2 * channels)
    image = unpatchify(x, patch, channels)
    assert image.shape == (batch, channels, side * patch, side * patch)
    for b, c, h, w in np.ndindex(*image.shape):
        token, cell = (h // patch) * side + w // patch, (h % patch) * patch + w % patch
        assert image[b, c, h, w] == x[b, token, cell * channels + c]


def test_timestep_frequencies_divide_by_half() -> None:
    embedder = TimestepEmbedder(8, frequency_embedding_size=6)
    seen: list[torch.Tensor] = []
    embedder.mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    embedder(torch.tensor([0, 3]))
    angles = np.array([0.0, 3.0])[:, None] * 10000.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(seen[0].numpy(), np.hstack([np.cos(angles), np.sin(angles)]), atol=1e-6)
    assert "frequencies" not in embedder.state_dict()


def test_timesteps_of_any_dtype_are_embedded_in_the_type_of_the_weights() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        embedder = TimestepEmbedder(8).to(dtype)
        assert embedder(torch.tensor([1, 2])).dtype == dtype
    embedder = TimestepEmbedder(8)
    assert torch.equal(embedder(torch.tensor([5])), embedder(torch.tensor([5.0])))


def test_the_label_table_has_a_null_row_only_with_dropout() -> None:
    assert LabelEmbedder(10, 4, has_null=True).embedding_table.weight.shape == (11, 4)
    assert LabelEmbedder(10, 4, has_null=False).embedding_table.weight.shape == (10, 4)


def test_the_final_layer_is_norm_modulation_and_projection() -> None:
    torch.manual_seed(0)
    layer = FinalLayer(8, patch_size=2, out_channels=3).double()
    x, c = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    shift, scale = layer.adaLN_modulation[1](c).split(8, dim=1)
    normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    expected = (normed * (1 + scale[:, None]) + shift[:, None]) @ layer.linear.weight.T + layer.linear.bias
    torch.testing.assert_close(layer(x, c), expected, rtol=1e-12, atol=1e-12)
