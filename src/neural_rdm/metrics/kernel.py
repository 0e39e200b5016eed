"""The kernel distance (KID): an unbiased squared maximum mean discrepancy of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neural_rdm.metrics.feature_sets import TwoSets, canonical, pair


def kernel_distance(
    real: ArrayLike | Tensor,
    generated: ArrayLike | Tensor,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> tuple[float, float]:
    """Mean and deviation over random subsets of the unbiased MMD^2 with the kernel (x . y / D + 1)^3, in float64.

    The KID of Binkowski et al. 2018 (arXiv 1801.01401); subsets are drawn as torch-fidelity draws them for that seed.

    Args:
        real, generated: features [N, D] and [M, D], arrays or tensors.
        subsets: how many subsets, at least 1.
        subset_size: samples of each side in a subset, drawn without replacement; 2 ... min(N, M).
        seed: of the subsets.

    Returns:
        Mean and standard deviation (of the subsets themselves: ddof = 0); about 0, also below it, for equal sets.

    Raises:
        ValueError: shapes that do not fit together, values that are not finite, subsets that cannot be drawn.
    """
    one, two = pair("kernel_distance", real, generated)
    if subsets < 1 or not 2 <= subset_size <= min(len(one), len(two)):
        raise ValueError(
            f"kernel_distance cannot draw {subsets} subsets of {subset_size} samples from {len(one)} real and "
            f"{len(two)} generated ones; subset_size may be 2 ... {min(len(one), len(two))}"
        )
    random = np.random.RandomState(seed)

    def draw(rows: Tensor) -> Tensor:
        chosen = random.choice(len(rows), subset_size, replace=False)
        return rows[torch.from_numpy(chosen).to(rows.device)].to(one.device, torch.float64)

    values = []
    for _ in range(subsets):
        y, x = draw(two), draw(one)  # the generated side first, as torch-fidelity does
        values.append(_mmd2(x, y))
    return float(np.mean(values)), float(np.std(values))


def _mmd2(x: Tensor, y: Tensor) -> float:
    n, dim = x.shape

    def total(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / dim + 1).pow(3).sum()

    def total_off_diagonal(a: Tensor) -> Tensor:
        return total(a, a) - (a.square().sum(1) / dim + 1).pow(3).sum()

    return float((total_off_diagonal(x) + total_off_diagonal(y)) / (n * (n - 1)) - 2 * total(x, y) / n**2)


class KernelDistance(TwoSets):
    """`kernel_distance` of all real and generated features; they are kept in float32.

    Subsets are drawn from the features in an order of their own (`canonical`): the order of arrival, batch size and
    ranks do not matter.

    Args:
        feature_space, dim: as in `FeatureMetric`.
        subsets, seed: as in `kernel_distance`.
        subset_size: as there, at most; a smaller side bounds it, which leaves the mean unbiased.
    """

    kind = "kernel_distance"
    higher_is_better = False
    least = 2

    def __init__(
        self, feature_space: str, dim: int, subsets: int = 100, subset_size: int = 1000, seed: int = 2020, **kwargs: Any
    ) -> None:
        super().__init__(feature_space, dim, **kwargs)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def between(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """`kernel_distance_<space>` and `kernel_distance_<space>_std`, float64 scalars.

        Raises:
            ValueError: as `kernel_distance`.
        """
        size = min(self.subset_size, len(real), len(generated))
        values = kernel_distance(canonical(real), canonical(generated), self.subsets, size, self.seed)
        names = (self.name, f"{self.name}_std")
        return {n: torch.tensor(v, dtype=torch.float64) for n, v in zip(names, values, strict=True)}
