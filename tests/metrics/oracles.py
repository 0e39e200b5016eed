"""What the metrics are compared with: other libraries' arithmetic, and features of real images."""

from __future__ import annotations

import functools
import importlib
import io
import zipfile

import numpy as np
import pytest

from tests.helpers import shared


def fidelity(module):
    """A module of torch-fidelity, or a skip."""
    pytest.importorskip("torch_fidelity", reason="the comparison needs torch-fidelity, of the extra `dev`")
    return importlib.import_module(f"torch_fidelity.{module}")


@functools.cache
def tiny_imagenet():
    """5000 training images of Tiny ImageNet [N, 64, 64, 3] in [0, 1] and their classes 0..9, or a skip."""
    from PIL import Image

    path = shared("data/tiny_imagenet/tiny_imagenet_10class.zip")
    images, classes = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            parts = name.split("/")
            if "train" in parts and name.lower().endswith(".jpeg"):
                with Image.open(io.BytesIO(archive.read(name))) as image:
                    images.append(np.asarray(image.convert("RGB")))
                classes.append(parts[parts.index("train") + 1])
    return np.stack(images).astype(np.float32) / 255, np.unique(classes, return_inverse=True)[1]


def pooled(images, side):
    """Images [N, 64, 64, 3] averaged to side x side, flat."""
    cell = 64 // side
    return images.reshape(len(images), side, cell, side, cell, 3).mean((2, 4)).reshape(len(images), -1)


def digits():
    from sklearn.datasets import load_digits

    x = load_digits().data.astype(np.float32)
    return x[:900], x[900:]


def pictures():
    pixels = pooled(tiny_imagenet()[0], 8)  # 192 numbers
    return pixels[::7], pixels[3::7]


def random(n, dim, shift):
    def draw():
        rng = np.random.default_rng(dim)
        mix = rng.standard_normal((dim, dim)) / dim**0.5
        return tuple((rng.standard_normal((n, dim)) @ mix + s).astype(np.float32) for s in (0, shift))

    return draw


REAL_FEATURES = {"digits": digits, "pictures": pictures}
RANDOM_FEATURES = {"random": random(300, 64, 0.3), "near": random(400, 16, 0.0), "far": random(200, 8, 5.0)}
