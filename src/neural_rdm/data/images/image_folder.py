"""Images in class folders, read whatever their kind and cropped as ADM and DiT crop them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import BrokenSample, DataError, printable
from neural_rdm.core.listing import natural_order
from neural_rdm.data.base import DataModule
from neural_rdm.data.broken import bad_allowed
from neural_rdm.data.images.class_files import ClassFiles, list_classes
from neural_rdm.data.layouts import ImageTree, check_root
from neural_rdm.data.packed import PackedLists, PackedPaths
from neural_rdm.data.source import Source
from neural_rdm.media.images import CROP, load_pixels


class ImageFiles(Source):
    """Image files of one split, with labels, or with one or more captions each.

    Args:
        paths: image files.
        y: labels int64 [N], None without.
        captions: of each image, None without.
        image_size: S.
        flip, random, seed, left_out, folders: see `Source`.
    """

    def __init__(
        self,
        paths: Sequence[str],
        image_size: int,
        y: Tensor | None = None,
        captions: Sequence[list[str]] | PackedLists | None = None,
        flip: bool = False,
        random: bool = False,
        seed: int = 0,
        left_out: Sequence[BrokenSample] = (),
        folders: Sequence[str] | None = None,
    ) -> None:
        self.paths, self._captions, self.y, self.captioned = paths, captions, y, captions is not None
        self.image_size, self.flip, self.random, self.seed = image_size, flip, random, seed
        self.left_out, self.folders = left_out, folders

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """Path of image `index`."""
        return self.paths[index]

    def captions(self, index: int) -> list[str]:
        """What is said of image `index`."""
        return [] if self._captions is None else self._captions[index]

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Image `index` as x float32 [3, S, S] in [-1, 1], mirrored for half of all keys if `flip`, and its label y or
        one of its captions.

        Raises:
            BrokenSample: the file cannot be read; the message names it.
        """
        sample: dict[str, Any] = {"x": load_pixels(self.path(index), self.image_size, self.mirrored(key))}
        if self.y is not None:
            sample["y"] = int(self.y[index])
        if said := self.captions(index):
            sample["caption"] = said[self.which(key, len(said))]
        return sample


@checked()
class ImageFolder(DataModule):
    """Anyone's images in class folders, as torchvision's `ImageFolder` takes them:

    ROOT/train/<class>/*.jpg    png, webp, bmp, tif, ppm, ... too
    ROOT/val/<class>/*.jpg      may be left out

    or ROOT/<class>/*.jpg. Labels follow the sorted folder names; a class keeps its label where its folder is empty.
    Folders called test, valid, validation, ... are held out: one of them serves as validation where there is no val.
    Images are cropped as in ADM and scaled to [-1, 1]; those of the validation split are not mirrored. As samples are
    indexed class by class, a small `limit` takes images of the first classes only.

    Args:
        root: the folder; None until somebody asks for the samples.
        image_size: S, height and width of the crop in pixels.
        flip: mirror training images horizontally with probability 1/2, keyed by (seed, position).
        num_classes: the expected number of class folders, None for as many as there are.
        max_bad_fraction: share of the images (and of the class folders, which may be empty) that may be unreadable.

    The other arguments: see `DataModule`.

    Raises:
        DataError: the folder is not such a tree (see `neural_rdm.data.layouts`).
    """

    reading = ("num_classes",)
    crop = CROP
    experiment = "exp=dit_s_gated data=image_folder backbone.num_classes={classes}"
    check: Callable[[str | os.PathLike[str] | None, int | None], ImageTree] = staticmethod(check_root)

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: Count = 256,
        batch_size: Count = 256,
        num_workers: Natural = 0,
        limit: Count | None = None,
        flip: bool = True,
        num_classes: Natural | None = None,
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(batch_size, num_workers, limit, max_bad_fraction)
        self.root, self._expected = root, num_classes  # 0: an unconditional network takes any folders
        self.flip = flip
        self.sample_shape = (3, image_size, image_size)
        self.tree: ImageTree | None = None
        if root is not None:  # None: nobody has asked for the samples yet, see `setup`
            self._look()

    def _look(self) -> ImageTree:
        tree = self.tree = self.check(self.root, self._expected)
        self.class_names, self.num_classes = list(map(printable, tree.classes)), len(tree.classes)
        return tree

    def load_datasets(self) -> None:
        """List the files of both splits; images are decoded when they are drawn.

        Raises:
            DataError: more class folders are empty than may be.
        """
        tree = self.tree or self._look()
        found = list_classes([tree.train / name / tree.inner for name in tree.classes])
        empty = [error for error in found.left_out if os.path.isdir(error.path)]
        if len(empty) > bad_allowed(self.max_bad_fraction, len(tree.classes)):
            raise DataError(
                f"data.root: {len(empty)} of {len(tree.classes)} class folders hold no image, such as {empty[0].path}. "
                "Unpack their archives again, or remove these folders."
            )
        if (counted := natural_order(tree.classes)) != tree.classes:
            place = next(i for i, (a, b) in enumerate(zip(tree.classes, counted, strict=True)) if a != b)
            some = ", ".join(map(printable, tree.classes[: place + 2]))
            self.note(
                f"labels follow the names of the class folders as texts, not as numbers ({some}, ...): label {place} "
                f"is class {printable(tree.classes[place])}, not {printable(counted[place])}"
            )
        self.train_set, notes = self._images(found, self.flip), [*tree.notes, *found.notes]
        if tree.val is not None and tree.labels is None:
            held_out = list_classes([tree.val / name for name in tree.classes])
            self.val_set = self._images(held_out)
            notes += held_out.notes
        self.note(*notes)

    def _images(self, found: ClassFiles, flip: bool = False) -> ImageFiles:
        """Images in the order of (class, file name); label k for the k-th folder."""
        y = torch.arange(len(found.folders)).repeat_interleave(torch.tensor(found.counts))
        folders = [os.fspath(folder) for folder in found.folders]
        paths = PackedPaths(folders, found.names, found.counts)
        size = self.sample_shape[-1]
        return ImageFiles(paths, size, y, flip=flip, seed=self.seed, left_out=found.left_out, folders=folders)
