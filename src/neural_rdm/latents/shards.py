"""Shards of moments: many samples a file, in safetensors, so that training maps them into memory and reads at random.

A shard holds the samples `number * size ... (number + 1) * size - 1` of a split, less those that could not be read:

    index      int64 [n]          where each sample stands in its data set
    moments    [R, 2C, h, w]      mean and standard deviation, unscaled ([R, C, h, w]: latents that are not random)
    flipped    as moments         the same of the mirrored pixels
    rows       int64 [n]          where each sample's rows end (an image has one, a video one a frame)
    y          int64 [n]          labels
    captions   uint8              all captions in UTF-8; caption_ends int64 [m], caption_rows int64 [n] where they end
    tokens     [T, E]             the captions' tokens, where a text encoder was given; token_ends int64 [m]
    crc        int64 [n]          CRC-32 of each sample's index, class, captions and rows
    row_crc    int64 [R, 2]       of each row of moments and of flipped; token_crc int64 [m] of each caption's tokens

and, in its metadata, which samples could not be read and why.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, DataError, first_line
from neural_rdm.core.files import write_atomically
from neural_rdm.core.given import regular


@dataclass
class Moments:
    """One sample in a shard.

    index: where it stands in its data set.
    moments, flipped: [T, 2C, h, w], T = 1 for an image; `flipped` of the mirrored pixels, where there is one.
    y: its class, where it has one.
    captions, tokens: what is said of it, and each caption's tokens [length, E], where they were encoded.
    file, crc, row_crc, token_crc: of a sample in a file, where it lies and what its parts must be; None of one that is
        not written yet.
    """

    index: int
    moments: Tensor
    flipped: Tensor | None = None
    y: int | None = None
    captions: Sequence[str] = ()
    tokens: Sequence[Tensor] = field(default=())
    file: Path | None = None
    crc: int | None = None
    row_crc: Tensor | None = None
    token_crc: Tensor | None = None

    def rows(self, mirrored: bool = False, which: NDArray[np.int64] | None = None) -> Tensor:
        """Rows of `moments` or `flipped` (all, or those of `which`), as they were written.

        Raises:
            CheckpointError: they are not.
        """
        held = self.flipped if mirrored else self.moments
        if held is None:  # though the manifest says so
            raise CheckpointError(f"{_cannot_read(self.file)}: it holds no mirrored copies. {_COPY}")
        rows = held if which is None else held[which]
        if self.row_crc is not None:
            written = self.row_crc[:, int(mirrored)]
            self._compare([crc_of(row) for row in rows], (written if which is None else written[which]).tolist())
        return rows

    def said(self, which: int) -> Tensor:
        """The tokens of a caption, as they were written.

        Raises:
            CheckpointError: they are not.
        """
        if self.token_crc is not None:
            self._compare(crc_of(self.tokens[which]), int(self.token_crc[which]))
        return self.tokens[which]

    def rest(self, first: int) -> int:
        """CRC-32 of index, class, captions and which rows of its shard are its own, from the `first` on."""
        return zlib.crc32(json.dumps([self.index, self.y, list(self.captions), first, len(self.moments)]).encode())

    def check(self, first: int) -> Moments:
        """The sample, whose first row is that one of its shard, once all but tensors is compared with what was written.

        Raises:
            CheckpointError: they differ.
        """
        if self.crc is not None:
            self._compare(self.rest(first), self.crc)
        return self

    def _compare(self, found: int | list[int], written: int | list[int]) -> None:
        if found != written:
            raise CheckpointError(f"{_cannot_read(self.file)}: sample {self.index} is not as it was written. {_COPY}")


def crc_of(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().data)


#: what to do about a damaged shard
_COPY = "Copy it again, or remove that file and the manifest.json of its folder, and give the encode command again"


def _cannot_read(path: Path | None) -> str:
    return f"cannot read the latents in {path}"


class Shards:
    """Where the shards of one split lie. Which samples a shard holds follows from its number, so several processes
    share the work by numbers, and one that goes on after a kill makes what is missing.

    Args:
        folder: of the split.
        count: samples of the data set.
        size: samples of a shard, less those that cannot be read.
    """

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.folder, self.count, self.size = folder, count, size
        self.numbers = range(-(-count // size))

    def indices(self, number: int) -> range:
        """The samples that a shard is made of."""
        return range(number * self.size, min((number + 1) * self.size, self.count))

    def path(self, number: int) -> Path:
        """Where a shard lies."""
        return self.folder / f"{number:07d}.safetensors"

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [number for number in self.numbers if not self.path(number).is_file()]


def write_shard(path: Path, samples: Sequence[Moments], bad: Mapping[int, tuple[str, str]]) -> None:
    """Write a shard; it is there whole or not at all. `bad`: index -> (path, reason) of samples that could not be read.

    Raises:
        UserError: the disk is full; shards that were written before are kept.
    """
    from safetensors.torch import save

    content = {"index": torch.tensor([s.index for s in samples], dtype=torch.int64)}
    if samples:
        content |= {"moments": torch.cat([s.moments for s in samples]), "rows": _ends(len(s.moments) for s in samples)}
        flipped = [s.flipped for s in samples if s.flipped is not None]
        if flipped:
            content["flipped"] = torch.cat(flipped)
        if samples[0].y is not None:
            content["y"] = torch.tensor([s.y for s in samples], dtype=torch.int64)
    if captions := [text.encode() for s in samples for text in s.captions]:
        content["captions"] = torch.from_numpy(np.frombuffer(b"".join(captions), np.uint8).copy())
        content["caption_ends"] = _ends(map(len, captions))
        content["caption_rows"] = _ends(len(s.captions) for s in samples)
    if tokens := [t for s in samples for t in s.tokens]:
        content["tokens"], content["token_ends"] = torch.cat(tokens), _ends(map(len, tokens))
        content["token_crc"] = torch.tensor([crc_of(t) for t in tokens], dtype=torch.int64)
    if samples:
        rows = zip(content["moments"], content.get("flipped", content["moments"]), strict=True)
        content["row_crc"] = torch.tensor([[crc_of(row) for row in pair] for pair in rows], dtype=torch.int64)
        firsts = [0, *content["rows"].tolist()]
        content["crc"] = torch.tensor([s.rest(i) for s, i in zip(samples, firsts, strict=False)], dtype=torch.int64)
    data = save(content, {"bad": json.dumps({str(index): bad[index] for index in sorted(bad)})})
    write_atomically(path, lambda file: file.write(data))


def _ends(lengths: Any) -> Tensor:
    return torch.tensor(list(lengths), dtype=torch.int64).cumsum(0)


class Shard:
    """A shard, mapped into memory; a CheckpointError where its file is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as file:
            self._tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self._count = len(self._tensors["index"])
            bad = json.loads(file.metadata()["bad"])
            self.bad: dict[int, tuple[str, str]] = {int(index): (path, why) for index, (path, why) in bad.items()}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: int) -> Moments:
        """Sample `place` of the shard; its tensors are views of the file.

        Raises:
            CheckpointError: it is not as it was written. Of its tensors that is found where they are asked for.
        """
        t = self._tensors
        try:
            first, last = _span(t["rows"], place)
            said = range(*_span(t["caption_rows"], place)) if "captions" in t else range(0)
            has_tokens = not t.keys().isdisjoint(("tokens", "token_crc"))  # one alone: the other's name is damaged
            texts = [t["captions"][slice(*_span(t["caption_ends"], i))] for i in said]
            found = Moments(
                int(t["index"][place]),
                t["moments"][first:last],
                t["flipped"][first:last] if "flipped" in t else None,
                int(t["y"][place]) if "y" in t else None,
                [text.numpy().tobytes().decode() for text in texts],
                [t["tokens"][slice(*_span(t["token_ends"], i))] for i in said] if has_tokens else [],
                self.path,
                int(t["crc"][place]),
                t["row_crc"][first:last],
                t["token_crc"][said.start : said.stop] if has_tokens else None,
            )
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise CheckpointError(f"{_cannot_read(self.path)}: {first_line(error)}. {_COPY}") from error
        return found.check(first)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A shard whose header fits its length, in `safe_open`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{_cannot_read(path)}: {error}. {_COPY}") from error


def _span(ends: Tensor, place: int) -> tuple[int, int]:
    return int(ends[place - 1]) if place else 0, int(ends[place])


class ShardedSet:
    """The readable samples of one finished split, by number 0 ... N - 1. All headers are read at once, so that a folder
    that was not copied to its end is refused; a shard is mapped at its first use.

    Args:
        folder: of the split.
        counts: samples in each shard.

    Raises:
        DataError: a shard is missing, or holds another number of samples.
        CheckpointError: a shard is damaged.
    """

    def __init__(self, folder: Path, counts: Sequence[int]) -> None:
        self.shards = Shards(folder, len(counts), 1)
        self.ends = np.cumsum(counts)
        self._open: dict[int, Shard] = {}
        if missing := self.shards.missing():
            raise DataError(f"{self.shards.path(missing[0])} is missing; copy all of the folder, or encode again")
        for number, count in enumerate(counts):
            path = self.shards.path(number)
            with _opened(path) as file:
                (found,) = file.get_slice("index").get_shape()
            if found != count:
                raise DataError(f"{path} holds {found} samples, but {count} in the manifest; copy all of the folder")

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a worker that is spawned maps the files itself

    def __getitem__(self, number: int) -> Moments:
        """Sample `number`."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        which = int(np.searchsorted(self.ends, number, side="right"))
        if which not in self._open:
            self._open[which] = Shard(self.shards.path(which))
        return self._open[which][number - (int(self.ends[which - 1]) if which else 0)]
