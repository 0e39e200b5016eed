"""Distances between real images: near zero between halves of one set, growing with blur, noise and class imbalance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from neural_rdm.metrics import FrechetDistance, kernel_distance, precision_recall
from tests.metrics.oracles import tiny_imagenet


def patch(images):
    """Grey pixels of the middle 12 x 12, each with its neighbours: what blur and noise change."""
    return images[:, 26:38, 26:38].mean(3).reshape(len(images), -1)


def frechet(real, generated):
    metric = FrechetDistance("pixels", real.shape[1])
    metric.update(torch.from_numpy(real), real=True)
    metric.update(torch.from_numpy(generated), real=False)
    return float(metric.compute())


@pytest.fixture(scope="module")
def halves():
    """Two random halves of the images and their classes."""
    images, classes = tiny_imagenet()
    order = np.random.default_rng(0).permutation(len(images))
    return [(images[part], classes[part]) for part in np.split(order, 2)]


def worsened(images, kind):
    rng = np.random.default_rng(1)
    if kind == "blur":
        return [gaussian_filter(images, (0, sigma, sigma, 0)) for sigma in (0.5, 1, 2, 4)]
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    return [np.clip(images + level * noise, 0, 1) for level in (0.02, 0.05, 0.1, 0.2, 0.4)]


@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_frechet_distance_grows(halves, kind):
    (real, _), (other, _) = halves
    near = frechet(patch(real), patch(other))
    distances = [frechet(patch(real), patch(images)) for images in worsened(other, kind)]
    total = patch(real).var(0).sum()
    assert near < 0.02 * total
    assert (np.diff([near, *distances]) > 0).all()
    assert distances[-1] > 10 * near


def unbalanced():
    """Half of the digits, and equally many of the other half with ever fewer classes: pixels tell digits apart."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = (x / 8 - 1).astype(np.float32)
    rng = np.random.default_rng(2)
    order, parts = rng.permutation(len(x)), []
    real, rest = np.split(order, [900])
    for count in (10, 7, 4, 2, 1):
        members = [rest[y[rest] == c] for c in range(count)]
        parts.append(x[np.concatenate([rng.choice(m, 80 // count, replace=False) for m in members])])
    return x[real], parts


def test_every_distance_grows_with_class_imbalance():
    real, parts = unbalanced()
    for distance in (frechet, lambda x, y: kernel_distance(x, y, subsets=50, subset_size=70)[0]):
        values = [distance(real, part) for part in parts]
        assert (np.diff(values) > 0).all(), values
        assert values[-1] > 3 * abs(values[0])


def test_recall_falls_with_class_imbalance_and_precision_with_noise():
    real, parts = unbalanced()
    recalls = [precision_recall(real, part)[1] for part in parts]
    assert (np.diff(recalls) < 0).all(), recalls
    noise = np.random.default_rng(3).standard_normal(parts[0].shape).astype(np.float32)
    precisions = [precision_recall(real, parts[0] + level * noise)[0] for level in (0, 0.2, 0.4)]
    assert precisions[0] > precisions[1] > precisions[2]
