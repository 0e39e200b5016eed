"""The Frechet distance between two Gaussians, and a metric that streams what it needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchmetrics.utilities import rank_zero_warn

from neural_rdm.metrics.feature_sets import FeatureMetric


class Gaussian(NamedTuple):
    """A mean [D] and its `spread`: the covariance [D, D] or, where `thin`, rows R [n, D] whose covariance is R^T R.

    float64 on the CPU.
    """

    mean: Tensor
    spread: Tensor
    thin: bool = False

    def total(self) -> Tensor:
        """The trace of the covariance."""
        return self.spread.square().sum() if self.thin else self.spread.trace()


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
    mean1, mean2, cov1, cov2 = (float64(value) for value in (mu1, mu2, sigma1, sigma2))
    dim = mean1.numel()
    shapes = [tuple(value.shape) for value in (mean1, cov1, mean2, cov2)]
    if shapes != [(dim,), (dim, dim)] * 2:
        names = ("mu1", "sigma1", "mu2", "sigma2")
        given = ", ".join(f"{name} {list(shape)}" for name, shape in zip(names, shapes, strict=True))
        raise ValueError(f"frechet_distance wants means [D] and covariances [D, D] of one D; got {given}")
    if not all(bool(value.isfinite().all()) for value in (mean1, cov1, mean2, cov2)):
        raise ValueError("frechet_distance: a mean or covariance holds NaN or infinity; the features were not finite")
    return _distance(Gaussian(mean1, _symmetric(cov1)), Gaussian(mean2, _symmetric(cov2)))


def _distance(one: Gaussian, two: Gaussian) -> float:
    gap = (one.mean - two.mean).square().sum()
    return max(float(gap + one.total() + two.total() - 2 * _root_trace(one, two)), 0.0)


def _root_trace(one: Gaussian, two: Gaussian) -> Tensor:
    """Tr (S1 S2)^(1/2): the sum of the roots of the eigenvalues of S1 S2."""
    if not one.thin and not two.thin:
        factor, info = torch.linalg.cholesky_ex(one.spread)
        if int(info) == 0:
            return _roots(_congruence(two.spread, factor))
        one = Gaussian(one.mean, _rows(one.spread), thin=True)
    if one.thin and two.thin:  # the nuclear norm of R1 R2^T [n1, n2]: nothing is squared, no digit lost
        return torch.linalg.svdvals(one.spread @ two.spread.T).sum()
    rows, cov = (one.spread, two.spread) if one.thin else (two.spread, one.spread)
    return _roots(rows @ cov @ rows.T)


def _roots(symmetric: Tensor) -> Tensor:
    """Sum of the roots of the eigenvalues, read from the lower triangle."""
    return torch.linalg.eigvalsh(symmetric).clamp(min=0).sqrt().sum()


def _congruence(cov: Tensor, factor: Tensor) -> Tensor:
    """The lower triangle of L^T S L; LAPACK's sygst takes a third of the time of two products."""
    from scipy.linalg.lapack import dsygst

    result, _ = dsygst(cov.numpy().T, factor.numpy(), itype=2, lower=1)
    return torch.from_numpy(result)


def _rows(cov: Tensor) -> Tensor:
    """R [r, D] with R^T R = cov; r < D where cov is singular."""
    values, vectors = torch.linalg.eigh(cov)
    # Eigenvalues below this are rounding of zeros; their roots (1e-8) would add up over the null space.
    keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    return (vectors[:, keep] * values[keep].sqrt()).T


def _symmetric(cov: Tensor) -> Tensor:
    return (cov + cov.T) / 2


def float64(value: ArrayLike | Tensor) -> Tensor:
    """An array, or a tensor on any device, as float64 on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64)
    return torch.from_numpy(np.array(value, dtype=np.float64))


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


class FrechetDistance(FeatureMetric):
    """Frechet distance between real and generated features, from float64 sums: the batch size cannot change the result.

    Sums of all ranks are added, so the value is that of one process that saw every sample. Sums of raw products lose
    about 2 log10(|mean| / deviation) of float64's 16 digits, which leaves 8 even for a mean 10^4 deviations away.

    Features are gathered up to `keep` before their products are summed. A side with fewer samples than dimensions that
    was never summed has no covariance: its centred features give the distance many times faster and to about 1e-9.
    FID is this with the feature space "inception", sFID with ADM's 2023 spatial features, FVD with "i3d".

    Args:
        feature_space: what the features are, say "pixels" or "inception"; part of the metric's `name`.
        dim: width D of a feature vector.
        keep: features that a rank holds of a side at most; by default D - 1, which is less memory than the covariance.

    Raises:
        ValueError: in `update`, features that are not [B, dim]; in `compute`, fewer than 2 samples or features that
            are not finite.
    """

    kind = "frechet"
    higher_is_better = False
    row_dtype = torch.float64
    _reference: tuple[Gaussian, int | None] | None = None
    real_count: Tensor
    real_sum: Tensor
    real_outer: Tensor  # of the features that are no longer held
    generated_count: Tensor
    generated_sum: Tensor
    generated_outer: Tensor

    def __init__(self, feature_space: str, dim: int, keep: int | None = None, **kwargs: Any) -> None:
        super().__init__(feature_space, dim, **kwargs)
        self.keep = dim - 1 if keep is None else keep
        for side in self.sides:
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_outer", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def set_reference(self, mu: ArrayLike | Tensor, sigma: ArrayLike | Tensor, count: int | None = None) -> None:
        """Take stored moments for the real side; they stay through every `reset`. Each rank sets the same ones.

        Args:
            mu, sigma: mean [D] and covariance [D, D].
            count: samples behind them, where known; for the warning about too few.

        Raises:
            ValueError: shapes that do not fit, values that are not finite, real features that were added before.
        """
        mean, cov = float64(mu), float64(sigma)
        if mean.shape != (self.dim,) or cov.shape != (self.dim, self.dim):
            raise ValueError(
                f"{self.name} wants mu [{self.dim}] and sigma [{self.dim}, {self.dim}]; "
                f"got {list(mean.shape)} and {list(cov.shape)}"
            )
        if not bool(mean.isfinite().all()) or not bool(cov.isfinite().all()):
            raise ValueError(f"{self.name}: the reference moments hold NaN or infinity")
        if int(self.real_count):
            raise ValueError(f"{self.name} has {int(self.real_count)} real samples; reset() before set_reference")
        self._reference = Gaussian(mean, _symmetric(cov)), count

    def update(self, features: Tensor, real: bool) -> None:
        """Add features [B, dim] of any floating type to the real or to the generated side."""
        if real and self._reference is not None:
            raise ValueError(f"{self.name} has stored reference moments; it takes generated features only")
        side, features = "real" if real else "generated", self._checked(features)
        for state, value in (("count", len(features)), ("sum", features.sum(0))):
            setattr(self, f"{side}_{state}", getattr(self, f"{side}_{state}") + value)
        self._keep_rows(side, features)
        if sum(map(len, getattr(self, f"{side}_rows"))) > self.keep:  # one product for many batches
            rows = self.rows(side)
            setattr(self, f"{side}_outer", torch.addmm(getattr(self, f"{side}_outer"), rows.T, rows))
            self._forget_rows(side)

    def compute(self) -> Tensor:
        """The distance, a float64 scalar. Warns where a side has too few samples for a covariance of full rank."""
        real, count = self._reference or self._gaussian("real")
        generated, generated_count = self._gaussian("generated")
        for side, n in (("real", count), ("generated", generated_count)):
            if n is not None:
                warn_if_few(self.name, side, n, self.dim)
        return self.real_sum.new_tensor(_distance(real, generated))

    def moments(self, side: str) -> tuple[Tensor, Tensor, int]:
        """Mean [D] and covariance [D, D], float64 on the CPU, of what all ranks added, and its count. All must call it.

        Raises:
            ValueError: fewer than 2 samples, or features that are not finite.
        """
        with self.sync_context(should_sync=self._to_sync):
            (mean, spread, thin), count = self._gaussian(side)
        return mean, spread.T @ spread if thin else spread, count

    def _gaussian(self, side: str) -> tuple[Gaussian, int]:
        count, total, outer = (getattr(self, f"{side}_{state}") for state in ("count", "sum", "outer"))
        n = int(count)
        if n < 2:
            raise ValueError(f"{self.name} needs at least 2 {side} samples; got {n}")
        if not bool(total.isfinite().all()):
            raise ValueError(f"{self.name}: the {side} features hold NaN or infinity")
        rows = self.rows(side).cpu()
        if len(rows) == n < self.dim:
            mean = total.cpu() / n
            return Gaussian(mean, (rows - mean) / (n - 1) ** 0.5, thin=True), n
        mean, cov = moments(n, total.cpu(), torch.addmm(outer.cpu(), rows.T, rows))
        return Gaussian(mean, cov), n


def warn_if_few(name: str, side: str, count: int, dim: int) -> None:
    """Warn (on rank 0) that `count` samples cannot span a covariance in `dim` dimensions."""
    if count <= dim:
        rank_zero_warn(
            f"{name}: {count} {side} samples for {dim} dimensions: the covariance is singular and the distance "
            f"strongly biased upwards. Use more than {dim} samples, and compare only runs with equal counts."
        )
