"""Depth as time: the three checks of the theory, in float64, with data whose score is known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from neural_rdm.diffusion.schedules import Cosine, Interpolant, Linear, ScaledLinear, Schedule
from neural_rdm.dynamics.ode import GatedStack, GaussianData, gated_stack, pf_ode, recover_gates, schedule_of

SCHEDULES = [Linear(), ScaledLinear(), Cosine(), Interpolant()]
START, END = 0.9, 0.05


def data(schedule: Schedule) -> GaussianData:
    """Means other than 0 and variances other than 1 and from one another: else drift and score are collinear."""
    numbers = [[0.5, -1.0, 2.0], [0.3, 1.5, 4.0]]
    return GaussianData(*torch.tensor(numbers, dtype=torch.float64), schedule)


def noisy(gaussian: GaussianData, time: float = START, count: int = 256) -> Tensor:
    mean, variance = gaussian.moments(torch.tensor(time, dtype=torch.float64))
    normal = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return mean + variance.sqrt() * normal


def times(count: int, start: float = START, end: float = END) -> Tensor:
    return torch.linspace(start, end, count + 1, dtype=torch.float64)


def orders(errors: list[float]) -> list[float]:
    """Convergence orders between consecutive halvings of the step."""
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_score_is_the_gradient_of_the_log_density(schedule: Schedule) -> None:
    gaussian, t = data(schedule), torch.tensor(0.4, dtype=torch.float64)
    z = noisy(gaussian, 0.4, 5).requires_grad_()
    mean, variance = gaussian.moments(t)
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(z).sum()
    torch.testing.assert_close(gaussian.score(z, t), torch.autograd.grad(density, z)[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_exact_flow_solves_the_pf_ode(schedule: Schedule) -> None:
    gaussian, start = data(schedule), torch.tensor(START, dtype=torch.float64)
    z, t = noisy(gaussian), torch.tensor(0.4, dtype=torch.float64)
    state, velocity = torch.func.jvp(lambda end: gaussian.flow(z, start, end), (t,), (torch.ones_like(t),))
    torch.testing.assert_close(velocity, pf_ode(schedule, gaussian.score)(state, t), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_one_unit_of_a_gated_stack_is_one_euler_step(schedule: Schedule) -> None:
    gaussian, steps = data(schedule), times(4)
    stack, z = gated_stack(schedule, steps, gaussian.score, 3), noisy(gaussian)
    euler = z + (steps[1] - steps[0]) * pf_ode(schedule, gaussian.score)(z, steps[0])
    torch.testing.assert_close(stack.step(0, z), euler, rtol=1e-12, atol=1e-12)
    assert all(unit.alpha > 0 for unit in stack.units)  # -1/2 g^2 dt, and dt < 0 when denoising


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_the_gated_stack_converges_to_the_exact_solution_at_first_order(schedule: Schedule) -> None:
    gaussian = data(schedule)
    z, errors = noisy(gaussian), []
    for count in (32, 64, 128, 256):
        steps = times(count)
        found = gated_stack(schedule, steps, gaussian.score, 3)(z)
        errors.append((found - gaussian.flow(z, steps[0], steps[-1])).abs().max().item())
    assert orders(errors) == pytest.approx([1, 1, 1], abs=0.12), errors


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_b_training_the_gates_alone_recovers_the_schedule_at_first_order(schedule: Schedule) -> None:
    gaussian = data(schedule)
    z, errors = noisy(gaussian), []
    for count in (16, 32, 64):
        steps = times(count)
        states = torch.stack([gaussian.flow(z, steps[0], t) for t in steps])
        stack = GatedStack(steps, gaussian.score, 3)
        recover_gates(stack, states, iterations=15)
        f, g2 = (found.squeeze(1) for found in schedule_of(stack))
        wrong = [(f - schedule.f(steps[:-1])).abs(), (g2 - schedule.g2(steps[:-1])).abs()]
        sizes = [schedule.f(steps[:-1]).abs().mean() or 1.0, schedule.g2(steps[:-1]).mean()]
        errors.append([(w.mean() / size).item() for w, size in zip(wrong, sizes, strict=True)])
    for of_one in zip(*errors, strict=True):
        assert orders(list(of_one)) == pytest.approx([1, 1], abs=0.25), errors
        assert of_one[-1] < 0.1


def test_b_nothing_is_identifiable_where_drift_and_score_are_collinear() -> None:
    """Data of mean 0 and variance 1 under a variance-preserving schedule stay where they are: f z and the score cancel,
    and any gates with alpha = beta fit.
    """
    schedule = Linear()
    gaussian = GaussianData(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64), schedule)
    z, t = noisy(gaussian), torch.tensor(0.5, dtype=torch.float64)
    assert pf_ode(schedule, gaussian.score)(z, t).abs().max() < 1e-12
    drift, score = schedule.f(t) * z, gaussian.score(z, t)
    assert torch.linalg.matrix_rank(torch.stack([drift.flatten(), score.flatten()])) == 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_c_the_pf_ode_keeps_the_marginals_of_the_sde(schedule: Schedule) -> None:
    """Eq. 23-25: the same samples by Euler-Maruyama and by the stack have the same moments at every checked time."""
    gaussian, steps = data(schedule), times(200, END, 0.8)
    generator, count = torch.Generator().manual_seed(1), 8_000
    random = by_ode = noisy(gaussian, END, count)
    ode = gated_stack(schedule, steps, gaussian.score, 3)
    for i, (t, dt) in enumerate(zip(steps, steps.diff(), strict=False)):
        noise = torch.randn(random.shape, dtype=torch.float64, generator=generator)
        random = random + schedule.f(t) * random * dt + (schedule.g2(t) * dt).sqrt() * noise
        by_ode = ode.step(i, by_ode)
        if i % 66 == 65:
            mean, variance = gaussian.moments(steps[i + 1])
            for z in (random, by_ode):
                deviation = (z.mean(0) - mean).abs() / variance.sqrt()
                assert deviation.max() < 5 / math.sqrt(count) + 0.02
                torch.testing.assert_close(z.var(0), variance, rtol=0.06, atol=0)
