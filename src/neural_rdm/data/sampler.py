"""Which sample goes where: the order of the whole run, as a function of (seed, optimizer step, micro-step, rank)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.seeding import generator, keys


class Draw(NamedTuple):
    """One training sample: `index` in the data set and `position`, its ordinal number in the whole run."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    position: int


class StepBatchSampler(Sampler[list[Draw]]):
    """Never-ending batches of one rank; the data order of the whole run depends only on the seed.

    At optimizer step s, micro-step m of a and rank r of W, sample i of the micro-batch has
    `position = s*B + m*(B/a) + r*(B/(a*W)) + i`. Epoch e holds the positions e*N ... (e+1)*N - 1 and visits every index
    once, in the order that `order` gives. A batch may span epochs and may be larger than the data set.

    Args:
        dataset_size: N, number of samples.
        batch_size: B, samples per optimizer step over all ranks and micro-steps (`data.batch_size`).
        seed: seed of the run.
        start_step: the optimizer step of the first batch; a function is called whenever iteration starts, so that an
            iterator made later in a run goes on where the run is.
        micro_steps: a, micro-batches per optimizer step (`trainer.accumulate_grad_batches`).
        world_size: W, number of ranks.
        rank: r, this process.
        order: indices [N] of an epoch, each once, from its number e; None for `shuffled`.

    Raises:
        ConfigError: B does not split into a*W equal parts, or a number is out of range.
        DataError: the data set is empty.
    """

    def __init__(
        self,
        dataset_size: int,
        batch_size: int,
        seed: int,
        start_step: int | Callable[[], int] = 0,
        micro_steps: int = 1,
        world_size: int = 1,
        rank: int = 0,
        order: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        if dataset_size < 1:
            raise DataError("the training set holds no samples. Check data.root and data.limit.")
        self.dataset_size = dataset_size
        self.global_batch = batch_size
        self.seed = seed
        self.start_step = start_step
        self.micro_steps = micro_steps
        self.rank = rank
        self.order = order or partial(shuffled, dataset_size, seed)
        # Under torch's name, which DeepSpeed reads: samples of this rank per micro-step.
        self.batch_size = split_batch(batch_size, micro_steps, world_size)
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not one of the {world_size} ranks 0 ... {world_size - 1}.")
        self._epoch = -1
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[list[Draw]]:
        step = self.start_step() if callable(self.start_step) else self.start_step
        while True:
            for micro in range(self.micro_steps):
                first = step * self.global_batch + micro * (self.global_batch // self.micro_steps)
                first += self.rank * self.batch_size
                yield [Draw(self._index(position), position) for position in range(first, first + self.batch_size)]
            step += 1

    def _index(self, position: int) -> int:
        epoch, place = divmod(position, self.dataset_size)
        if epoch != self._epoch:
            self._order, self._epoch = self.order(epoch), epoch
        return int(self._order[place])


def shuffled(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0 ... size - 1 in a random order keyed by (seed, "order", epoch)."""
    return torch.randperm(size, generator=generator(seed, "order", epoch)).numpy()


def split_batch(batch_size: int, micro_steps: int, world_size: int) -> int:
    """Samples of one rank in one micro-batch: `batch_size / (micro_steps * world_size)`.

    Raises:
        ConfigError: not a whole number; the message names the nearest batch size that works.
    """
    for key, value in (
        ("data.batch_size", batch_size),
        ("trainer.accumulate_grad_batches", micro_steps),
        ("trainer.devices", world_size),
    ):
        if value < 1:
            raise ConfigError(f"{key} must be at least 1, not {value}.")
    parts = micro_steps * world_size
    if batch_size % parts:
        below = batch_size // parts * parts
        above = below + parts
        nearest = below if below and batch_size - below <= above - batch_size else above
        raise ConfigError(
            f"data.batch_size={batch_size} is the batch of one optimizer step over all devices; it cannot be split "
            f"into {parts} equal parts: {world_size} processes (trainer.devices x trainer.num_nodes) x {micro_steps} "
            f"micro-batches (trainer.accumulate_grad_batches). The nearest that works is data.batch_size={nearest}"
        )
    return batch_size // parts


def spread(size: int, count: int, seed: int) -> list[int]:
    """At most `count` of 0 ... size - 1, ascending: one drawn from each of `count` equal stretches."""
    count = min(size, count)
    edges = np.arange(count + 1) * size // max(1, count)
    draws = keys(seed, "spread", range(count)) % np.diff(edges).astype(np.uint64)
    return [int(edge) + int(draw) for edge, draw in zip(edges[:-1], draws, strict=True)]
