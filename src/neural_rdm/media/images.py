"""Pictures: decoded whatever their kind, cropped as ADM and DiT crop them, and as tensors in [-1, 1]."""

from __future__ import annotations

import os
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from neural_rdm.core.errors import BrokenSample
from neural_rdm.media.formats import FORMATS, check_range, depth_of, kind_of

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


#: what `adm_crop` does, in words
CROP = "short side to image_size, then its centre (ADM)"
ROUNDING = "uint8: 127.5 * x + 128, clamped to [0, 255] and truncated (DiT)"


def to_bytes(x: Tensor) -> Tensor:
    """Pixels in [-1, 1] as uint8 of the same shape, rounded as `ROUNDING` says; what is not a number is black."""
    return (127.5 * x.nan_to_num(nan=-1.0) + 128).clamp(0, 255).to(torch.uint8)


def from_bytes(x: Tensor) -> Tensor:
    """Bytes -> float32 in [-1, 1], as the data sets make them."""
    return x.to(torch.float32).div_(127.5).sub_(1)
