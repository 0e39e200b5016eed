"""The samples of a data set as its statistics need them: as bytes, in a fixed order, centre crops, never mirrored."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from neural_rdm.core.errors import BrokenSample, ConfigError, DataError
from neural_rdm.core.seeding import keys
from neural_rdm.data.base import DataModule
from neural_rdm.data.loader import Loader
from neural_rdm.data.source import Source
from neural_rdm.media.images import to_bytes


class RealSamples:
    """One split of a data module, with the interface of `SampleFiles`.

    Pixels are the bytes that were decoded and cropped; training only sees them scaled. Clips of a training split begin
    anywhere, keyed by (seed, position), so that there may be more positions than videos; those of a validation split
    are the middle of each video. A sample that cannot be read is left out, printed, and listed in `bad_samples.csv`.

    Attributes:
        crop: how they were cut to their size (see `DataModule`).

    Args:
        data: set up; its `seed`, `limit`, `num_workers`, `max_bad_fraction` and `report_folder` hold.
        split: "train" or "val".

    Raises:
        DataError: there is no such split.
        ConfigError: the samples are latents, or have neither one channel nor three.
    """

    def __init__(self, data: DataModule, split: str) -> None:
        source, self.size = data.sources.get(split), data.sizes.get(split, 0)
        if source is None or not self.size:
            raise DataError(f"split={split}: these data have no such split; pass split=train")
        *frames, channels, _, _ = data.sample_shape
        if data.space != "pixels" or channels not in (1, 3):
            raise ConfigError(f"statistics are of pixels; these data are {data.space} with {channels} channels")
        self.source: Source = copy.copy(source)
        self.source.flip = False
        self.kind = "clip" if frames else "image"
        self.again = self.kind == "clip" and source.random
        self.labels = None if (labels := source.labels()) is None else labels[: self.size]
        self.num_workers, self.crop = data.num_workers, data.crop
        self.bad = data.bad_samples(split)

    def __len__(self) -> int:
        return self.size

    def batches(
        self, batch_size: int, positions: Sequence[int] | None = None
    ) -> Iterator[tuple[Tensor, NDArray[np.int64] | None]]:
        """Samples as uint8 [B, 3, H, W] or [B, F, 3, H, W] and their labels [B] or None; one channel becomes three.

        A batch is smaller by what cannot be read.

        Args:
            positions: which samples; those beyond the last one are other clips of the same videos.

        Raises:
            DataError: more samples cannot be read than `data.max_bad_fraction` allows.
        """
        loader = Loader(
            _Bytes(self.source, self.size),
            self.num_workers,
            batch_size=batch_size,
            sampler=range(self.size) if positions is None else positions,
            collate_fn=list,
        )
        for batch in loader:
            for position, index, error in [loaded for loaded in batch if isinstance(loaded[2], BrokenSample)]:
                self.bad.add({index: error}, position, None)
            kept = [(index, x) for _, index, x in batch if isinstance(x, Tensor)]
            if kept:
                labels = None if self.labels is None else self.labels[[index for index, _ in kept]]
                yield torch.stack([x for _, x in kept]), labels


def examples(data: DataModule, classes: Sequence[int] | None, rows: int, each: int) -> tuple[Tensor, Tensor]:
    """Training samples to lay beside drawn ones, as they are loaded, never mirrored: float32 [rows * each, ...] and
    their positions, chosen by the data's seed alone. What cannot be read is passed over; what is missing is white.

    Args:
        data: set up.
        classes: those of the rows; None for samples of any class.
    """
    source = copy.copy(data.sources["train"])
    source.flip = False
    size = data.sizes["train"]
    labels = None if classes is None else source.labels()
    order = np.argsort(keys(data.seed, "real samples", range(size)), kind="stable")
    found: list[Tensor | None] = []
    positions: list[int] = []
    rest = iter(order.tolist())
    for row in range(rows):
        if classes is not None:
            rest = iter((order if labels is None else order[labels[order] == classes[row]]).tolist())
        while len(found) < (row + 1) * each:
            position = next(rest, None)
            try:
                sample = {"x": None} if position is None else source.load(position, position)
            except BrokenSample:
                continue
            if classes is not None and "y" in sample and int(torch.as_tensor(sample["y"]).flatten()[0]) != classes[row]:
                continue  # of a set that makes its samples, and lists no labels
            found.append(sample["x"])
            positions.append(position or 0)
    white = torch.ones(data.sample_shape)
    return torch.stack([white if x is None else x for x in found]), torch.tensor(positions)


class _Bytes(Dataset[tuple[int, int, Tensor | BrokenSample]]):
    """(position, index, the sample or what is wrong with it): a loader's worker may not fail because of one sample."""

    def __init__(self, source: Source, size: int) -> None:
        self.source, self.size = source, size

    def __getitem__(self, position: int) -> tuple[int, int, Tensor | BrokenSample]:
        index = position % self.size
        try:
            x = self.source.load(index, position)["x"]
        except BrokenSample as error:
            return position, index, error
        x = to_bytes(x)
        return position, index, x.expand(*x.shape[:-3], 3, *x.shape[-2:]).contiguous()


def chosen(size: int, count: int | None, seed: int, again: bool = False) -> list[int]:
    """Positions of `count` of `size` samples, ascending: all, some that the seed chooses, or, `again`, more than all.

    Raises:
        ConfigError: more than there are.
    """
    if count is None or (count > size and again):
        return list(range(size if count is None else count))
    if count > size:
        raise ConfigError(f"count={count}: there are {size} samples; leave count out to take all of them")
    return sorted(np.argsort(keys(seed, "statistics", range(size)), kind="stable")[:count].tolist())
