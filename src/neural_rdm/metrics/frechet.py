"""The Frechet distance between two Gaussians, and a metric that streams the moments it needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import rank_zero_warn


def frechet_distance(
    mu1: ArrayLike | Tensor, sigma1: ArrayLike | Tensor, mu2: ArrayLike | Tensor, sigma2: ArrayLike | Tensor
) -> float:
    """||mu1 - mu2||^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)): the FID of Heusel et al. 2017, computed in float64 on the CPU.

    With S1 = L L^T the eigenvalues of S1 S2 are those of the symmetric L^T S2 L, so the trace is real by construction
    and no matrix square root is taken. L is the Cholesky factor or, where S1 is singular (fewer samples than
    dimensions), its eigenvectors scaled by the roots of the eigenvalues. Full rank is exact to about 1e-12 of the
    traces; a singular covariance, whose zero eigenvalues are rounding, to about 1e-7.

    Args:
        mu1, mu2: means [D], arrays or tensors on any device.
        sigma1, sigma2: covariances [D, D], symmetric and positive semi-definite; any rank.

    Raises:
        ValueError: shapes that do not fit together, or a value that is not finite.
    """
    mean1, mean2, cov1, cov2 = (_float64(value) for value in (mu1, mu2, sigma1, sigma2))
    dim = mean1.numel()
    shapes = [tuple(value.shape) for value in (mean1, cov1, mean2, cov2)]
    if shapes != [(dim,), (dim, dim)] * 2:
        names = ("mu1", "sigma1", "mu2", "sigma2")
        given = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
        raise ValueError(f"frechet_distance wants means [D] and covariances [D, D] of one D; got {given}")
    if not all(bool(value.isfinite().all()) for value in (mean1, cov1, mean2, cov2)):
        raise ValueError("frechet_distance: a mean or covariance holds NaN or infinity; the features were not finite")
    cov1, cov2 = (cov1 + cov1.T) / 2, (cov2 + cov2.T) / 2
    factor = _factor(cov1)
    roots = torch.linalg.eigvalsh(factor.T @ cov2 @ factor).clamp(min=0).sqrt()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * roots.sum()
    return max(float(distance), 0.0)


def moments(count: int | Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] (as `numpy.cov`) from the samples' sum [D] and outer products [D, D].

    Raises:
        ValueError: fewer than two samples.
    """
    n = int(count)
    if n < 2:
        raise ValueError(f"a covariance needs at least 2 samples; got {n}")
    mean = total / n
    return mean, (outer - n * torch.outer(mean, mean)) / (n - 1)


class FrechetDistance(Metric):
    """Frechet distance between real and generated features, from float64 sums: the batch size cannot change the result.

    Sums of all ranks are added, so the value is that of one process that saw every sample. Sums of raw products lose
    about 2 log10(|mean| / deviation) of float64's 16 digits, which leaves 8 even for a mean 10^4 deviations away.

    Args:
        feature_space: what the features are, say "pixels" or "inception"; part of the metric's `name`.
        dim: width D of a feature vector.

    Raises:
        ValueError: in `update`, features that are not [B, dim]; in `compute`, fewer than 2 samples or features that
            are not finite.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    real_count: Tensor
    real_sum: Tensor
    real_outer: Tensor
    generated_count: Tensor
    generated_sum: Tensor
    generated_outer: Tensor

    def __init__(self, feature_space: str, dim: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if dim < 1:
            raise ValueError(f"dim={dim}: a feature vector has at least one entry")
        self.feature_space = feature_space
        self.dim = dim
        for side in ("real", "generated"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def name(self) -> str:
        """The name to log under: a Frechet distance without its feature space means nothing."""
        return f"frechet_{self.feature_space}"

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, dim] of any floating type to the real or to the generated side."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"{self.name} wants features [B, {self.dim}]; got {list(features.shape)}")
        features = features.detach().to(self.real_sum)
        if real:
            self.real_count = self.real_count + len(features)
            self.real_sum = self.real_sum + features.sum(0)
            self.real_outer = torch.addmm(self.real_outer, features.T, features)
        else:
            self.generated_count = self.generated_count + len(features)
            self.generated_sum = self.generated_sum + features.sum(0)
            self.generated_outer = torch.addmm(self.generated_outer, features.T, features)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar. Warns where a side has too few samples for a covariance of full rank."""
        for side, count in (("real", int(self.real_count)), ("generated", int(self.generated_count))):
            if count < 2:
                raise ValueError(f"{self.name} needs at least 2 {side} samples; got {count}")
            warn_if_few(self.name, side, count, self.dim)
        distance = frechet_distance(
            *moments(self.real_count, self.real_sum, self.real_outer),
            *moments(self.generated_count, self.generated_sum, self.generated_outer),
        )
        return self.real_sum.new_tensor(distance)

    def reset(self, real: bool = True) -> None:
        """Forget everything or, with `real=False`, the generated side only, so that real features are made once."""
        kept = (self.real_count, self.real_sum, self.real_outer)
        super().reset()
        if not real:
            self.real_count, self.real_sum, self.real_outer = kept


def warn_if_few(name: str, side: str, count: int, dim: int) -> None:
    """Warn (on rank 0) that `count` samples cannot span a covariance in `dim` dimensions."""
    if count <= dim:
        rank_zero_warn(
            f"{name}: {count} {side} samples for {dim} dimensions: the covariance is singular and the distance "
            f"strongly biased upwards. Use more than {dim} samples, and compare only runs with equal counts."
        )


def _float64(value: ArrayLike | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    return torch.from_numpy(np.array(value, dtype=np.float64))


def _factor(cov: Tensor) -> Tensor:
    """L [D, r] with L L^T = cov; r < D where cov is singular."""
    factor, info = torch.linalg.cholesky_ex(cov)
    if int(info) == 0:
        return factor
    values, vectors = torch.linalg.eigh(cov)
    # Eigenvalues below this are rounding of zeros; their roots (1e-8) would add up over the null space.
    keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()
