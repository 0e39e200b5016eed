"""How good are generated 8x8 digits? An answer that needs no download: raw pixels and a small classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from neural_rdm.core.errors import DataError
from neural_rdm.metrics.frechet import frechet_distance, moments, warn_if_few

DIM = 64
# gamma of scikit-learn's own digits example, 0.001 for pixels 0..16, carried over to [-1, 1]: 0.001 * 8^2.
GAMMA, C = 0.064, 10.0
SUBSETS = 8  # whose mean stands for a distance at fewer samples


def at_count(distance: Callable[[Tensor], float], samples: Tensor, y: Tensor, count: int) -> float:
    """A distance of `count` samples [N, ...] of classes y [N]: the mean of `SUBSETS` draws, the classes evenly in each.

    A distance of few samples is biased upwards, so that two sets can be compared only at one count.
    """
    if count == len(samples):
        return distance(samples)
    draws, found = torch.Generator().manual_seed(0), []
    for _ in range(SUBSETS):
        place = torch.rand(len(y), generator=draws)
        for label in y.unique():
            mine = (y == label).nonzero()[:, 0]
            place[mine] += place[mine].argsort().argsort()  # the first of every class, then the second of every class
        found.append(distance(samples[place.argsort()[:count]]))
    return sum(found) / len(found)


class DigitsEvaluation(Metric):
    """Accuracy and Frechet distance of generated digits, both in stated spaces.

    `accuracy`: share of samples that a support vector classifier, trained on the real training digits, takes for the
    class they were asked for. `frechet_pixels`: `frechet_distance` of the 64 raw pixels to the real training digits.
    Samples are clamped to [-1, 1] first, as they are when they are saved. The distance falls with the number of
    samples, so beside the real digits held out stands what both score at equal counts, `at_N_frechet_pixels`. A sample
    that is not finite counts as wrong and turns the distance into NaN.

    Args:
        train_x, val_x: real digits [N, 1, 8, 8] in [-1, 1]; val_x is used by `reference` only.
        train_y, val_y: their classes [N], integers.

    Raises:
        DataError: images that are not [N, 1, 8, 8] or out of range, labels that do not fit, fewer than two classes.
    """

    pixels: list[Tensor] | Tensor
    asked: list[Tensor] | Tensor

    def __init__(self, train_x: Tensor, train_y: Tensor, val_x: Tensor, val_y: Tensor, **kwargs: Any) -> None:
        from sklearn.svm import SVC

        super().__init__(**kwargs)
        train, self._val = _pixels("train", train_x, train_y), _pixels("val", val_x, val_y)
        self._val_y = val_y.cpu()
        if len(train_y.unique()) < 2:
            raise DataError(
                "DigitsEvaluation: the training digits are all of one class; a classifier needs at least two."
            )
        self._classifier = SVC(gamma=GAMMA, C=C).fit(train.numpy(), train_y.cpu().numpy())
        self._train_count = len(train)
        self._real = moments(len(train), train.sum(0), train.T @ train)
        self.add_state("pixels", [], dist_reduce_fx="cat")
        self.add_state("asked", [], dist_reduce_fx="cat")

    @property
    def classifier(self) -> str:
        """What decides on a sample's class."""
        return f"SVC(rbf, gamma={GAMMA:g}, C={C:g}), trained on {self._train_count} real digits"

    @property
    def protocol(self) -> str:
        """One line that says what the numbers are; it belongs beside every table that shows them."""
        return (
            f"frechet_pixels: Frechet distance of the {DIM} raw pixels in [-1, 1] to {self._train_count} real training "
            f"digits; accuracy: share of samples that SVC(rbf, gamma={GAMMA:g}, C={C:g}), trained on the same "
            f"{self._train_count} digits, takes for the class they were asked for; reference: {len(self._val)} real "
            f"digits held out; at_N_frechet_pixels: at N samples (mean of {SUBSETS} draws, the classes evenly), since "
            "the distance falls with their number; count: samples behind the other numbers of a row."
        )

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add generated digits x [B, 1, 8, 8] in [-1, 1] (clamped) and the classes y [B] that they were asked for."""
        if x.shape[1:] != (1, 8, 8) or y.shape != x.shape[:1]:
            raise ValueError(
                f"DigitsEvaluation wants x [B, 1, 8, 8] and y [B]; got x {list(x.shape)}, y {list(y.shape)}"
            )
        pixels = x.detach().to("cpu", torch.float64).clamp(-1, 1).flatten(1)
        assert isinstance(self.pixels, list)
        assert isinstance(self.asked, list)
        self.pixels.append(pixels.to(self.device))
        self.asked.append(y.detach().to(self.device))

    def compute(self) -> dict[str, float]:
        """`accuracy` in [0, 1] (higher is better), `frechet_pixels` >= 0 (lower is better) and `count`; where not as
        many real digits are held out also `at_N_frechet_pixels`, N the smaller of both counts.

        Raises:
            ValueError: fewer than 2 samples.
        """
        pixels, y = self.added()
        warn_if_few("frechet_pixels", "generated", len(pixels), DIM)
        row = {"accuracy": self.accuracy(pixels, y), "frechet_pixels": self.distance(pixels)}
        if (equal := min(len(pixels), len(self._val))) != max(len(pixels), len(self._val)):
            row[f"at_{equal}_frechet_pixels"] = at_count(self.distance, pixels, y, equal)
        return row | {"count": float(len(pixels))}

    def reference(self, count: int | None = None) -> dict[str, float]:
        """The row of the real digits held out: what a perfect generator would get.

        Args:
            count: of the generated samples beside which it stands: where it is another one than that of the real
                digits their distances cannot be compared, and `at_N_frechet_pixels` takes the place of the distance.
        """
        held, equal = len(self._val), min(len(self._val), count or len(self._val))
        name = "frechet_pixels" if count in (None, held) else f"at_{equal}_frechet_pixels"
        row = {"accuracy": self.accuracy(self._val, self._val_y)}
        return row | {name: at_count(self.distance, self._val, self._val_y, equal), "count": float(held)}

    def added(self) -> tuple[Tensor, Tensor]:
        """The pixels [N, 64] of the samples that were added, float64, and the classes [N] that they were asked for."""
        if not len(self.pixels):
            return torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.pixels).cpu(), dim_zero_cat(self.asked).cpu()

    def distance(self, pixels: Tensor) -> float:
        """`frechet_pixels` of pixels [N, 64]: their distance to the training digits; NaN where one is not finite.

        Raises:
            ValueError: fewer than 2 samples.
        """
        mean, covariance = moments(len(pixels), pixels.sum(0), pixels.T @ pixels)
        return frechet_distance(*self._real, mean, covariance) if bool(mean.isfinite().all()) else float("nan")

    def accuracy(self, pixels: Tensor, y: Tensor) -> float:
        """The share of pixels [N, 64] in which the classifier sees the class y [N]."""
        finite = pixels.isfinite().all(1)
        correct = (self.predict(pixels[finite]) == y[finite]).sum() if bool(finite.any()) else 0
        return int(correct) / max(1, len(pixels))

    def predict(self, pixels: Tensor) -> Tensor:
        """The classes [B] that the classifier sees in finite pixels [B, 64] (float64)."""
        return torch.from_numpy(self._classifier.predict(pixels.numpy()))


def _pixels(name: str, x: Tensor, y: Tensor) -> Tensor:
    """Real digits as [N, 64] float64 on the CPU, checked."""
    if x.ndim != 4 or x.shape[1:] != (1, 8, 8) or len(x) < 2 or y.shape != x.shape[:1] or y.is_floating_point():
        raise DataError(
            f"DigitsEvaluation wants {name}_x [N, 1, 8, 8] with N >= 2 and integers {name}_y [N]; "
            f"got {list(x.shape)} and {list(y.shape)} of {y.dtype}."
        )
    pixels = x.detach().to("cpu", torch.float64).flatten(1)
    if not bool((pixels.abs() <= 1).all()):
        raise DataError(f"DigitsEvaluation wants {name}_x in [-1, 1]; divide the 0..16 pixels by 8 and subtract 1.")
    return pixels
