"""Pictures of a data set through a first stage, into shards of moments: see `neural_rdm.encode`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from neural_rdm.core.errors import UserError
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.base import start_worker
from neural_rdm.data.broken import BadSamples, BrokenSample
from neural_rdm.data.whole import Raw, Whole, pixels
from neural_rdm.latents.first_stage import DTYPES, Autoencoder
from neural_rdm.latents.shards import Moments, Shards, write_shard

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder

BATCH = 64  # pictures or frames that are on the device at a time; the first stage takes `chunk` of them


class Encoder:
    """Writes shards of moments.

    Args:
        folder: of the whole encoding, where broken samples are listed.
        stage: encodes pictures.
        text: encodes captions; None keeps captions alone.
        dtype: what moments and tokens are kept in; a name in `DTYPES`.
        device: where pictures are encoded.
        num_workers: processes that decode pictures.
        max_bad_fraction: of each split, see `BadSamples`.
        mirrored: the splits whose mirrored pictures are encoded too.
    """

    def __init__(
        self,
        folder: Path,
        stage: Autoencoder,
        text: TextEncoder | None,
        dtype: str,
        device: torch.device,
        num_workers: int,
        max_bad_fraction: float,
        mirrored: set[str],
    ) -> None:
        self.folder, self.stage, self.text, self.dtype, self.device = folder, stage, text, DTYPES[dtype], device
        self.num_workers, self.max_bad_fraction, self.mirrored = num_workers, max_bad_fraction, mirrored

    def write(self, split: str, whole: Whole, shards: Shards, numbers: list[int], show: bool) -> None:
        """Write these shards of a split.

        Raises:
            UserError: the disk is full, the moments are too large for the dtype, or too many samples are broken.
        """
        if not numbers:
            return
        left = [shards.indices(number) for number in numbers]
        items = iter(_loader(whole, [i for indices in left for i in indices], self.num_workers))
        listed = BadSamples(split, shards.count, self.max_bad_fraction, self.folder)
        bar = progress_bar(f"encoding {split}", sum(map(len, left)), "samples") if show else nullcontext(lambda: None)
        with bar as advance:
            for number, indices in zip(numbers, left, strict=True):
                bad: dict[int, tuple[str, str]] = {}
                samples = list(self._encoded(_readable(items, len(indices), bad, advance), split in self.mirrored))
                self._speak(samples)
                if bad:
                    listed.add({i: BrokenSample(reason, path) for i, (path, reason) in bad.items()}, None, None)
                write_shard(shards.path(number), samples, bad)

    def _encoded(self, items: Iterable[Raw], mirrored: bool) -> Iterator[Moments]:
        for group in _groups(items):
            parts = torch.cat([item.x for item in group if item.x is not None]).split(BATCH)
            lengths = [len(item.x) for item in group if item.x is not None]
            straight, turned = [], []
            for part in parts:
                x = pixels(part.to(self.device))
                straight.append(self._moments(x))
                if mirrored:
                    turned.append(self._moments(x.flip(-1)))
            moments = torch.cat(straight).split(lengths)
            flipped = torch.cat(turned).split(lengths) if mirrored else [None] * len(group)
            for item, rows, others in zip(group, moments, flipped, strict=True):
                yield Moments(item.index, rows, others, item.y, item.captions or ())

    def _moments(self, x: Tensor) -> Tensor:
        mean, std = self.stage.moments(x)
        both = (mean if std is None else torch.cat([mean, std], dim=-3)).to(self.dtype)
        if not both.isfinite().all():
            raise UserError(
                f"the moments of {self.stage.path} are not finite in {str(self.dtype).removeprefix('torch.')}; pass "
                "dtype=bfloat16 or float32, and first_stage.dtype=float32"
            )
        return both.contiguous().cpu()

    def _speak(self, samples: list[Moments]) -> None:
        """Give the captions of a shard their tokens."""
        if self.text is None:
            return
        captions = [text for sample in samples for text in sample.captions]
        tokens = iter([row for i in range(0, len(captions), BATCH) for row in self.tokens(captions[i : i + BATCH])])
        for sample in samples:
            sample.tokens = [next(tokens) for _ in sample.captions]

    def tokens(self, captions: list[str]) -> list[Tensor]:
        """The tokens [length, E] of each caption, as they are kept."""
        assert self.text is not None
        context, mask = self.text.encode(captions)
        return [row[real].to(self.dtype) for row, real in zip(context, mask, strict=True)]


def _loader(whole: Whole, indices: list[int], num_workers: int) -> Iterable[Raw]:
    """Samples in order, decoded by loader processes."""
    return DataLoader(
        whole,
        batch_size=None,
        sampler=indices,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        prefetch_factor=None if num_workers == 0 else 1 if whole.videos else 16,
        multiprocessing_context="fork" if num_workers > 0 and sys.platform == "linux" else None,
    )


def _readable(
    items: Iterator[Raw], count: int, bad: dict[int, tuple[str, str]], advance: Callable[[], None]
) -> Iterator[Raw]:
    """The next `count` samples, less the broken ones, which go into `bad`."""
    for _ in range(count):
        item = next(items)
        if item.broken is not None:
            bad[item.index] = item.broken
        else:
            yield item
        advance()


def _groups(items: Iterable[Raw]) -> Iterator[list[Raw]]:
    """Images together, `BATCH` of them, and every video alone: what goes to the device at a time."""
    group: list[Raw] = []
    for item in items:
        if item.x is not None and len(item.x) > 1:
            yield from ([group, [item]] if group else [[item]])
            group = []
            continue
        group.append(item)
        if len(group) == BATCH:
            yield group
            group = []
    if group:
        yield group
