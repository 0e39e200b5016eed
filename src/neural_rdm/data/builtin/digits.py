"""scikit-learn's handwritten digits: 1797 real images that need no download, for a first run on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from neural_rdm.core.arguments import Count, Natural
from neural_rdm.core.seeding import keys
from neural_rdm.data.base import DataModule
from neural_rdm.data.source import Source

_VAL_SHARE = 0.2


class TensorSet(Source):
    """Samples held in memory: `x` float32 [N, C, H, W] in [-1, 1] and `y` int64 [N]."""

    y: Tensor

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index`; nothing is augmented, so `key` is not used."""
        return {"x": self.x[index], "y": int(self.y[index])}


class Digits(DataModule):
    """Grey 8x8 digits (the UCI test set of optical digits, bundled with scikit-learn), 10 classes, x in [-1, 1].

    The split is the same for every seed: of each class 20 % of the images are `val_set`, the rest `train_set`, both in
    the order of the original data. Whole arrays are `train_set.x` and `train_set.y` after `setup()`, before `limit`.
    Arguments: see `DataModule`; the data are in memory, so that `num_workers=0` is fastest.
    """

    num_classes = 10
    sample_shape = (1, 8, 8)
    train_set: TensorSet | None = None
    val_set: TensorSet | None = None

    def __init__(self, batch_size: Count = 64, num_workers: Natural = 0, limit: Count | None = None) -> None:
        super().__init__(batch_size, num_workers, limit)
        self.class_names = [str(digit) for digit in range(10)]

    def load_datasets(self) -> None:
        """Read the arrays out of scikit-learn and split them."""
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(images.reshape(-1, 1, 8, 8)).float() / 8 - 1  # 0 ... 16 -> [-1, 1]
        y = torch.from_numpy(labels).long()
        held_out = _held_out(labels)
        self.train_set = TensorSet(x[~held_out], y[~held_out])
        self.val_set = TensorSet(x[held_out], y[held_out])


def _held_out(labels: np.ndarray) -> Tensor:
    """Bool [N]: the 20 % of each class that validate, chosen by keys that no library version can change."""
    order = keys(0, "digits split", np.arange(len(labels)))
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        ranked = members[np.argsort(order[members], kind="stable")]
        chosen[ranked[: round(_VAL_SHARE * len(members))]] = True
    return torch.from_numpy(chosen)
