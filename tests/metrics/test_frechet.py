"""The Frechet distance against closed forms and scipy's matrix square root; the metric against one-shot moments."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.metrics.frechet import FrechetDistance, frechet_distance, moments
from tests.helpers import shared
from tests.metrics.oracles import RANDOM_FEATURES, REAL_FEATURES, fidelity
from tests.metrics.ranks import merged


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

    merged(ranks)
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


def metric_of(real, generated, **options):
    metric = FrechetDistance("test", real.shape[1], **options)
    metric.update(torch.as_tensor(real), real=True)
    metric.update(torch.as_tensor(generated), real=False)
    return metric


def by_nuclear_norm(x, y):
    xc, yc = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    trace = np.linalg.norm(xc @ yc.T, "nuc")
    return ((x.mean(0) - y.mean(0)) ** 2).sum() + (xc**2).sum() + (yc**2).sum() - 2 * trace


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
@pytest.mark.parametrize(("n1", "n2"), [(10, 14), (39, 2), (10, 200), (200, 10), (40, 40), (60, 70)])
def test_kept_features_are_exact_and_sums_agree(n1, n2):
    x, y = cloud(3, n1, 40), cloud(4, n2, 40)
    expected = by_nuclear_norm(x, y)
    assert float(metric_of(x, y).compute()) == pytest.approx(expected, rel=1e-11 if max(n1, n2) < 40 else 1e-8)
    for keep in (0, 5, 1000):
        assert float(metric_of(x, y, keep=keep).compute()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
def test_no_covariance_is_built_below_the_dimension():
    metric = metric_of(cloud(3, 10, 40), cloud(4, 200, 40))
    assert not metric.real_outer.any()
    assert len(metric.rows("real")) == 10
    assert metric.generated_outer.any()
    assert len(metric.rows("generated")) == 0


@pytest.mark.filterwarnings("ignore:.*the covariance is singular")
def test_kept_features_lose_nothing_far_from_zero():
    x, y = cloud(3, 10, 40), cloud(4, 14, 40)
    far = float(metric_of(x + 1e6, y + 1e6).compute())
    assert far == pytest.approx(by_nuclear_norm(x, y), rel=1e-7)


def test_ranks_that_kept_and_ranks_that_summed_add_up():
    x, y = cloud(1, 50, 12), cloud(2, 50, 12)
    ranks = [metric_of(x[:45], y[:3]), metric_of(x[45:], y[3:])]
    expected = frechet_distance(*gaussian(x), *gaussian(y))
    assert float(merged(ranks).compute()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_stored_moments_stand_for_the_real_side():
    x, y = cloud(1, 100, 6), cloud(2, 100, 6)
    metric = FrechetDistance("inception", 6)
    metric.set_reference(*gaussian(x), count=100)
    expected = frechet_distance(*gaussian(x), *gaussian(y))
    for _ in range(2):
        metric.update(torch.from_numpy(y), real=False)
        assert float(metric.compute()) == pytest.approx(expected, rel=1e-9)
        metric.reset()
    with pytest.raises(ValueError, match="generated features only"):
        metric.update(torch.from_numpy(x), real=True)


def test_stored_moments_against_few_kept_features():
    x, y = cloud(1, 100, 20), cloud(2, 9, 20)
    metric = FrechetDistance("inception", 20)
    metric.set_reference(*gaussian(x))
    metric.update(torch.from_numpy(y), real=False)
    with pytest.warns(UserWarning, match="9 generated samples for 20 dimensions"):
        assert float(metric.compute()) == pytest.approx(by_nuclear_norm(x, y), rel=1e-8)
    metric.set_reference(*gaussian(x), count=20)
    metric.update(torch.from_numpy(y), real=False)
    with pytest.warns(UserWarning, match="20 real samples for 20 dimensions"):
        metric.compute()


def test_stored_moments_that_do_not_fit_are_refused():
    mean, cov = gaussian(cloud(1, 30, 4))
    metric = FrechetDistance("inception", 5)
    with pytest.raises(ValueError, match=r"mu \[5\] and sigma \[5, 5\]; got \[4\] and \[4, 4\]"):
        metric.set_reference(mean, cov)
    with pytest.raises(ValueError, match="NaN or infinity"):
        FrechetDistance("inception", 4).set_reference(mean * np.nan, cov)
    used = metric_of(cloud(1, 30, 4), cloud(2, 30, 4))
    with pytest.raises(ValueError, match="30 real samples; reset"):
        used.set_reference(mean, cov)


@pytest.mark.parametrize("keep", [0, None])
def test_features_that_are_not_finite_are_refused(keep):
    metric = metric_of(cloud(1, 30, 4), np.full((3, 4), np.nan), keep=keep)
    with pytest.raises(ValueError, match="generated features hold NaN"):
        metric.compute()


@pytest.mark.parametrize("name", RANDOM_FEATURES | REAL_FEATURES)
def test_equals_torch_fidelity_and_torchmetrics(name):
    from torchmetrics.image.fid import _compute_fid

    real, generated = (x.astype(np.float64) for x in (RANDOM_FEATURES | REAL_FEATURES)[name]())
    found = float(metric_of(real, generated).compute())
    (mu1, cov1), (mu2, cov2) = moments_ = gaussian(real), gaussian(generated)
    peer = _compute_fid(*map(torch.from_numpy, (mu1, cov1, mu2, cov2)))
    assert found == pytest.approx(float(peer), rel=1e-6)
    one, two = ({"mu": mu, "sigma": cov} for mu, cov in moments_)
    oracle = fidelity("metric_fid").fid_statistics_to_metric(one, two, verbose=False)
    assert found == pytest.approx(oracle["frechet_inception_distance"], rel=1e-6)


def test_published_values_that_need_no_weights():
    oracle = json.loads(shared("data/oracles/published_metric_values.json").read_text())["pytorch_fid"]
    eye = np.eye(2048)
    expected = oracle["equal_identity_cov_mu0_vs_mu1_dim2048"]["fid"]
    assert frechet_distance(np.zeros(2048), eye, np.ones(2048), eye) == pytest.approx(expected, rel=1e-12)
    grey = torch.tensor([0, 127, 255], dtype=torch.float64)[:, None].expand(3, 3) / 255  # mean-pooled features
    mean, cov = moments(3, grey.sum(0), grey.T @ grey)
    stats = oracle["stats_of_three_constant_images_0_127_255_with_mean_pool_features"]
    np.testing.assert_allclose(mean, stats["mu"], atol=1e-3)  # pytorch-fid's own tolerances
    np.testing.assert_allclose(cov, stats["sigma_all_entries"], rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), copies=st.integers(2, 5))
def test_duplicates_only_shrink_the_unbiased_covariance(seed, copies):
    """Each sample `copies` times: the mean stays, the covariance is multiplied by c (n - 1) / (c n - 1)."""
    x = cloud(seed, 40, 5)
    factor = copies * 39 / (copies * 40 - 1)
    expected = np.trace(np.cov(x.T)) * (1 - factor**0.5) ** 2
    assert float(metric_of(x, np.repeat(x, copies, 0)).compute()) == pytest.approx(expected, abs=1e-10)
