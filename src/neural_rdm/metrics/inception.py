"""The Inception Score: how sure a classifier is of each sample, and how varied its answers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neural_rdm.metrics.feature_sets import FeatureMetric, canonical


def inception_score(probs: ArrayLike | Tensor, splits: int = 10) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))), mean and deviation over splits, in float64: Salimans et al. 2016 (arXiv 1606.03498).

    The splits are consecutive, [i N / splits, (i + 1) N / splits): samples sorted by class need shuffling first, as
    `InceptionScore` does. The score grows with the size of a split: compare only equal ones.

    Args:
        probs: class probabilities [N, C], rows that sum to 1 (not logits).
        splits: 1 ... N.

    Returns:
        Mean, in [1, C], higher is better, and standard deviation (of the splits themselves: ddof = 0).

    Raises:
        ValueError: rows that are no probabilities, or more splits than samples.
    """
    p = torch.as_tensor(probs).detach().double()
    if p.ndim != 2 or not bool(((p >= 0).all(1) & ((p.sum(1) - 1).abs() < 1e-2)).all()):
        raise ValueError(f"inception_score wants probabilities [N, C], rows that sum to 1; got {list(p.shape)}")
    if not 1 <= splits <= len(p):
        raise ValueError(f"inception_score cannot make {splits} splits of {len(p)} samples")
    scores = []
    for i in range(splits):
        part = p[i * len(p) // splits : (i + 1) * len(p) // splits]
        marginal = part.mean(0)
        divergence = torch.xlogy(part, part).sum() / len(part) - torch.xlogy(marginal, marginal).sum()
        scores.append(float(divergence.exp()))
    return float(np.mean(scores)), float(np.std(scores))


class InceptionScore(FeatureMetric):
    """`inception_score` of all generated samples; their probabilities are kept in float32.

    They are shuffled with a seed from an order of their own (`canonical`): the order of arrival (by class, say), batch
    size and ranks do not matter.

    Args:
        feature_space: which classifier the probabilities are of; part of the metric's `name`.
        dim: number C of classes.
        splits: as in `inception_score`.
        seed: of the shuffle.
    """

    kind = "inception_score"
    sides = ("generated",)
    higher_is_better = True

    def __init__(self, feature_space: str, dim: int, splits: int = 10, seed: int = 2020, **kwargs: Any) -> None:
        super().__init__(feature_space, dim, **kwargs)
        self.splits, self.seed = splits, seed

    def update(self, probs: Tensor) -> None:
        """Add class probabilities [B, C] of generated samples.

        Raises:
            ValueError: probabilities of another shape.
        """
        self._keep_rows("generated", self._checked(probs))

    def compute(self) -> dict[str, Tensor]:
        """`inception_score_<space>` and `inception_score_<space>_std`, float64 scalars.

        Raises:
            ValueError: as `inception_score`.
        """
        probs = canonical(self.rows("generated"))
        order = np.random.RandomState(self.seed).permutation(len(probs))
        values = inception_score(probs[torch.from_numpy(order)], self.splits)
        names = (self.name, f"{self.name}_std")
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, values, strict=True)}
