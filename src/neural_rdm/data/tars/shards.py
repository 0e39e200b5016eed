"""Images with captions or classes in tar shards, as webdataset writes them; every sample is read by itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import BrokenSample, ConfigError, DataError, printable
from neural_rdm.core.seeding import generator
from neural_rdm.data.described import SPLITS
from neural_rdm.data.folder import FolderModule
from neural_rdm.data.prompts import blank
from neural_rdm.data.source import Source, stamp
from neural_rdm.data.tars.index import ABSENT, IMAGE, IMAGES, JSON, TEXT, read_indices
from neural_rdm.data.tars.paths import find_shards, without_held_out
from neural_rdm.media.images import CROP, load_pixels

MAX_IMAGE = 1 << 28  # bytes of an encoded image
MAX_TEXT = 1 << 20  # bytes of a text or a JSON
_HOLDS = {IMAGE: f"image ({', '.join(IMAGES)})", TEXT: "txt", JSON: "json"}


class TarImages(Source):
    """The samples of some shards, in the order of the shards.

    What most of the samples have, all must have: a label if most have a `cls`, a caption if most have a text.

    Args:
        root: where the indices of the shards are kept.
        shards: plain tar files.
        caption_key: field of the JSON that is the caption (a text, or a list of texts), None for the member `txt`.
        flip, random, seed: see `Source`.
        label: what the shards are called while they are read.

    Raises:
        DataError: a shard cannot be read, or most samples have no image.
    """

    def __init__(
        self,
        root: Path,
        shards: list[Path],
        caption_key: str | None,
        image_size: int,
        flip: bool,
        random: bool,
        seed: int,
        label: str,
    ) -> None:
        self.shards, self.caption_key, self.image_size = shards, caption_key, image_size
        self.flip, self.random, self.seed = flip, random, seed
        self.table, self.shard_ends = read_indices(root, shards, label)
        if not len(self):
            raise DataError(f"{len(shards)} {label} hold no samples, such as {shards[0]}")
        self._text = TEXT if caption_key is None else JSON
        if not _most(self.table.members[:, IMAGE, 0]):
            raise DataError(
                f"most of the {len(self)} samples in {shards[0]} (and others) have no {_HOLDS[IMAGE]}, such as "
                f"{self.name(int(np.argmax(self.table.members[:, IMAGE, 0] == ABSENT)))}. The files of a sample "
                "share their name up to the first dot and follow one another: write the tar with tar --sort=name"
            )
        self.captioned = _most(self.table.members[:, self._text, 0])
        #: labels int64 [N], negative where one cannot be read; None without labels
        self.y = torch.from_numpy(self.table.labels) if _most(self.table.labels) else None

    def origins(self) -> Iterator[str]:
        """Path of each shard."""
        return map(os.fspath, self.shards)

    def __len__(self) -> int:
        return len(self.table.labels)

    def name(self, index: int) -> str:
        """Shard and key of a sample, for a person: `path/of/shard.tar!key`."""
        return f"{self.shards[self._shard(index)]}!{printable(self._key(index))}"

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Image `index` as x float32 [3, S, S] in [-1, 1], its label y and one of its captions, where there are such.

        Raises:
            BrokenSample: a part of it is absent, twice there or cannot be read; the message names shard and key.
        """
        sample: dict[str, Any] = {}
        if self.captioned:
            said = self.captions(index)
            sample["caption"] = said[self.which(key, len(said))]
        if self.y is not None:
            sample["y"] = int(self.y[index])
            if sample["y"] < 0:
                problem = "has no cls" if sample["y"] == ABSENT else "has no cls that is one number"
                raise BrokenSample(problem, self.name(index))
        image = io.BytesIO(self._read(index, IMAGE, MAX_IMAGE))
        return {"x": load_pixels(image, self.image_size, self.mirrored(key), self.name(index)), **sample}

    def captions(self, index: int) -> list[str]:
        """What is said of sample `index`: one or more texts.

        Raises:
            BrokenSample: there is none, or it cannot be read.
        """
        content = self._read(index, self._text, MAX_TEXT)
        try:
            text = content.decode("utf-8-sig")
            said = text if self.caption_key is None else json.loads(text)[self.caption_key]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problem = f"has no {self.caption_key}" if isinstance(error, KeyError) else f"cannot be read: {error}"
            raise BrokenSample(f"its {_HOLDS[self._text]} {problem}", self.name(index)) from error
        texts = said if isinstance(said, list) else [said]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise BrokenSample(f"the field {self.caption_key} of its json is no text", self.name(index))
        if not (said := [text.strip() for text in texts if not blank(text)]):
            raise BrokenSample(f"its {_HOLDS[self._text]} says nothing: the caption is empty", self.name(index))
        return said

    def fingerprint(self, root: Path, size: int, show: bool = False) -> str:
        """See `Source`; of the shards."""
        begins = [0, *self.shard_ends]
        used = [os.fspath(shard) for shard, begin in zip(self.shards, begins, strict=False) if begin < size]
        return hashlib.sha256(b"".join(stamp(path, root) for path in used)).hexdigest()

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self.shard_ends, index, side="right"))

    def _key(self, index: int) -> bytes:
        begin = self.table.ends[index - 1] if index else 0
        return self.table.names[begin : self.table.ends[index]].tobytes()

    def _read(self, index: int, kind: int, most: int) -> bytes:
        """The bytes of one member."""
        offset, size = self.table.members[index, kind].tolist()
        if offset < 0:
            problem = f"has no {_HOLDS[kind]}" if offset == ABSENT else f"has its {_HOLDS[kind]} twice"
            raise BrokenSample(problem, self.name(index))
        if size > most:
            raise BrokenSample(f"its {_HOLDS[kind]} has {size} bytes; {most} is the most", self.name(index))
        try:
            with open(self.shards[self._shard(index)], "rb", buffering=0) as file:
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise BrokenSample(error.strerror or str(error), self.name(index)) from error
        if len(content) < size:
            raise BrokenSample(f"the shard ends within its {_HOLDS[kind]}", self.name(index))
        return content


@checked()
class TarShards(FolderModule):
    """Plain tar files in webdataset's form, of any image-text or image-class set:

    ROOT/*.tar              or the files that data.train and data.val name
      <key>.jpg             (jpeg, png, webp) the image
      <key>.txt             its caption, or
      <key>.json            whose field data.caption_key is the caption (a text or a list of them), or
      <key>.cls             its class, a number from 0

    A key is a path up to the first dot of its last part; the files of a sample follow one another. Other files are
    passed over, nothing is unpacked or unpickled.

    An index of each shard is made once (kept in ROOT/.shards), and samples are read by their place in the file. So the
    order of the samples depends on the seed and the epoch alone, over any number of workers and ranks, and a run goes
    on in the middle of an epoch as if it had never stopped.

    Args:
        root: folder where relative patterns begin and where downloads and indices are kept.
        train: path, glob or http(s) address of the training shards, with braces or not: `train-{000000..000099}.tar`.
            What an address holds is fetched once, before training.
        val: the same for validation, None for none.
        caption_key: field of the JSON that is the caption, None for the member `txt`.
        image_size: S, height and width of the ADM centre crop.
        flip: mirror training images half of the time, keyed by (seed, position).
        num_classes: number of classes, None for the largest label there is plus one.
        shards_at_once: None shuffles all samples. A number shuffles the shards, then the samples within as many shards
            at a time, so that reading stays local: for disks that are slow to jump about.

    The other arguments: see `DataModule`. Setting it up raises a DataError where a shard is missing, cannot be read or
    downloaded, or a label is out of range.
    """

    files = False
    reading = ("num_classes", "shards_at_once")
    crop = CROP
    train_set: TarImages | None = None
    val_set: TarImages | None = None

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        train: str = "*.tar",
        val: str | None = None,
        caption_key: str | None = None,
        image_size: Count = 256,
        flip: bool = False,
        num_classes: Count | None = None,
        shards_at_once: Count | None = None,
        batch_size: Count = 256,
        num_workers: Natural = 0,
        limit: Count | None = None,
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(root, batch_size, num_workers, limit, max_bad_fraction)
        self.patterns = {"train": train, "val": val}
        self.caption_key, self.image_size, self.flip = caption_key, image_size, flip
        self.num_classes, self.shards_at_once = num_classes, shards_at_once
        self.sample_shape = (3, image_size, image_size)

    def load_datasets(self) -> None:
        """Find the shards and make what is missing of their indices; images are decoded when they are drawn."""
        shards = {
            split: find_shards(self.root, pattern, f"data.{split}")
            for split, pattern in self.patterns.items()
            if pattern is not None
        }
        shards["train"], apart = without_held_out(self.root, shards["train"], pattern := str(self.patterns["train"]))
        if apart:
            some = f"{len(apart)} shards such as {apart[0].name}"
            if not shards["train"]:
                raise DataError(
                    f"data.train={pattern}: nothing to train on: its {some} are held out by their names, and what is "
                    "held out is never trained on. Name the training shards with data.train, and these with data.val"
                )
            self.note(f"data.train={pattern}: {some} are held out by their names and not trained on")
        if both := set(shards["train"]) & set(shards.get("val", ())):
            raise ConfigError(f"data.train and data.val both name {min(both)}; a shard is for one of them")
        sets = {split: self._images(files, split) for split, files in shards.items()}
        train, val = sets["train"], sets.get("val")
        if val is not None and (val.captioned, val.y is None) != (train.captioned, train.y is None):
            raise DataError(
                f"the samples of {train.shards[0]} (and others, for training) and those of {val.shards[0]} (for "
                "validation) do not both have captions, or do not both have classes"
            )
        if train.y is not None:
            self.num_classes = self.num_classes or max(1, int(train.y.max()) + 1)
            for source in sets.values():
                if source.y is not None and source.y.max() >= self.num_classes:
                    worst = int(source.y.argmax())
                    raise DataError(
                        f"{source.name(worst)} is of class {int(source.y[worst])}, but the classes are 0 ... "
                        f"{self.num_classes - 1}; pass data.num_classes={int(source.y[worst]) + 1}"
                    )
        elif self.num_classes is not None:
            raise DataError(
                f"data.num_classes={self.num_classes}, but most samples of {train.shards[0]} (and others) have no cls"
            )
        self.train_set, self.val_set = train, val

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Index of the sample at each place of an epoch [train_size]; see `shards_at_once`."""
        if self.shards_at_once is None:
            return super().order(epoch)
        size = self.train_size
        assert self.train_set is not None
        ends = np.minimum(self.train_set.shard_ends, size)
        return shuffled_by_shards(ends, self.shards_at_once, self.seed, epoch)

    def _images(self, shards: list[Path], split: str) -> TarImages:
        training, label = split == "train", f"{SPLITS[split]} shards"
        flip = self.flip and training
        return TarImages(self.root, shards, self.caption_key, self.image_size, flip, training, self.seed, label)


def shuffled_by_shards(ends: NDArray[np.int64], at_once: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """0 ... ends[-1] - 1 in an order keyed by (seed, "order", epoch) that has `at_once` shards open at a time.

    Args:
        ends: where each shard ends, ascending [number of shards].
    """
    begins, draws = np.concatenate([[0], ends[:-1]]), generator(seed, "order", epoch)
    shards = torch.randperm(len(ends), generator=draws).numpy()
    order = []
    for first in range(0, len(shards), at_once):
        samples = np.concatenate([np.arange(begins[i], ends[i]) for i in shards[first : first + at_once]])
        order.append(samples[torch.randperm(len(samples), generator=draws).numpy()])
    return np.concatenate(order)


def _most(column: NDArray[np.int64]) -> bool:
    return bool((column != ABSENT).mean() > 0.5)
