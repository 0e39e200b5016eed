"""Precision and recall against torch-fidelity, a restatement and sets whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.metrics import precision_recall
from tests.metrics.oracles import REAL_FEATURES, fidelity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def restated(real, generated, k):
    def distances(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=2)

    def share(points, centres):
        radii = np.sort(distances(centres, centres), axis=1)[:, k]
        return (distances(points, centres) <= radii).any(1).mean()

    return share(generated, real), share(real, generated)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(5, 40),
    m=st.integers(5, 40),
    k=st.integers(1, 4),
    chunk=st.integers(1, 50),
)
def test_equals_the_definition_at_every_chunk(seed, n, m, k, chunk):
    rng = np.random.default_rng(seed)
    real, generated = rng.standard_normal((n, 3)), 0.7 * rng.standard_normal((m, 3)) + 0.3
    assert precision_recall(real, generated, k, chunk) == pytest.approx(restated(real, generated, k), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.sampled_from([0.0, 0.1, 1e5]))
def test_ties_of_a_grid_count_as_inside(seed, shift):
    """Integer points tie all the time; an offset, or one that no binary number is, must not turn ties into chance."""
    rng = np.random.default_rng(seed)
    real, generated = (rng.integers(0, 4, (n, 3)).astype(float) for n in (30, 25))
    assert precision_recall(real + shift, generated + shift) == pytest.approx(restated(real, generated, 3), abs=1e-12)


@pytest.mark.parametrize("name", REAL_FEATURES)
def test_equals_torch_fidelity_on_real_features(name):
    oracle = fidelity("metric_prc").prc_features_to_metric
    real, generated = REAL_FEATURES[name]()
    options = {"prc_neighborhood": 3, "prc_batch_size": 10000, "save_cpu_ram": False, "verbose": False}
    expected = oracle(torch.from_numpy(generated).double(), torch.from_numpy(real).double(), **options)
    found = precision_recall(real, generated, chunk=123)
    assert found == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)


def test_copies_and_strangers():
    x = torch.randn(60, 8)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100) == (0.0, 0.0)
    assert precision_recall(x, torch.cat([x, x + 100])) == (0.5, 1.0)


def test_many_copies_of_one_sample_are_inside():
    """k copies or more make a ball of radius 0, and rounding must not leave their copies outside."""
    x = torch.randn(12, 512).repeat_interleave(5, dim=0) + 30
    assert precision_recall(x, x[::5].repeat(4, 1)) == (1.0, 1.0)


def test_duplicates_of_generated_samples_leave_precision():
    real, generated = torch.randn(50, 6), 0.8 * torch.randn(40, 6)
    precision, _ = precision_recall(real, generated)
    assert precision_recall(real, generated.repeat(3, 1))[0] == precision


def test_a_collapsed_generator_has_precision_and_no_recall():
    real = torch.randn(400, 4)
    precision, recall = precision_recall(real, 0.05 * torch.randn(400, 4))
    assert precision > 0.8
    assert recall < 0.05


def test_one_wild_sample_changes_only_itself():
    real, generated = torch.randn(100, 4).double(), torch.randn(100, 4).double()
    precision, recall = precision_recall(real, generated)
    wild = generated.clone()
    wild[0] = 1e8
    found = precision_recall(real, wild)
    assert found[0] == pytest.approx(precision, abs=0.011)
    assert found[1] == pytest.approx(recall, abs=0.05)


def test_mistakes_are_named():
    x = torch.randn(9, 4)
    for bad in (x[:3], x[0], torch.randn(9, 5)):
        with pytest.raises(ValueError, match="precision_recall"):
            precision_recall(x, bad)
    with pytest.raises(ValueError, match="k >= 1"):
        precision_recall(x, x, k=0)
    with pytest.raises(ValueError, match="NaN"):
        precision_recall(x, torch.full_like(x, torch.nan))
