"""The Inception Score against torch-fidelity, torchmetrics' formula and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.metrics import InceptionScore, inception_score
from tests.metrics.oracles import fidelity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def restated(probs, splits):
    scores = []
    for i in range(splits):
        part = probs[i * len(probs) // splits : (i + 1) * len(probs) // splits]
        divergences = (part * (np.log(part) - np.log(part.mean(0)))).sum(1)
        scores.append(np.exp(divergences.mean()))
    return np.mean(scores), np.std(scores)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(10, 60), splits=st.integers(1, 10))
def test_equals_the_definition(seed, n, splits):
    logits = 3 * np.random.default_rng(seed).standard_normal((n, 7))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert inception_score(probs, splits) == pytest.approx(restated(probs, splits), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("shuffle", [False, True])
def test_equals_torch_fidelity(shuffle):
    oracle = fidelity("metric_isc").isc_features_to_metric
    logits = 4 * torch.randn(503, 40, generator=torch.Generator().manual_seed(0))
    expected = oracle(logits, splits=10, shuffle=shuffle, rng_seed=2020)
    order = np.random.RandomState(2020).permutation(503) if shuffle else np.arange(503)
    found = inception_score(logits.softmax(1)[torch.from_numpy(order)], 10)
    assert found[0] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert found[1] == pytest.approx(expected["inception_score_std"], rel=1e-5)


def test_equals_torch_fidelity_on_a_real_classifier():
    """Digits as a small classifier sees them."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    oracle = fidelity("metric_isc").isc_features_to_metric
    x, y = load_digits(return_X_y=True)
    logits = LogisticRegression(max_iter=300).fit(x[::2] / 16, y[::2]).decision_function(x[1::2] / 16)
    expected = oracle(torch.from_numpy(logits), splits=5, shuffle=False)
    found = inception_score(torch.from_numpy(logits).softmax(1), 5)
    assert found[0] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert 5 < found[0] < 10


def test_closed_forms():
    eye = torch.eye(8).repeat(5, 1)
    assert inception_score(eye, 5) == pytest.approx((8.0, 0.0), abs=1e-12)  # sure and varied: the number of classes
    assert inception_score(torch.full((20, 8), 1 / 8), 2) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert inception_score(eye[:1].repeat(20, 1), 2) == pytest.approx((1.0, 0.0), abs=1e-12)  # sure, always the same


def test_duplicates_change_nothing_in_one_split():
    probs = torch.randn(30, 6).softmax(1)
    assert inception_score(probs.repeat(3, 1), 1) == pytest.approx(inception_score(probs, 1), rel=1e-12)


def test_the_metric_shuffles_samples_that_come_class_by_class():
    probs = (torch.eye(10) * 9).repeat_interleave(200, dim=0) + torch.randn(2000, 10)
    metric = InceptionScore("digits", 10, splits=10)
    for part in probs.softmax(1).split(77):
        metric.update(part)
    (mean, one) = metric.compute()["inception_score_digits"], inception_score(probs.softmax(1), 1)[0]
    assert float(mean) == pytest.approx(one, rel=0.05)
    assert inception_score(probs.softmax(1), 10)[0] < 1.5  # a split a class


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_mistakes_are_named():
    probs = torch.randn(9, 4).softmax(1)
    for bad in (torch.randn(9, 4), probs[0], 2 * probs, torch.full_like(probs, torch.nan)):
        with pytest.raises(ValueError, match="wants probabilities"):
            inception_score(bad, 1)
    for splits in (0, 10):
        with pytest.raises(ValueError, match=f"cannot make {splits} splits of 9"):
            inception_score(probs, splits)
    with pytest.raises(ValueError, match="splits of 0"):
        InceptionScore("digits", 4).compute()
