"""The base of every data module: what a batch is, and loaders whose order and augmentation survive a resume."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import BrokenSample, ConfigError, DataError, LoaderError, UserError, printable
from neural_rdm.core.ranks import is_first_rank, parts
from neural_rdm.core.seeding import choice
from neural_rdm.data.broken import BadSamples
from neural_rdm.data.copying import moved
from neural_rdm.data.described import SPLITS, other_classes
from neural_rdm.data.loader import Loader
from neural_rdm.data.prompts import distinct
from neural_rdm.data.sampler import Draw, StepBatchSampler, shuffled, split_batch
from neural_rdm.data.source import Source
from neural_rdm.data.splits import refuse_shared

_ATTEMPTS = 1000  # samples tried for one place; more than chance could need where most can be read
_FAR = 1 << 40  # from the key of one attempt to the next, beyond every position: other draws, such as frames of others


class Batch(TypedDict, total=False):
    """A collated batch of this rank's micro-batch of B samples.

    x: float32 [B, C, H, W] images or [B, F, C, H, W] clips; pixels are in [-1, 1], latents have unit scale.
    y: int64 [B] class labels in 0 ... num_classes - 1, or [B, 1 + I] where I images follow each clip; absent where the
        data have no labels.
    caption: a text for each sample; absent where the data have none.
    context: its tokens [B, L, E] and context_mask, bool [B, L], which of them are real, where the data hold them ready.
    position: int64 [B], ordinal number of the sample in the whole run (in validation: its index in the data set).
    """

    x: Tensor
    y: Tensor
    caption: list[str]
    context: Tensor
    context_mask: Tensor
    position: Tensor


class Listing(NamedTuple):
    """A list that a data set ships with its samples.

    file: where it stands.
    split: "train" or "val".
    named: how many samples it names.
    missing: which of them are not there, as the list names them.
    counts: whether the data module counts the missing ones, as samples that cannot be read.
    """

    file: Path
    split: str
    named: int
    missing: list[str]
    counts: bool = False


class Keyed(Dataset[dict[str, Any]]):
    """A data set indexed by `Draw`: the sample's own dictionary plus its position. Never fails on a broken sample.

    A batch keeps its shape, so the place of a sample that cannot be read is taken by another one, drawn from (seed,
    position, attempt) alone: the same one for any number of workers and ranks and after a resume. In validation its
    position is then moved behind the last one, `size` or more: consumers leave it out. `bad` lists what is broken.
    """

    def __init__(self, source: Source, bad: BadSamples, seed: int) -> None:
        self.source, self.bad, self.seed = source, bad, seed

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index, position = draw
        found: dict[int, BrokenSample] = {}
        for attempt in range(_ATTEMPTS):
            try:
                sample = self.source.load(index, draw.position + attempt * _FAR)
            except BrokenSample as error:
                found[index if error.index is None else error.index] = error
                if len(found) > self.bad.most:
                    break
                index = choice(self.seed, f"replacement {attempt}", draw.position, self.bad.size)
                continue
            if found:
                left_out = self.bad.split == "val"
                self.bad.add(found, draw.position, None if left_out else index)
                position += self.bad.size if left_out else 0
            return {**sample, "position": position}
        self.bad.add(found, draw.position, None)
        raise LoaderError(f"{_ATTEMPTS} samples in a row cannot be read, such as {next(iter(found.values())).path}")


@checked()
class DataModule(LightningDataModule):
    """A Lightning data module whose batches depend only on the seed and the optimizer step.

    Subclasses set the attributes below and implement `load_datasets`. Build the Trainer with
    `use_distributed_sampler=False`: the batches are already split over the ranks.

    Args:
        batch_size: samples per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank; 0 loads in the training process.
        limit: use only the first `limit` samples of each split, None for all.
        max_bad_fraction: share of a split, in [0, 1], that may be unreadable (see `BadSamples`) before the run stops.

    Raises:
        ConfigError: an argument is out of range.
    """

    space: str = "pixels"
    """What `x` holds: "pixels", "latents", or "moments": mean and deviation, of which latents are drawn."""
    num_classes: int | None = None
    """Number of classes, None where the data have no labels."""
    sample_shape: tuple[int, ...] = ()
    """(C, H, W) of an image or (F, C, H, W) of a clip."""
    class_names: list[str] | None = None
    """Names in label order, where there are any."""
    files: bool = True
    """Whether the samples are files below `data.root`, of which a small part can be made."""
    crop: str = "none"
    """How a picture of any size becomes one of `sample_shape`, in words for statistics and latents."""

    # What a class states for the commands, which read it from the source before torch is loaded.
    reading: Sequence[str] = ()
    """Its own keys that change how samples are read or drawn, and not what a sample is: latents made under other values
    are the same. Every other key counts (see `data.encoded.manifest`)."""
    official: Mapping[str, Any] | None = None
    """The whole data set as its site describes it (see `data.official`), as a literal."""
    check: Callable[..., Any] | None = None
    """Looks at the folder before torch is loaded: a function of a module without it, whose parameters bear the names of
    keys, and which raises a DataError. One in the module of the class is asked when it is set up. None: the folder has
    to be there."""
    experiment: str = ""
    """Overrides with which an experiment of other data trains on these, where no experiment chooses them by itself."""

    train_set: Source | None = None
    val_set: Source | None = None

    report_folder: Path | None = None
    """Where `bad_samples.csv` goes without a Trainer, whose `default_root_dir` it is otherwise; None: only printed."""

    def __init__(
        self, batch_size: Count, num_workers: Natural = 0, limit: Count | None = None, max_bad_fraction: Fraction = 0.01
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.limit = limit
        self.max_bad_fraction = max_bad_fraction
        self._lists: dict[tuple[str, Path | None], BadSamples] = {}
        #: what a user should know of how the data were read
        self.notes: list[str] = []
        self._recalled: Mapping[str, Any] | None = None
        self.seed = 0
        self.micro_steps = 1

    def configure(self, seed: int, micro_steps: int = 1) -> None:
        """Set the run's seed and the micro-batches per optimizer step; call it before fit."""
        if seed != self.seed:
            self.train_set = self.val_set = None  # a set holds the seed of its augmentation
            self._lists = {}
        self.seed, self.micro_steps = seed, micro_steps

    def recall(self, held: Mapping[str, Any] | None) -> None:
        """Take from what a run has written down (see `described`) what label k means: its samples need not be there.

        Where they are, setting up compares it with what is found.
        """
        self._recalled = held
        if held is not None:
            self.num_classes, self.class_names = held["num_classes"], held["class_names"]

    def load_datasets(self) -> None:
        """Make `self.train_set` and, where there is one, `self.val_set`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to load its data (load_datasets).")

    def setup(self, stage: str | None = None) -> None:
        """Load the data sets unless they are loaded; may be called without a Trainer.

        Raises:
            DataError: they cannot be read, or training and validation share samples.
            ConfigError: label k means something else than in the run that these are the data of.
        """
        if self.train_set is None:
            try:
                self.load_datasets()
                refuse_shared(self.train_set, self.val_set)
                self._check_labels()
                held = self._recalled
                if held is not None and (problem := other_classes(held, self.num_classes, self.class_names)):
                    raise ConfigError(
                        f"{problem}. Pass data.root=DIR (data.latents=DIR) of the data that the run was trained on, or "
                        "name the folders as they were"
                    )
            except UserError:
                self.train_set = self.val_set = None
                raise

    def _check_labels(self) -> None:
        """A label beyond the classes would be the null class of guidance, or another row of a table.

        Raises:
            DataError: there is one.
        """
        for split, source in self.sources.items():
            if not self.num_classes or source.y is None or not len(source.y):
                continue
            index = int(source.y.argmax())
            if (label := int(source.y[index])) >= self.num_classes:
                raise DataError(
                    f"{SPLITS[split]} sample {index} has label {label}, but these data have {self.num_classes} "
                    f"classes, 0 to {self.num_classes - 1}: their `num_classes` or their labels are wrong"
                )

    def note(self, *texts: str) -> None:
        """Say what a user should know of the data, each thing once, and keep it in `notes`."""
        for text in map(printable, texts):
            if text not in self.notes:
                self.notes.append(text)
                if is_first_rank():
                    print(text, flush=True)

    @property
    def sources(self) -> dict[str, Source]:
        """The splits that there are, by their names "train" and "val"."""
        return {name: s for name, s in (("train", self.train_set), ("val", self.val_set)) if s is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """How many samples of each split are used."""
        return {name: self._used(source) for name, source in self.sources.items()}

    def prompts(self, count: int) -> list[str] | None:
        """`count` different texts to draw samples of, or all where there are fewer; None where the data have none.

        They are captions of validation, or of training where there is none, the same for every seed: see `distinct`.
        """
        self.setup()
        source = self.val_set or self.train_set
        if source is None or not source.captioned:
            return None
        return list(distinct(count, range(len(source)), source.captions))

    @property
    def prompts_of(self) -> str:
        """Which captions `prompts` are, in a protocol line."""
        return "training; there is no validation set" if self.val_set is None else "validation"

    def tokens(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The tokens [length, E] of those of some prompts of its own that the data hold ready."""
        return {}

    def listings(self) -> list[Listing]:
        """The lists of samples that there are below the root; a DataError where one cannot be read."""
        return []

    def part_of_lists(self, kept: Collection[str]) -> Iterable[tuple[Path, str]]:
        """(list below the root, its text cut down to the samples at these paths below the root), for a small part of
        the data set.
        """
        return ()

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Index of the sample at each place of an epoch [train_size]: every one once, by seed and epoch alone."""
        return shuffled(self.train_size, self.seed, epoch)

    @property
    def train_size(self) -> int:
        """Number of training samples that are used."""
        self.setup()
        return self.sizes["train"]

    @property
    def val_size(self) -> int:
        """Number of validation samples that are used; 0 without a validation set."""
        self.setup()
        return self.sizes.get("val", 0)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Never-ending loader of `Batch`, beginning at the Trainer's current optimizer step (0 without a Trainer)."""
        size, (world_size, rank) = self.train_size, self._ranks()
        sampler = StepBatchSampler(
            size, self.batch_size, self.seed, self._step, self.micro_steps, world_size, rank, self.order
        )
        return self._loader(self._keyed("train"), batch_sampler=sampler)

    def first_batch(self, most: int) -> tuple[Tensor, Tensor]:
        """Samples x [N, ...] and positions [N] of the run's first batch, at most `most`; the same on all ranks."""
        size = self.train_size
        draws = next(iter(StepBatchSampler(size, self.batch_size, self.seed, order=self.order)))[:most]
        keyed = self._keyed("train")
        return torch.stack([keyed[draw]["x"] for draw in draws]), torch.tensor([draw.position for draw in draws])

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Loader of this rank's share of the validation set, in order; [] without one.

        Every rank gets equally many samples, since each forward pass of a sharded network is a collective call. What
        fills up the last ones repeats samples from the start, and another sample stands in for one that cannot be read:
        their positions are `val_size` or more: leave them out.
        """
        self.setup()
        if self.val_set is None:
            return []
        size, (world_size, rank) = self.val_size, self._ranks()
        each = -(-size // world_size)
        draws = [Draw(position % size, position) for position in range(rank, each * world_size, world_size)]
        batch_size = split_batch(self.batch_size, self.micro_steps, world_size)
        return self._loader(self._keyed("val"), sampler=draws, batch_size=batch_size)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch; positions stay on the CPU, where draws are keyed, so that no step waits for the device."""
        return moved(batch, ("x", "y", "context", "context_mask"), device)

    def _used(self, source: Source) -> int:
        return len(source) if self.limit is None else min(self.limit, len(source))

    def _step(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def _ranks(self) -> tuple[int, int]:
        return (1, 0) if self.trainer is None else parts(self.trainer)

    def bad_samples(self, split: str) -> BadSamples:
        """The list of a split's samples that cannot be read: one for each folder that it is written into."""
        folder = self.report_folder if self.trainer is None else Path(self.trainer.default_root_dir)
        if (split, folder) not in self._lists:
            source, size = self.sources[split], self.sizes[split]
            bad = BadSamples(split, size, self.max_bad_fraction, folder, source.left_out, len(source))
            self._lists[split, folder] = bad
        return self._lists[split, folder]

    def _keyed(self, split: str) -> Keyed:
        return Keyed(self.sources[split], self.bad_samples(split), self.seed)

    def _loader(self, samples: Keyed, **order: Any) -> DataLoader[dict[str, Any]]:
        workers = self.num_workers
        if workers > 0:
            samples.bad.share_memory()
        return Loader(samples, workers, persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(), **order)
