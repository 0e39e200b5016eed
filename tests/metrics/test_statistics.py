"""What statistics are made of: sums that batches and ranks do not change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_rdm.metrics.feature_sets import canonical
from neural_rdm.metrics.statistics import Statistics
from tests.metrics.ranks import pictures, tiny_network


def of(images, labels, size, order=None):
    order = torch.arange(len(images)) if order is None else order
    statistics = Statistics(tiny_network(), 4)
    for part in order.split(size):
        for keep in (True, False):
            chosen = part[(part < 10) == keep]
            if len(chosen):
                statistics.update(images[chosen], labels[chosen], keep)
    return statistics.compute()


@pytest.fixture(scope="module")
def images():
    return pictures()[0]


LABELS = torch.arange(35) % 3


@pytest.mark.parametrize("size", [1, 7, 35])
def test_moments_are_those_of_numpy_at_any_batch_size_and_order(images, size):
    features = tiny_network()(images)
    found = of(images, LABELS, size, torch.randperm(35, generator=torch.Generator().manual_seed(size)))
    assert found.samples == 35
    assert found.label_counts == [12, 12, 11, 0]
    assert set(found.moments) == {"pool", "spatial"}
    for output, (mean, cov) in found.moments.items():
        rows = features[output].double().numpy()
        np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-12)
        np.testing.assert_allclose(cov, np.cov(rows, rowvar=False), atol=1e-12)
    assert torch.equal(found.features["pool"], canonical(features["pool"][:10]))


def test_fewer_samples_than_dimensions_have_their_covariance_too(images):
    found = of(images[:12], LABELS[:12], 5)
    rows = tiny_network()(images[:12])["pool"].double().numpy()
    np.testing.assert_allclose(found.moments["pool"][1], np.cov(rows, rowvar=False), atol=1e-12)


def test_frames_of_clips_for_a_network_of_images(images):
    clips = images[:32].reshape(8, 4, 3, 6, 6)
    statistics, whole = Statistics(tiny_network()), Statistics(tiny_network())
    statistics.update(clips, keep=True)
    whole.update(images[:32], keep=True)
    one, other = statistics.compute(), whole.compute()
    assert one.samples == other.samples == 32
    assert torch.equal(one.features["pool"], other.features["pool"])
    assert one.label_counts == []


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_one_sample_has_no_statistics(images):
    with pytest.raises(ValueError, match="at least 2 real samples; got 1"):
        of(images[:1], LABELS[:1], 1)
