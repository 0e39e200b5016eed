"""How good are generated 8x8 digits? An answer that needs no download: raw pixels and a small classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from neural_rdm.core.errors import DataError
from neural_rdm.metrics.frechet import frechet_distance, moments, warn_if_few

DIM = 64
# gamma of scikit-learn's own digits example, 0.001 for pixels 0..16, carried over to [-1, 1]: 0.001 * 8^2.
GAMMA, C = 0.064, 10.0


class DigitsEvaluation(Metric):
    """Accuracy and Frechet distance of generated digits, both in stated spaces.

    `accuracy`: share of samples that a support vector classifier, trained on the real training digits, takes for the
    class they were asked for. `frechet_pixels`: `frechet_distance` of the 64 raw pixels to the real training digits.
    Samples are clamped to [-1, 1] first, as they are when they are saved. The distance falls with the number of
    samples: compare only equal counts. A sample that is not finite counts as wrong and turns the distance into NaN.

    Args:
        train_x, val_x: real digits [N, 1, 8, 8] in [-1, 1]; val_x is used by `reference` only.
        train_y, val_y: their classes [N], integers.

    Raises:
        DataError: images that are not [N, 1, 8, 8] or out of range, labels that do not fit, fewer than two classes.
    """

    is_differentiable = False
    full_state_update = False
    count: Tensor
    correct: Tensor
    pixel_sum: Tensor
    pixel_outer: Tensor

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
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("pixel_sum", torch.zeros(DIM, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("pixel_outer", torch.zeros(DIM, DIM, dtype=torch.float64), dist_reduce_fx="sum")

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
            "digits held out; count: samples behind a row."
        )

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add generated digits x [B, 1, 8, 8] in [-1, 1] (clamped) and the classes y [B] that they were asked for."""
        if x.shape[1:] != (1, 8, 8) or y.shape != x.shape[:1]:
            raise ValueError(
                f"DigitsEvaluation wants x [B, 1, 8, 8] and y [B]; got x {list(x.shape)}, y {list(y.shape)}"
            )
        pixels = x.detach().to("cpu", torch.float64).clamp(-1, 1).flatten(1)
        moved = pixels.to(self.pixel_sum)
        self.count = self.count + len(pixels)
        self.correct = self.correct + self._correct(pixels, y.cpu())
        self.pixel_sum = self.pixel_sum + moved.sum(0)
        self.pixel_outer = torch.addmm(self.pixel_outer, moved.T, moved)

    def compute(self) -> dict[str, float]:
        """`accuracy` in [0, 1] (higher is better), `frechet_pixels` >= 0 (lower is better) and `count`.

        Raises:
            ValueError: fewer than 2 samples.
        """
        count = int(self.count)
        mean, covariance = moments(self.count, self.pixel_sum, self.pixel_outer)
        warn_if_few("frechet_pixels", "generated", count, DIM)
        finite = bool(mean.isfinite().all())
        return {
            "accuracy": int(self.correct) / count,
            "frechet_pixels": frechet_distance(*self._real, mean, covariance) if finite else float("nan"),
            "count": float(count),
        }

    def reference(self) -> dict[str, float]:
        """The same row for the real digits held out: what a perfect generator would get at that count."""
        mean, covariance = moments(len(self._val), self._val.sum(0), self._val.T @ self._val)
        return {
            "accuracy": self._correct(self._val, self._val_y) / len(self._val),
            "frechet_pixels": frechet_distance(*self._real, mean, covariance),
            "count": float(len(self._val)),
        }

    def _correct(self, pixels: Tensor, y: Tensor) -> int:
        finite = pixels.isfinite().all(1)
        if not bool(finite.any()):
            return 0
        return int((self.predict(pixels[finite]) == y[finite]).sum())

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
