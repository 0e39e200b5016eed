"""The kernel distance against torch-fidelity, torchmetrics and the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_rdm.metrics import KernelDistance, kernel_distance
from tests.metrics.oracles import RANDOM_FEATURES, REAL_FEATURES, fidelity


def restated(x, y):
    """The unbiased estimator, pair by pair."""
    n, kernel = len(x), lambda a, b: (a @ b / len(a) + 1) ** 3
    within = sum(kernel(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 5)) + 0.5
    mean, std = kernel_distance(x, y, subsets=3, subset_size=20)
    assert mean == pytest.approx(restated(x, y), rel=1e-12)
    assert std == pytest.approx(0, abs=1e-14)  # every subset is all of them


@pytest.mark.parametrize("name", RANDOM_FEATURES | REAL_FEATURES)
def test_equals_torch_fidelity_for_its_seed(name):
    oracle = fidelity("metric_kid").kid_features_to_metric
    real, generated = (RANDOM_FEATURES | REAL_FEATURES)[name]()
    size = min(len(real), len(generated)) // 2
    options = {
        "kid_subsets": 10, "kid_subset_size": size, "kid_kernel": "poly", "kid_kernel_poly_degree": 3,
        "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1, "rng_seed": 7, "verbose": False,
    }  # fmt: skip
    expected = oracle(torch.from_numpy(generated).double(), torch.from_numpy(real).double(), **options)
    found = kernel_distance(real, generated, subsets=10, subset_size=size, seed=7)
    assert found[0] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6, abs=1e-12)
    assert found[1] == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", REAL_FEATURES)
def test_equals_torchmetrics(name):
    from torchmetrics.image.kid import poly_mmd

    real, generated = (torch.from_numpy(x).double()[:300] for x in REAL_FEATURES[name]())
    found, _ = kernel_distance(real, generated, subsets=1, subset_size=300)
    assert found == pytest.approx(float(poly_mmd(real, generated)), rel=1e-6)


def test_is_unbiased():
    """Over many draws from one distribution the mean is 0 within its error; a biased estimator's is far above."""
    generator = torch.Generator().manual_seed(0)
    draws = [
        kernel_distance(*torch.randn(2, 30, 4, generator=generator), subsets=1, subset_size=30)[0] for _ in range(300)
    ]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / 300**0.5


def test_the_metric_is_the_function_at_full_subsets():
    real, generated = torch.randn(40, 6), torch.randn(40, 6) + 1
    metric = KernelDistance("pixels", 6, subsets=1, subset_size=40)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    expected, _ = kernel_distance(real, generated, subsets=1, subset_size=40)
    assert float(metric.compute()["kernel_distance_pixels"]) == pytest.approx(expected, rel=1e-12)


def test_mistakes_are_named():
    x = torch.randn(9, 4)
    with pytest.raises(ValueError, match=r"subsets of 10 .* 9 real and 9 generated.* 2 ... 9"):
        kernel_distance(x, x, subset_size=10)
    with pytest.raises(ValueError, match=r"\[9, 5\]"):
        kernel_distance(x, torch.randn(9, 5), subset_size=4)
    with pytest.raises(ValueError, match="infinite"):
        kernel_distance(x, torch.full_like(x, torch.inf), subset_size=4)
