"""Pictures of a data set through a first stage, into shards of moments: see `neural_rdm.encode`."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from neural_rdm.core.errors import BrokenSample, DataError, UserError
from neural_rdm.core.files import write_text
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.broken import COLUMNS, FILE, BadSamples, TooManyBad
from neural_rdm.data.loader import Loader
from neural_rdm.data.source import Source
from neural_rdm.latents.first_stage import DTYPES, Autoencoder
from neural_rdm.latents.shards import Moments, Shard, Shards, write_shard
from neural_rdm.media.images import from_bytes

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder

BATCH = 64  # pictures or frames that are on the device at a time; the first stage takes `chunk` of them


@dataclass
class Raw:
    """One sample as it is.

    x: uint8 [T, 3, S, S]; T = 1 for an image, the number of its frames for a video.
    broken: (path, reason) where it cannot be read; nothing else is there then.
    """

    index: int
    x: Tensor | None = None
    y: int | None = None
    captions: Sequence[str] = ()
    broken: tuple[str, str] | None = None


class Unaugmented(Dataset[Raw]):
    """The samples of a source by index, without augmentation: an image once, a video with all of its frames."""

    def __init__(self, source: Source) -> None:
        self.source = copy.copy(source)
        self.source.flip = self.source.random = False

    def __getitem__(self, index: int) -> Raw:
        source = self.source
        try:
            captions = source.captions(index) if source.captioned else ()
            return Raw(index, source.raw(index), None if source.y is None else int(source.y[index]), captions)
        except BrokenSample as error:
            return Raw(index, broken=(error.path or str(source.name(index)), error.reason))


class Encoder:
    """Writes shards of moments.

    Args:
        folder: of the whole encoding, where broken samples are listed.
        text: encodes captions; None keeps captions alone.
        dtype: what moments and tokens are kept in; a name in `DTYPES`.
        device: where pictures are encoded.
        num_workers, max_bad_fraction: see `DataModule`.
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

    def write(self, split: str, source: Source, shards: Shards, numbers: list[int], show: bool) -> None:
        """Write these shards of a split. What the shards that are there could not read counts with the rest.

        Raises:
            UserError: the disk is full, the moments are too large for the dtype, or too many samples are broken.
        """
        try:
            listed = BadSamples(
                split, shards.count, self.max_bad_fraction, self.folder, source.left_out, length=len(source)
            )
            for there in sorted(set(shards.numbers).difference(shards.missing())):
                listed.add(_samples(Shard(shards.path(there)).bad), None, None)
            if numbers:
                self._write(split, source, shards, numbers, listed, show)
        except TooManyBad as error:
            raise DataError(
                f"{error.facts}\nRaise data.max_bad_fraction and give the same command again, or repair them and "
                "encode into a new folder"
            ) from error

    def _write(
        self, split: str, source: Source, shards: Shards, numbers: list[int], listed: BadSamples, show: bool
    ) -> None:
        left = [shards.indices(number) for number in numbers]
        ahead = None if self.num_workers == 0 else 16 if source.frames is None else 1
        order = [i for indices in left for i in indices]
        plain = Unaugmented(source)
        items = iter(Loader(plain, self.num_workers, batch_size=None, sampler=order, prefetch_factor=ahead))
        bar = progress_bar(f"encoding {split}", sum(map(len, left)), "samples") if show else nullcontext(lambda: None)
        with bar as advance:
            for number, indices in zip(numbers, left, strict=True):
                bad: dict[int, tuple[str, str]] = {}
                samples = list(self._encoded(_readable(items, len(indices), bad, advance), split in self.mirrored))
                self._speak(samples)
                listed.add(_samples(bad), None, None)
                write_shard(shards.path(number), samples, bad)

    def _encoded(self, items: Iterable[Raw], mirrored: bool) -> Iterator[Moments]:
        for group in _groups(items):
            pictures = [item.x for item in group if item.x is not None]
            lengths = [len(x) for x in pictures]
            parts = torch.cat(pictures).split(BATCH)
            moments = torch.cat([self._moments(x) for x in parts]).split(lengths)
            turned = torch.cat([self._moments(x.flip(-1)) for x in parts]).split(lengths) if mirrored else ()
            for item, rows, others in zip_longest(group, moments, turned):
                yield Moments(item.index, rows, others, item.y, item.captions)

    def _moments(self, x: Tensor) -> Tensor:
        mean, std = self.stage.moments(from_bytes(x.to(self.device)))
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


def list_broken(
    folder: Path, sources: Mapping[str, Source], bad: Mapping[str, Mapping[int, tuple[str, str]]]
) -> Path | None:
    """Write `bad_samples.csv` of finished latents anew, as their shards have it; None where there is nothing to list.

    Args:
        bad: of each split, index -> (path, reason).
    """
    text = io.StringIO()
    rows: list[tuple[object, ...]] = []
    for split, samples in bad.items():
        rows += [(split, None, error.path, error.reason, None, None) for error in sources[split].left_out]
        rows += [(split, index, *samples[index], None, None) for index in sorted(samples)]
    if not rows:
        (folder / FILE).unlink(missing_ok=True)
        return None
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_text(folder / FILE, text.getvalue())
    return folder / FILE


def _samples(bad: Mapping[int, tuple[str, str]]) -> dict[int, BrokenSample]:
    return {index: BrokenSample(reason, path) for index, (path, reason) in bad.items()}


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
    for single, some in groupby(items, lambda item: item.x is not None and len(item.x) > 1):
        while group := list(islice(some, 1 if single else BATCH)):
            yield group
