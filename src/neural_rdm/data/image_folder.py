"""Images in class folders, read whatever their kind and cropped as ADM and DiT crop them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import DataError
from neural_rdm.core.layouts import ImageTree, check_root
from neural_rdm.core.listing import natural_order
from neural_rdm.data.base import DataModule
from neural_rdm.data.broken import BrokenSample, bad_allowed, printable
from neural_rdm.data.class_files import ClassFiles, list_classes
from neural_rdm.data.formats import FORMATS, check_range, depth_of, kind_of
from neural_rdm.data.packed import PackedLists, PackedPaths
from neural_rdm.data.source import Source, from_bytes

_ELONGATED = 32
_TURNS = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_rgb(path: str | os.PathLike[str] | BinaryIO, name: str = "") -> Image.Image:
    """Decode an image file to 8-bit RGB, by its content, whatever its name ends in.

    The EXIF orientation is applied (ADM and DiT ignore it). Palette, grey and CMYK images are converted as Pillow does;
    transparency goes over black, which is what dropping alpha gives where hidden pixels are zero. Of an animation the
    first frame is taken.

    White is what the file says it is, and where that cannot be known the file is refused: a guess for each file would
    give the pictures of one set different brightness, and none would turn them black. So it is with floating-point,
    32-bit and signed pixels, and with 16-bit ones that stay below a quarter of their range (10, 12 or 14 bits of a
    camera or a scanner).

    Args:
        path: the file, or what is open already.
        name: what to call it in messages, if not by its path.

    Raises:
        BrokenSample: the file cannot be decoded, its white is not known, or it has more than twice the pixels that
            `PIL.Image.MAX_IMAGE_PIXELS` says.
    """
    where = name if name or not isinstance(path, (str, os.PathLike)) else path
    try:
        with Image.open(path, formats=FORMATS) as file:
            depth = depth_of(file)
            file.load()
            image = _upright(file)
            if not depth.stated:
                check_range(image)
            if image.mode.startswith("I"):
                grey = np.asarray(image).astype(np.int64) * 255 // depth.white
                return Image.fromarray((255 - grey if depth.inverted else grey).astype(np.uint8)).convert("RGB")
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
            return image.convert("RGB")
    except UnidentifiedImageError as error:
        raise BrokenSample(kind_of(path), where) from error
    except OSError as error:
        raise BrokenSample(error.strerror or str(error) or type(error).__name__, where) from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, zlib.error, MemoryError, ...
        raise BrokenSample(str(error) or type(error).__name__, where) from error


def load_pixels(path: str | os.PathLike[str] | BinaryIO, size: int, mirror: bool = False, name: str = "") -> Tensor:
    """An image file as float32 [3, size, size] in [-1, 1], cropped as ADM crops it.

    Args:
        path, name: see `read_rgb`.

    Raises:
        BrokenSample: the file cannot be read.
    """
    pixels = adm_crop(read_rgb(path, name), size)
    if mirror:
        pixels = pixels[:, ::-1]
    return from_bytes(torch.from_numpy(pixels.transpose(2, 0, 1).copy()))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata (several error types) say nothing about the pixels, which are decoded by now
        return image
    return image if turn is None else image.transpose(turn)


def adm_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Centre crop uint8 [size, size, 3] of an RGB image whose short side is first made `size`.

    The short side is halved by box filtering while it is at least 2 * size, then resized bicubically. Source:
    `center_crop_arr` in guided-diffusion's image_datasets.py and in DiT's train.py. Of an image that is more than 32
    times as long as wide only the middle is resized: one of 1 x 60,000 pixels would take gigabytes otherwise.
    """
    short = min(image.size)
    if max(image.size) > _ELONGATED * short:
        width, height = (min(side, _ELONGATED * short) for side in image.size)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


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
        DataError: the folder is not such a tree (see `neural_rdm.core.layouts`).
    """

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
        self.root, self._expected = root, num_classes or None  # 0: an unconditional network takes any folders
        self.flip = flip
        self.sample_shape = (3, image_size, image_size)
        self.tree: ImageTree | None = None
        if root is not None:  # None: nobody has asked for the samples yet, see `setup`
            self._look()

    def _look(self) -> ImageTree:
        tree = self.tree = self.check(self.root, self._expected)
        self.class_names, self.num_classes = list(map(printable, tree.classes)), len(tree.classes)
        return tree

    experiment = "exp=dit_s_gated data=image_folder backbone.num_classes={classes}"
    check: Callable[[str | os.PathLike[str] | None, int | None], ImageTree] = staticmethod(check_root)
    """Finds the splits and classes of a folder."""

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
