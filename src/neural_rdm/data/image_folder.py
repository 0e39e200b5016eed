"""ImageNet or any other tree of class folders, cropped as ADM and DiT crop it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.layouts import check_root, image_names
from neural_rdm.core.seeding import uniform
from neural_rdm.data.base import BrokenSample, DataModule

_TURNS = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Decode an image file to 8-bit RGB.

    The EXIF orientation is applied (ADM and DiT ignore it). Palette, grey and CMYK images are converted as Pillow does;
    16-bit grey is scaled to 8 bits; transparency goes over black, which is what dropping alpha gives where hidden
    pixels are zero. Of an animation the first frame is taken.

    Raises:
        BrokenSample: the file cannot be decoded, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS` allows.
    """
    try:
        with Image.open(path) as file:
            file.load()
            image = _upright(file)
            if image.mode == "F":
                raise ValueError("floating-point pixels have no known range")
            if image.mode.startswith("I"):
                return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
            return image.convert("RGB")
    except Image.DecompressionBombError as error:
        raise BrokenSample(
            f"{os.fspath(path)}: {error}. Shrink the image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, ...
        raise BrokenSample(
            f"cannot read the image {os.fspath(path)}: {error or type(error).__name__}. Replace the file or delete it."
        ) from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata (several error types) say nothing about the pixels, which are decoded by now
        return image
    return image if turn is None else image.transpose(turn)


def adm_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Centre crop uint8 [size, size, 3] of an RGB image whose short side is first made `size`.

    The short side is halved by box filtering while it is at least 2 * size, then resized bicubically. Source:
    `center_crop_arr` in guided-diffusion's image_datasets.py and in DiT's train.py.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), resample=Image.Resampling.BICUBIC)
    top, left = (image.height - size) // 2, (image.width - size) // 2
    return np.asarray(image)[top : top + size, left : left + size]


class ImageFiles:
    """Labelled image files of one split, indexed in the order of (class, file name). `y` is int64 [N].

    Raises:
        DataError: a class folder without an image.
    """

    def __init__(self, folder: Path, classes: list[str], image_size: int, flip: bool, seed: int) -> None:
        self.folders = [os.path.join(folder, label) for label in classes]
        self.image_size = image_size
        self.flip = flip
        self.seed = seed
        names: list[bytes] = []
        counts = []
        for label in classes:
            # A validation split may lack some classes.
            images = sorted(image_names(folder / label)) if (folder / label).is_dir() else []
            if not images and (folder / label).is_dir():
                raise DataError(f"no images in the class folder {folder / label}. Fill it, or delete it.")
            names += map(os.fsencode, images)
            counts.append(len(images))
        # A million Python strings would be copied into every forked worker as their reference counts change.
        self._names = b"".join(names)
        self._ends = np.cumsum([0, *map(len, names)])
        self.y = torch.arange(len(classes)).repeat_interleave(torch.tensor(counts))

    def __len__(self) -> int:
        return len(self.y)

    def path(self, index: int) -> str:
        """Path of image `index`."""
        name = self._names[self._ends[index] : self._ends[index + 1]]
        return os.path.join(self.folders[int(self.y[index])], os.fsdecode(name))

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Image `index` as x float32 [3, S, S] in [-1, 1] and label y, mirrored for half of all keys if `flip`.

        Raises:
            BrokenSample: the file cannot be read; the message names it.
        """
        pixels = adm_crop(read_rgb(self.path(index)), self.image_size)
        if self.flip and uniform(self.seed, "flip", [key])[0] < 0.5:
            pixels = pixels[:, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
        return {"x": x.div_(127.5).sub_(1), "y": int(self.y[index])}


class ImageFolder(DataModule):
    """Images in class folders: `root/train/<class>/*` with an optional `root/val/<class>/*`, or `root/<class>/*`.

    Labels follow the sorted folder names (for ImageNet's wnid folders: the standard 0 ... 999). Validation images are
    not mirrored. As samples are indexed class by class, a small `limit` takes images of the first classes only.

    Args:
        root: the folder.
        image_size: S, height and width of the crop in pixels.
        batch_size: samples per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank.
        limit: use only the first `limit` images of each split, None for all.
        flip: mirror training images horizontally with probability 1/2, keyed by (seed, position).
        num_classes: the expected number of class folders, None for as many as there are.

    Raises:
        DataError: the folder is not such a tree (see `neural_rdm.core.layouts.check_root`).
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: int = 256,
        batch_size: int = 256,
        num_workers: int = 0,
        limit: int | None = None,
        flip: bool = True,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        if image_size < 1:
            raise ConfigError(f"data.image_size must be at least 1, not {image_size}.")
        self.tree = check_root(root, num_classes or None)  # 0: an unconditional network takes any folders
        self.flip = flip
        self.class_names = self.tree.classes
        self.num_classes = len(self.tree.classes)
        self.sample_shape = (3, image_size, image_size)

    def load_datasets(self) -> None:
        """List the files of both splits; images are decoded when they are drawn."""
        train, val, classes = self.tree
        size = self.sample_shape[-1]
        self.train_set = ImageFiles(train, classes, size, self.flip, self.seed)
        if val is not None:
            self.val_set = ImageFiles(val, classes, size, flip=False, seed=self.seed)
