"""Smooth pseudo-random images or clips of any shape, for smoke tests and timings without a data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from neural_rdm.core.arguments import Count, Natural, checked
from neural_rdm.core.seeding import normal
from neural_rdm.data import constraints
from neural_rdm.data.base import DataModule
from neural_rdm.data.source import Source

_SEED = 0  # the data are the same in every run, as a data set on disk would be
_COARSE = 4  # one random value per 4 x 4 patch (and per 4 frames), interpolated in between
_AXIS_VARIANCE = 0.65625  # mean over the four phases w of w**2 + (1 - w)**2: what interpolating one axis leaves


class SyntheticSet(Source):
    """`size` samples made when asked for; sample i is a function of i alone."""

    def __init__(self, shape: Sequence[int], num_classes: int | None, size: int, space: str) -> None:
        self.shape, self.num_classes, self.size, self.space = tuple(shape), num_classes, size, space

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index`: a pattern of its class plus one of its own; `key` is not used."""
        x = self._smooth("sample", index)
        if self.num_classes is None:
            return {"x": self._fit(x)}
        label = index % self.num_classes
        return {"x": self._fit((x + self._smooth("class", label)) / math.sqrt(2)), "y": label}

    def _smooth(self, purpose: str, number: int) -> Tensor:
        """Noise on a coarse grid, interpolated (linearly in each axis, time too) to the shape of a sample."""
        *frames, channels, height, width = self.shape
        size = [*frames, height, width]
        coarse = [-(-length // _COARSE) + 1 for length in size]
        noise = normal(_SEED, f"synthetic {purpose}", [number], [channels, *coarse])
        fine = F.interpolate(noise, scale_factor=_COARSE, mode="trilinear" if frames else "bilinear")[0]
        # Near the border there is nothing to interpolate between; so the grid is one larger and its border is cut off.
        for axis, length in enumerate(size, start=1):
            fine = fine.narrow(axis, _COARSE // 2, length)
        # A constant, not the sample's own deviation: a long sum may round differently with another number of threads.
        fine = fine / math.sqrt(_AXIS_VARIANCE ** len(size))
        return fine.movedim(0, 1).contiguous() if frames else fine

    def _fit(self, x: Tensor) -> Tensor:
        return (x / 2).clamp_(-1, 1) if self.space == "pixels" else x


@checked(constraints.images_or_clips)
class Synthetic(DataModule):
    """Synthetic data of one shape: latents of about unit variance, or pixels in [-1, 1]. There is no validation set.

    Args:
        shape: of one sample, [C, H, W] or [F, C, H, W].
        num_classes: labels are index % num_classes; None for data without labels.
        size: number of samples; nothing is held in memory.
        space: "latents" or "pixels".

    The other arguments: see `DataModule`.

    Raises:
        ConfigError: a shape of another rank, a length, size or number of classes below 1, or another space.
    """

    def __init__(
        self,
        shape: Sequence[Count],
        num_classes: Natural | None = None,
        batch_size: Count = 256,
        num_workers: Natural = 0,
        limit: Count | None = None,
        size: Count = 1024,
        space: Literal["latents", "pixels"] = "latents",
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        num_classes = num_classes or None  # 0 is how an unconditional network says it
        self.space = space
        self.num_classes = num_classes
        self.sample_shape = tuple(int(length) for length in shape)
        self.size = size

    def load_datasets(self) -> None:
        """Make the training set; no data are computed yet."""
        self.train_set = SyntheticSet(self.sample_shape, self.num_classes, self.size, self.space)
