"""The CLIP score against torchmetrics' own arithmetic and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_rdm.metrics import CLIPScore, clip_score


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_angles_are_the_score():
    images, texts = np.array([[2.0, 0], [3, 3], [0, 1], [1, 0]]), np.array([[5.0, 0], [1, 0], [7, 0], [-1, 0]])
    assert clip_score(images, texts) == pytest.approx((100 + 100 * 0.5**0.5 + 0 + 0) / 4, rel=1e-14)


def test_equals_torchmetrics_where_no_pair_is_cut():
    """Its network replaced by one that gives our features; pairs of positive cosine, since it cuts the mean."""
    from torchmetrics.functional.multimodal import clip_score as oracle

    images, texts = torch.rand(20, 16), torch.rand(20, 16)

    class Model(torch.nn.Module):
        config = None

        def get_image_features(self, pixels):
            return images

        def get_text_features(self, tokens, mask):
            return texts

    def processor(**_):
        return {name: torch.zeros(20, 1) for name in ("pixel_values", "input_ids", "attention_mask")}

    pictures, captions = [torch.zeros(3, 4, 4, dtype=torch.uint8)] * 20, ["a"] * 20
    expected = oracle(pictures, captions, model_name_or_path=lambda: (Model(), processor))
    assert clip_score(images, texts) == pytest.approx(float(expected), rel=1e-6)


def test_size_of_a_feature_and_duplicates_do_not_matter():
    images, texts = torch.randn(20, 16), torch.randn(20, 16)
    expected = clip_score(images, texts)
    assert clip_score(7 * images, texts / 3) == pytest.approx(expected, rel=1e-6)
    assert clip_score(images.repeat(3, 1), texts.repeat(3, 1)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[2, 4\]"):
        clip_score(torch.ones(3, 4), torch.ones(2, 4))
    with pytest.raises(ValueError, match="at least one pair"):
        clip_score(torch.ones(0, 4), torch.ones(0, 4))
    with pytest.raises(ValueError, match="clip_score_vit needs at least one pair"):
        CLIPScore("vit").compute()
    assert np.isnan(clip_score(torch.tensor([[torch.nan, 1.0]]), torch.ones(1, 2)))
