"""Latents that `neural_rdm.encode` made once, in place of the pixels that they were made of; one module for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.core.manifest import MANIFEST, read_manifest
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.seeding import choice, uniform
from neural_rdm.data.base import DataModule
from neural_rdm.data.broken import LoaderError
from neural_rdm.data.clips import frame_numbers
from neural_rdm.data.prompts import distinct
from neural_rdm.latents.shards import Moments, ShardedSet

if TYPE_CHECKING:
    from neural_rdm.latents.first_stage import Autoencoder

#: the tokens of the empty caption and of the prompts, in a folder of latents with texts
TEXT_FILE = "text.safetensors"


class Clip(NamedTuple):
    """Which frames of a video are a sample: see `data.video.Clips`."""

    num_frames: int
    frame_interval: int
    image_frames: int = 0


class LatentSet:
    """One split. A sample's augmentation is drawn as the pixels' own source draws it, by (seed, position).

    Args:
        shards: the samples.
        training: draw the mirrored copy (if `flip`), the caption and a clip's begin; otherwise the plain picture, the
            first caption and the clip in the middle.
        clip: which frames of a video are taken; None for images.
        length: tokens L that a caption is padded to; None where the network reads no stored tokens.
    """

    def __init__(
        self, shards: ShardedSet, training: bool, flip: bool, seed: int, clip: Clip | None, length: int | None
    ) -> None:
        self.shards, self.training, self.flip, self.seed = shards, training, flip, seed
        self.clip, self.length = clip, length

    def __len__(self) -> int:
        return len(self.shards)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index`: x, its moments [2C, h, w] or [F, 2C, h, w] ([C, ...] where latents are not random), in the
        dtype of the shards; y, caption, context [L, E] and context_mask [L] where there are any.

        Raises:
            LoaderError: a damaged shard.
        """
        try:
            return self._image(index, key) if self.clip is None else self._clip(index, key, self.clip)
        except CheckpointError as error:
            raise LoaderError(str(error)) from error

    def _image(self, index: int, key: int) -> dict[str, Any]:
        held = self.shards[index]
        mirrored = self.training and self.flip and uniform(self.seed, "flip", [key])[0] < 0.5
        sample: dict[str, Any] = {"x": _rows(held, mirrored)[0]}
        if held.y is not None:
            sample["y"] = held.y
        if held.captions:
            which = choice(self.seed, "caption", key, len(held.captions)) if self.training else 0
            sample["caption"] = held.captions[which]
            if self.length is not None:
                sample |= _padded(held.tokens[which], self.length)
        return sample

    def _clip(self, index: int, key: int, clip: Clip) -> dict[str, Any]:
        """As `ClipFiles.load` draws it."""
        images = clip.image_frames if self.training else 0
        draws = uniform(self.seed, "clip", [key * 64 + i for i in range(2 + 2 * images)])
        start, mirror = draws[:2] if self.training else (0.5, 1.0)
        held = self.shards[index]
        rows = _rows(held, self.flip and self.training and mirror < 0.5)
        frames, labels = [rows[frame_numbers(len(rows), clip.num_frames, clip.frame_interval, start)]], [held.y]
        for which, moment in draws[2:].reshape(-1, 2):
            other = self.shards[(int(which * len(self)) + index) % len(self)]
            frames.append(other.moments[frame_numbers(len(other.moments), 1, 1, moment)])
            labels.append(other.y)
        x = torch.cat(frames)
        sample: dict[str, Any] = {"x": x if len(x) > 1 else x[0]}
        if held.y is not None:
            sample["y"] = torch.tensor(labels) if images else held.y
        return sample


def _rows(held: Moments, mirrored: bool) -> Tensor:
    if not mirrored:
        return held.moments
    assert held.flipped is not None, "the manifest was checked for mirrored copies"
    return held.flipped


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
        flip: draw the mirrored copy of half of the training samples.
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
        flip: bool = False,
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
            shards = ShardedSet(self.folder / name, split["counts"])
            setattr(
                self,
                f"{name}_set",
                LatentSet(shards, name == "train", self.flip, self.seed, self.clip, self.length),
            )

    def _compare(self) -> None:
        """Refuse latents of other weights than the run's; say so where these are not at hand.

        Raises:
            ConfigError: other weights.
        """
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
        for text in texts:
            if (place := self._prompts.get(text)) is not None and isinstance(source, LatentSet):
                held = source.shards[place[0]].tokens
                found |= {text: held[place[1]].float()} if held else {}
        return found

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to `device`, stored tokens as well; see `DataModule`."""
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        texts = [name for name in ("context", "context_mask") if name in batch]
        return moved | {name: batch[name].to(device, non_blocking=True) for name in texts}


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
        parts = content["tokens"].float().tensor_split(content["token_ends"][:-1])
        return dict(zip(prompts, parts, strict=True))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Give the encode command of its folder again") from error
