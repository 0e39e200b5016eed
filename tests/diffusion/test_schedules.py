"""The schedules: f and g^2 against the derivatives of signal and variance, and the tables that discretise them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from neural_rdm.diffusion.schedules import VP_SCHEDULES, Cosine, Interpolant, Linear, ScaledLinear, Schedule

ALL = [Linear(), ScaledLinear(), ScaledLinear(0.00085, 0.012), Cosine(), Interpolant()]
TIMES = torch.linspace(0.001, 0.98, 50, dtype=torch.float64)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_f_and_g2_are_the_derivatives_that_they_stand_for(schedule: Schedule) -> None:
    t = TIMES.clone().requires_grad_()
    logarithm = schedule.signal(t).log()
    f = torch.autograd.grad(logarithm.sum(), t)[0] if logarithm.requires_grad else torch.zeros_like(t)
    (growth,) = torch.autograd.grad(schedule.variance(t).sum(), t)
    torch.testing.assert_close(schedule.f(TIMES), f, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.g2(TIMES), growth - 2 * f * schedule.variance(TIMES), rtol=1e-9, atol=1e-12)
    assert (schedule.g2(TIMES) > 0).all()


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_the_signal_falls_to_noise_and_some_schedules_preserve_variance(schedule: Schedule) -> None:
    power, variance = schedule.signal(TIMES).square(), schedule.variance(TIMES)
    assert ((power / variance).diff() < 0).all()
    if isinstance(schedule, tuple(VP_SCHEDULES.values())):
        torch.testing.assert_close(power + variance, torch.ones_like(power))


@pytest.mark.parametrize("schedule", [Linear(), ScaledLinear(), Cosine()], ids=str)
def test_the_discrete_alpha_bar_converges_to_the_continuous_one_at_first_order(schedule: Linear) -> None:
    t = TIMES[:-5]
    errors = []
    for count in (2000, 4000, 8000):
        betas = schedule.betas(count)
        if not isinstance(schedule, Cosine):
            betas = betas * 1000 / count  # the table of a schedule is made for 1000 steps
        log_bar = torch.log1p(-betas).cumsum(0)
        steps = (t * count).round().long()
        exact = schedule.signal(steps.double() / count).square().log()
        errors.append((log_bar[steps - 1] - exact).abs().max().item())
    if isinstance(schedule, Cosine):
        assert max(errors) < 1e-9  # its table is made from alpha_bar itself
        return
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.1)


def test_the_ends_are_those_of_the_papers() -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert Linear().beta(zero).item() == pytest.approx(0.1)
    assert Linear().beta(one).item() == pytest.approx(20)
    assert ScaledLinear().beta(one).item() == pytest.approx(19.5)
    assert Cosine().signal(one).square().item() < 1e-20
    assert Interpolant().variance(one) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_cosine_schedule_has_both_its_ends(dtype: torch.dtype) -> None:
    """pi / 2 is no floating-point number: beyond it the cosine is negative, and its logarithm no number."""
    ends, schedule = torch.tensor([0.0, 1.0], dtype=dtype), Cosine()
    assert schedule.variance(ends).tolist() == pytest.approx([0, 1], abs=1e-6)
    assert schedule.signal(ends).tolist() == pytest.approx([1, 0], abs=1e-6)
    zero = schedule.variance(ends)[0]
    assert zero >= 0
    assert not torch.signbit(zero)
    assert schedule.variance(ends).sqrt().isfinite().all()
    assert schedule.beta(ends)[1] > 1e7
    assert schedule.f(ends)[1] < -1e6


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="beta_start"):
        Linear(0.02, 0.01)
    with pytest.raises(ValueError, match="beta_start"):
        ScaledLinear(0.0, 0.01)
