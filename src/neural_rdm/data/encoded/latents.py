"""Latents that `neural_rdm.encode` made once, in place of the pixels that they were made of; one module for all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, ConfigError, LoaderError
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.data.base import DataModule
from neural_rdm.data.encoded.manifest import MANIFEST, read_manifest
from neural_rdm.data.prompts import distinct
from neural_rdm.data.videos.clips import ClipSource, frame_numbers
from neural_rdm.latents.shards import ShardedSet, crc_of

if TYPE_CHECKING:
    from neural_rdm.latents.first_stage import Autoencoder

#: the tokens of the empty caption and of the prompts, in a folder of latents with texts
TEXT_FILE = "text.safetensors"


class Clip(NamedTuple):
    """Which frames of a video are a sample: see `data.videos.datasets`."""

    num_frames: int
    frame_interval: int
    image_frames: int = 0


class LatentSet(ClipSource):
    """One split. A sample's augmentation is drawn as the pixels' own source draws it, by (seed, position).

    Args:
        training: draw the mirrored copy (if `flip`), the caption and a clip's begin; otherwise the plain picture, the
            first caption and the clip in the middle.
        digest: of the listing of the samples that the latents were made of.
        clip: which frames of a video are taken; None for images.
        length: tokens L that a caption is padded to; None where the network reads no stored tokens.
    """

    def __init__(
        self,
        shards: ShardedSet,
        training: bool,
        flip: bool,
        seed: int,
        clip: Clip | None,
        length: int | None,
        digest: str | None = None,
    ) -> None:
        self.shards, self.random, self.flip, self.seed = shards, training, flip and training, seed
        self.clip, self.length, self.digest = clip, length, digest
        if clip is not None:
            self.num_frames, self.frame_interval = clip.num_frames, clip.frame_interval
            self.image_frames = clip.image_frames if training else 0

    def __len__(self) -> int:
        return len(self.shards)

    def listing(self, size: int, root: str | os.PathLike[str] | None) -> str | None:
        """See `Source`; as the manifest has it."""
        return self.digest

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index`: x, its moments [2C, h, w] or [F, 2C, h, w] ([C, ...] where latents are not random), in the
        dtype of the shards; y, caption, context [L, E] and context_mask [L] where there are any.

        Raises:
            LoaderError: a damaged shard.
        """
        try:
            return self._image(index, key) if self.clip is None else super().load(index, key)
        except CheckpointError as error:
            raise LoaderError(str(error)) from error

    def _image(self, index: int, key: int) -> dict[str, Any]:
        held = self.shards[index]
        sample: dict[str, Any] = {"x": held.rows(self.mirrored(key))[0]}
        if held.y is not None:
            sample["y"] = held.y
        if held.captions:
            which = self.which(key, len(held.captions))
            sample["caption"] = held.captions[which]
            if self.length is not None:
                sample |= _padded(held.said(which), self.length)
        return sample

    def part(self, index: int, num_frames: int, u: float, mirrored: bool) -> tuple[Tensor, int | None]:
        """See `ClipSource`."""
        held = self.shards[index]
        return held.rows(mirrored, frame_numbers(len(held.moments), num_frames, self.frame_interval, u)), held.y


def _padded(tokens: Tensor, length: int) -> dict[str, Tensor]:
    """Tokens [n, E] -> the text encoder's own format: zeros behind them, and a mask of what is a token."""
    context, mask = tokens.new_zeros(length, tokens.shape[-1]), torch.zeros(length, dtype=torch.bool)
    context[: len(tokens)], mask[: len(tokens)] = tokens, True
    return {"context": context, "context_mask": mask}


class Latents(DataModule):
    """The latents in a folder that `python -m neural_rdm.encode` has finished, for training without pixels:

    FOLDER/manifest.json                  what they were made of, and by which first stage
    FOLDER/train/0000000.safetensors ...  moments of every image, or of every frame of every video
    FOLDER/val/...                        the same of the validation split, where the data set has one
    FOLDER/text.safetensors               tokens of the null prompt and of the prompts of previews, with texts only

    `x` are moments (`space`); the first stage draws latents of them, anew in every epoch, as it does of pixels.

    Args:
        folder: see above.
        first_stage: of the run; its weights must be those that made the latents.
        batch_size, num_workers, limit: see `DataModule`.
        flip: draw the mirrored copy of half of the training samples; None where there is one.
        clip: which frames of a video are a sample; None where the data are images.
        length: tokens of a caption, where the network reads a text; None for no text.

    Raises:
        ConfigError: when it is set up: the latents are not there, not finished, or of another first stage.
    """

    space = "moments"

    def __init__(
        self,
        folder: str | Path,
        first_stage: Autoencoder,
        batch_size: int,
        num_workers: int = 0,
        limit: int | None = None,
        flip: bool | None = None,
        clip: Clip | None = None,
        length: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        self.folder, self.first_stage = Path(folder).expanduser(), first_stage
        self.flip, self.clip, self.length = flip, clip, length
        self.manifest: dict[str, Any] = {}
        self._prompts: dict[str, tuple[int, int]] = {}
        if (self.folder / MANIFEST).is_file():  # sampling does not need the latents
            self._read()

    def _read(self) -> None:
        self.manifest = read_manifest(self.folder)
        self.num_classes, self.class_names = self.manifest["num_classes"], self.manifest["class_names"]
        cells = tuple(self.manifest["shape"])
        frames = 1 if self.clip is None else self.clip.num_frames + self.clip.image_frames
        self.sample_shape = cells if frames == 1 else (frames, *cells)

    def load_datasets(self) -> None:
        """Read the manifest, compare the first stage, and find the shards."""
        self._read()
        self._compare()
        if self.manifest["condition"] is None:
            self.length = None
        splits: Mapping[str, Any] = self.manifest["splits"]
        for name, split in splits.items():
            shards, digest = ShardedSet(self.folder / name, split["counts"]), split["source"]["sha256"]
            flip = split["flipped"] if self.flip is None else self.flip
            samples = LatentSet(shards, name == "train", flip, self.seed, self.clip, self.length, digest)
            setattr(self, f"{name}_set", samples)

    def _compare(self) -> None:
        """Refuse latents of other weights than the run's; say so where these are not at hand."""
        stage, held = self.first_stage, self.manifest["first_stage"]
        try:
            found = stage.fingerprint()
        except CheckpointError as error:
            if is_first_rank():
                print(f"cannot compare the first stage with that of the latents: {error}", flush=True)
            return
        if found != held["sha256"]:
            raise ConfigError(
                f"data.latents={self.folder} does not fit this experiment: first_stage.sha256 (of the encoder's "
                f"weights) is {held['sha256'][:12]}... there ({held['path']}), but {found[:12]}... here "
                f"({stage.path}). Pass the first_stage.path that they were made with, or encode again"
            )

    def prompts(self, count: int) -> list[str] | None:
        """The prompts that the data set itself would give, less those of images that could not be encoded."""
        self.setup()
        if self.manifest["prompts"] is None:
            return None
        name, source = ("val", self.val_set) if self.val_set else ("train", self.train_set)
        assert isinstance(source, LatentSet)
        split = self.manifest["splits"][name]
        numbers = np.setdiff1d(np.arange(split["count"] + len(split["bad"])), split["bad"])
        self._prompts = distinct(count, numbers.tolist(), lambda place: source.shards[place].captions)
        return list(self._prompts)

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The stored tokens of what `prompts` gave last."""
        source = self.val_set or self.train_set
        found: dict[str, Tensor] = {}
        for text in filter(self._prompts.__contains__, texts):
            assert isinstance(source, LatentSet)
            place, which = self._prompts[text]
            found |= {text: held.said(which).float()} if (held := source.shards[place]).tokens else {}
        return found


def stored_tokens(folder: str | Path) -> dict[str, Tensor]:
    """Caption -> tokens [length, E] of the null prompt and of the prompts of previews in a folder of latents; empty
    where none were made.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(folder).expanduser() / TEXT_FILE
    if not path.is_file():
        return {}
    prompts = ["", *(read_manifest(folder)["prompts"] or [])]
    try:
        content = load_file(path)
        parts = content["tokens"].tensor_split(content["token_ends"][:-1])
        if [crc_of(part) for part in parts] != content["token_crc"].tolist():
            raise ValueError("its tokens are not as they were written")
        return {prompt: part.float() for prompt, part in zip(prompts, parts, strict=True)}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Give the encode command of its folder again") from error
