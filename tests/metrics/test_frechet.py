"""The Frechet distance against closed forms and scipy's matrix square root; the metric against one-shot moments."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.metrics.frechet import FrechetDistance, frechet_distance, moments


def by_sqrtm(mu1, sigma1, mu2, sigma2):
    root = scipy.linalg.sqrtm(sigma1 @ sigma2)
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * np.real(root)))


def cloud(seed, count, dim):
    """Correlated samples [count, dim] around a mean that is not zero."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) / dim**0.5 + rng.standard_normal(dim)


def gaussian(x):
    return x.mean(0), np.cov(x, rowvar=False)


def rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0]


@pytest.mark.parametrize("rotated", [False, True])
def test_closed_form_of_commuting_covariances(rotated):
    rng = np.random.default_rng(0)
    a, b, mu1, mu2 = rng.uniform(0.1, 4, 9), rng.uniform(0.1, 4, 9), rng.standard_normal(9), rng.standard_normal(9)
    q = rotation(rng, 9) if rotated else np.eye(9)
    expected = ((mu1 - mu2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(mu1, q * a @ q.T, mu2, q * b @ q.T) == pytest.approx(expected, rel=1e-12)


def test_one_dimension_is_the_difference_of_means_and_deviations():
    assert frechet_distance([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx(4 + 1, rel=1e-14)


@pytest.mark.parametrize(("n1", "n2", "tolerance"), [(200, 150, 1e-10), (200, 9, 1e-6), (9, 200, 1e-6), (9, 12, 1e-6)])
def test_equals_sqrtm_at_every_rank(n1, n2, tolerance):
    one, two = gaussian(cloud(1, n1, 24)), gaussian(cloud(2, n2, 24))
    # sqrtm is the inaccurate one on singular products: its rounding is the root of float64's.
    assert frechet_distance(*one, *two) == pytest.approx(by_sqrtm(*one, *two), rel=tolerance)


def test_singular_covariances_against_the_nuclear_norm():
    """Tr (S1 S2)^(1/2) is the nuclear norm of Xc Yc^T, which needs no covariance and loses nothing at low rank."""
    x, y = cloud(3, 10, 40), cloud(4, 14, 40)
    xc, yc = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    trace = np.linalg.norm(xc @ yc.T, "nuc")
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() + (yc**2).sum() - 2 * trace
    assert frechet_distance(*gaussian(x), *gaussian(y)) == pytest.approx(expected, rel=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 12), n1=st.integers(2, 30), n2=st.integers(2, 30))
def test_is_a_symmetric_distance_that_rotations_do_not_change(seed, dim, n1, n2):
    x, y = cloud(seed, n1, dim), cloud(seed + 1, n2, dim)
    q, shift = rotation(np.random.default_rng(seed), dim), 0.7

    def distance(a, b):
        return frechet_distance(a.mean(0), np.atleast_2d(np.cov(a.T)), b.mean(0), np.atleast_2d(np.cov(b.T)))

    scale = 1 + np.trace(np.atleast_2d(np.cov(x.T))) + np.trace(np.atleast_2d(np.cov(y.T)))
    assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-6 * scale)
    assert distance(x @ q + shift, y @ q + shift) == pytest.approx(distance(x, y), abs=1e-6 * scale)
    assert distance(x, x) == pytest.approx(0, abs=1e-6 * scale)
    assert distance(x, x + shift) == pytest.approx(dim * shift**2, abs=1e-6 * scale)


def test_arrays_and_tensors_of_any_type_agree():
    one, two = gaussian(cloud(5, 50, 6)), gaussian(cloud(6, 50, 6))
    tensors = [torch.from_numpy(value) for value in (*one, *two)]
    assert frechet_distance(*tensors) == frechet_distance(*one, *two)
    halves = [value.float() for value in tensors]
    assert frechet_distance(*halves) == pytest.approx(frechet_distance(*one, *two), rel=1e-5)


def test_mistakes_are_named():
    eye, zero = np.eye(3), np.zeros(3)
    with pytest.raises(ValueError, match=r"sigma2 \[2, 2\]"):
        frechet_distance(zero, eye, zero, np.eye(2))
    with pytest.raises(ValueError, match=r"mu2 \[4\]"):
        frechet_distance(zero, eye, np.zeros(4), eye)
    with pytest.raises(ValueError, match=r"mu1 \[1, 3\]"):
        frechet_distance(zero[None], eye, zero, eye)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            frechet_distance(zero, np.full((3, 3), bad), zero, eye)


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 10**6))
def test_metric_is_exact_at_any_split(cuts, seed):
    x, y = cloud(seed, 60, 5), cloud(seed + 1, 60, 5)
    metric = FrechetDistance("pixels", 5)
    for real, data in ((True, x), (False, y)):
        for part in np.split(data, sorted(cuts)):
            metric.update(torch.from_numpy(part), real=real)
    assert float(metric.compute()) == pytest.approx(frechet_distance(*gaussian(x), *gaussian(y)), rel=1e-9, abs=1e-9)


def test_moments_are_those_of_numpy_even_far_from_zero():
    x = cloud(7, 40, 4) + 1000
    tensor = torch.from_numpy(x)
    mean, covariance = moments(40, tensor.sum(0), tensor.T @ tensor)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-8)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_can_keep_the_real_side():
    x, y, z = (torch.from_numpy(cloud(seed, 30, 4)) for seed in (1, 2, 3))
    metric = FrechetDistance("pixels", 4)
    metric.update(x, real=True)
    metric.update(y, real=False)
    metric.compute()
    metric.reset(real=False)
    metric.update(z, real=False)
    expected = frechet_distance(*gaussian(x.numpy()), *gaussian(z.numpy()))
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)
    metric.reset()
    with pytest.raises(ValueError, match="2 real samples; got 0"):
        metric.compute()


def test_sums_stay_float64_in_a_model_that_is_cast():
    x, y = (torch.from_numpy(cloud(seed, 30, 4)) for seed in (1, 2))
    holder = torch.nn.Module()
    holder.metric = FrechetDistance("pixels", 4)
    holder.bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        holder.metric.update(x, real=True)
    holder.metric.update(y, real=False)
    expected = frechet_distance(*gaussian(x.numpy()), *gaussian(y.numpy()))
    assert float(holder.metric.compute()) == pytest.approx(expected, rel=1e-9)


def test_ranks_add_up():
    x, y = (torch.from_numpy(cloud(seed, 30, 4)) for seed in (1, 2))
    ranks = [FrechetDistance("pixels", 4) for _ in range(2)]
    for rank, metric in enumerate(ranks):
        metric.update(x[rank::2], real=True)
        metric.update(y[rank::2], real=False)

    def gather(state, group=None):
        """What the other rank holds of the same state, found by its identity."""
        (name,) = [name for name in ranks[0]._defaults if getattr(ranks[0], name) is state]
        return [state, getattr(ranks[1], name)]

    ranks[0].sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert ranks[0].real_count == ranks[0].generated_count == 30
    both = [moments(ranks[0].real_count, ranks[0].real_sum, ranks[0].real_outer)]
    both.append(moments(ranks[0].generated_count, ranks[0].generated_sum, ranks[0].generated_outer))
    expected = frechet_distance(*gaussian(x.numpy()), *gaussian(y.numpy()))
    assert frechet_distance(*both[0], *both[1]) == pytest.approx(expected, rel=1e-9)


def test_few_samples_warn_or_are_refused():
    metric = FrechetDistance("inception", 8)
    assert metric.name == "frechet_inception"
    metric.update(torch.randn(20, 8), real=True)
    metric.update(torch.randn(1, 8), real=False)
    with pytest.raises(ValueError, match="frechet_inception needs at least 2 generated samples; got 1"):
        metric.compute()
    metric.update(torch.randn(7, 8), real=False)
    with pytest.warns(UserWarning, match="8 generated samples for 8 dimensions"):
        metric.compute()


def test_features_of_another_width_are_refused():
    metric = FrechetDistance("pixels", 8)
    for shape in ((4, 7), (4, 8, 1), (8,)):
        with pytest.raises(ValueError, match=r"features \[B, 8\]"):
            metric.update(torch.zeros(shape), real=True)
    with pytest.raises(ValueError, match="dim=0"):
        FrechetDistance("pixels", 0)


def test_a_point_against_a_gaussian_is_the_second_moment():
    """All samples alike: the covariance is zero, its factor empty."""
    mean, covariance = gaussian(cloud(8, 50, 4))
    expected = (mean**2).sum() + np.trace(covariance)
    assert frechet_distance(np.zeros(4), np.zeros((4, 4)), mean, covariance) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(mean, covariance, np.zeros(4), np.zeros((4, 4))) == pytest.approx(expected, rel=1e-12)
