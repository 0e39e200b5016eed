"""Improved precision and recall: how much of each set lies where the other one is dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neural_rdm.metrics.feature_sets import TwoSets, pair

# Squared distances below this share of the squared norms are rounding: copies count as copies, ties as ties.
ROUNDING = 1e-12


def precision_recall(
    real: ArrayLike | Tensor, generated: ArrayLike | Tensor, k: int = 3, chunk: int = 4096
) -> tuple[float, float]:
    """Precision and recall of Kynkaanniemi et al. 2019 (arXiv 1904.06991), exact, in float64 on `real`'s device.

    A ball around every sample reaches to its k-th nearest neighbour in its own set. Precision is the share of generated
    samples inside a ball of a real one, recall the share of real samples inside a ball of a generated one.

    Args:
        real, generated: features [N, D] and [M, D], arrays or tensors; more than k of each.
        k: which neighbour; 3 in the paper's tables.
        chunk: rows whose distances are held at once; memory is a few times chunk^2 float64.

    Returns:
        Precision and recall in [0, 1], higher is better.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, too few samples, k or chunk < 1.
    """
    one, two = pair("precision_recall", real, generated)
    if k < 1 or chunk < 1:
        raise ValueError(f"precision_recall wants k >= 1 and chunk >= 1; got {k} and {chunk}")
    if min(len(one), len(two)) <= k:
        raise ValueError(
            f"precision_recall with k={k} needs more than {k} samples a side; got {len(one)} real, {len(two)} generated"
        )
    origin = one[:1].double()  # distances do not change and a common offset costs no digits
    reals, fakes = one.split(chunk), two.split(chunk)
    real_radii, fake_radii = ([_radii(rows, x, k, origin) for rows in x] for x in (reals, fakes))
    fakes_inside, reals_inside = ([torch.zeros_like(r, dtype=torch.bool) for r in x] for x in (fake_radii, real_radii))
    for rows, real_radius, real_inside in zip(reals, real_radii, reals_inside, strict=True):
        for fake, fake_radius, fake_inside in zip(fakes, fake_radii, fakes_inside, strict=True):
            distance = _squared(rows, fake, origin, shrink=ROUNDING)
            fake_inside |= (distance <= real_radius[:, None]).any(dim=0)
            real_inside |= (distance <= fake_radius).any(dim=1)
    precision, recall = (float(torch.cat(inside).double().mean()) for inside in (fakes_inside, reals_inside))
    return precision, recall


def _radii(rows: Tensor, everything: Sequence[Tensor], k: int, origin: Tensor) -> Tensor:
    """Squared distance from each row to its k-th nearest neighbour in the set that it belongs to."""
    nearest = [_squared(rows, other, origin).topk(min(k + 1, len(other)), largest=False).values for other in everything]
    return torch.cat(nearest, dim=1).kthvalue(k + 1).values.clamp(min=0)  # the first is the row itself


def _squared(x: Tensor, y: Tensor, origin: Tensor, shrink: float = 0.0) -> Tensor:
    x, y = x.to(origin) - origin, y.to(origin) - origin
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, beta=1 - shrink, alpha=-2)


class PrecisionRecall(TwoSets):
    """`precision_recall` of all real and generated features; they are kept in float32.

    Args:
        feature_space, dim: as in `FeatureMetric`.
        k: which neighbour bounds a sample's ball.
    """

    kind = "precision_recall"
    higher_is_better = True

    def __init__(self, feature_space: str, dim: int, k: int = 3, **kwargs: Any) -> None:
        super().__init__(feature_space, dim, **kwargs)
        self.k, self.least = k, k + 1

    def between(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """`precision_<space>` and `recall_<space>`, float64 scalars in [0, 1].

        Raises:
            ValueError: as `precision_recall`.
        """
        values = precision_recall(real, generated, self.k)
        names = (f"precision_{self.feature_space}", f"recall_{self.feature_space}")
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, values, strict=True)}
