"""The CLIP score: how well images fit their texts."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional
from torchmetrics.aggregation import MeanMetric


def clip_score(image_features: ArrayLike | Tensor, text_features: ArrayLike | Tensor) -> float:
    """Mean of max(100 cos(image, text), 0) over pairs, in float64: Hessel et al. 2021 (arXiv 2104.08718), times 100.

    Each pair is cut at 0, as the paper does (torchmetrics cuts the mean). The paper's own weight is 2.5, not 100.

    Args:
        image_features, text_features: [N, E] each, arrays or tensors, row i of one belongs to row i of the other.

    Returns:
        In [0, 100], higher is better; NaN where a feature is not finite.

    Raises:
        ValueError: shapes that do not fit together, or no pair.
    """
    scores = _scores(torch.as_tensor(image_features), torch.as_tensor(text_features))
    if not len(scores):
        raise ValueError("clip_score needs at least one pair")
    return float(scores.mean())


def _scores(image: Tensor, text: Tensor) -> Tensor:
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"clip_score wants features [N, E] twice; got {list(image.shape)} and {list(text.shape)}")
    image, text = image.detach().double(), text.detach().to(image.device, torch.float64)
    return (100 * functional.cosine_similarity(image, text)).clamp(min=0)


class CLIPScore(MeanMetric):
    """`clip_score` of all pairs, from a float64 sum and a count that ranks add up.

    Args:
        feature_space: which network the features are of; part of the metric's `name`.
    """

    higher_is_better = True  # type: ignore[assignment]  # the mean of anything has none

    def __init__(self, feature_space: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature_space = feature_space
        self.set_dtype(torch.float64)

    @property
    def name(self) -> str:
        """The name to log under."""
        return f"clip_score_{self.feature_space}"

    def update(self, image_features: Tensor, text_features: Tensor) -> None:  # type: ignore[override]  # pairs
        """Add pairs of features [B, E] of images and of their texts.

        Raises:
            ValueError: shapes that do not fit together.
        """
        super().update(_scores(image_features, text_features).to(self.device))

    def compute(self) -> Tensor:
        """The mean, a float64 scalar in [0, 100].

        Raises:
            ValueError: no pair.
        """
        if not self.weight:
            raise ValueError(f"{self.name} needs at least one pair")
        return super().compute()
