"""What holds for every metric of features: order, batches, ranks and resets do not change a number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm import metrics as package
from neural_rdm.metrics.feature_sets import canonical
from tests.helpers import two_processes
from tests.metrics.ranks import evaluation, every_metric, feed, merged, pictures, two_ranks, values

pytestmark = pytest.mark.filterwarnings("ignore:.*the covariance is singular", "ignore:The ``compute`` method")


@pytest.fixture(scope="module")
def whole():
    """All samples at once, in one process."""
    metrics = every_metric()
    feed(metrics, range(35), range(29))
    return values(metrics)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(35)), st.permutations(range(29)), st.integers(1, 12))
def test_order_and_batch_size_change_nothing(whole, real, generated, size):
    metrics = every_metric()
    for start in range(0, 35, size):
        feed(metrics, real[start : start + size], generated[start : start + size])
    assert values(metrics) == pytest.approx(whole, rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=35, max_size=35), st.lists(st.integers(0, 2), min_size=29, max_size=29))
def test_ranks_change_nothing(whole, real, generated):
    """Each sample on a rank of three, whichever: a rank may have none."""
    ranks = [every_metric() for _ in range(3)]
    for rank, metrics in enumerate(ranks):
        feed(metrics, *([i for i, owner in enumerate(side) if owner == rank] for side in (real, generated)))
    together = {name: merged([metrics[name] for metrics in ranks]) for name in ranks[0]}
    assert values(together) == pytest.approx(whole, rel=1e-9)


@pytest.mark.timeout(300)
def test_two_processes_agree_with_one(whole, tmp_path):
    two_processes(two_ranks, tmp_path)
    suite, (real, generated) = evaluation(), pictures()
    suite.update(real, real=True)
    suite.update(generated)
    expected = whole | suite.compute()
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(expected, rel=1e-9)


def test_reset_forgets_all_or_the_generated_side(whole):
    metrics = every_metric()
    for real in (True, False):
        feed(metrics, range(35), range(10))
        values(metrics)
        for name, metric in metrics.items():
            metric.reset() if name == "clip" else metric.reset(real=real)
    feed(metrics, [], range(29))
    assert values(metrics) == pytest.approx(whole, rel=1e-9)


def test_the_feature_space_is_part_of_every_name(whole):
    metrics = every_metric()
    assert all(metric.name.endswith("_test") for metric in metrics.values())
    assert metrics["few"].name == "frechet_test"
    assert set(whole) == {"few", "many", "clip", "precision_test", "recall_test"} | {
        f"{name}_test{end}" for name in ("inception_score", "kernel_distance") for end in ("", "_std")
    }


def test_the_package_exports_a_function_for_every_kernel():
    for name in package.__all__:
        assert callable(getattr(package, name))


def test_features_of_another_width_are_refused():
    for name, metric in every_metric().items():
        extra = {} if name in ("score", "clip") else {"real": True}
        given_ = (torch.zeros(4, 3), torch.zeros(4, 2)) if name == "clip" else (torch.zeros(4, 3),)
        with pytest.raises(ValueError, match=r"wants features"):
            metric.update(*given_, **extra)


@pytest.mark.parametrize("kind", [package.FrechetDistance, package.KernelDistance])
def test_a_buffer_may_be_used_again(kind):
    metric = kind("test", 6)
    buffer = torch.zeros(3, 6, dtype=kind.row_dtype)
    metric.update(buffer, real=True)
    buffer += 1
    assert not metric.rows("real").any()


def test_canonical_order_is_that_of_the_values():
    rows = torch.randn(50, 3).round()
    rows = torch.cat([rows, -rows, torch.zeros(2, 3)])  # ties, and zeros of both signs
    expected = canonical(rows)
    assert torch.equal(canonical(rows[torch.randperm(len(rows))]), expected)
    assert sorted(expected.tolist()) == sorted((rows + 0.0).tolist())
    assert canonical(rows[:0]).shape == (0, 3)


@pytest.mark.parametrize("kind", [package.KernelDistance, package.PrecisionRecall])
def test_stored_features_stand_for_the_real_side_through_resets(kind):
    real, generated = torch.randn(2, 30, 6)
    expected, found = kind("test", 6), kind("test", 6)
    assert found.takes_real
    expected.update(real, real=True)
    expected.update(generated, real=False)
    found.set_reference(real)
    assert not found.takes_real
    for _ in range(2):
        found.update(generated, real=False)
        assert found.compute() == expected.compute()
        found.reset()
    with pytest.raises(ValueError, match="generated features only"):
        found.update(real, real=True)
    with pytest.raises(ValueError, match="30 real samples; reset"):
        expected.set_reference(real)
