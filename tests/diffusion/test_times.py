"""Importance sampling of timesteps: monotone, unbiased, and drawn to where the loss is largest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.diffusion.times import LearnedTimes


def grid(count: int = 20_000) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def with_logits(logits: list[float], uniform: float = 0.2) -> LearnedTimes:
    times = LearnedTimes(len(logits), uniform)
    with torch.no_grad():
        times.logits.copy_(torch.tensor(logits))
    return times


def test_it_starts_as_the_uniform_schedule() -> None:
    torch.testing.assert_close(LearnedTimes(7).double().times(grid()), grid())


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=12), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_it_is_monotone_and_its_times_have_its_density(logits: list[float], uniform: float) -> None:
    times = with_logits(logits, uniform)
    t, density = times.times(grid()), times.density()
    assert (t.diff() >= 0).all()
    assert t.min() >= 0
    assert t.max() <= 1
    assert density.mean().item() == pytest.approx(1, abs=1e-5)
    assert density.min() > uniform * 0.999
    shares = torch.histc(t.float(), len(logits), 0, 1) / len(t)
    torch.testing.assert_close(shares, density.detach() / len(logits), rtol=0.02, atol=2e-3)


@given(st.lists(st.floats(-4, 4), min_size=2, max_size=12), st.integers(12, 60), st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_the_weighed_loss_has_exactly_the_expectation_of_uniform_timesteps(
    logits: list[float], count: int, uniform: float
) -> None:
    """The sum over all timesteps, in float64; bins and timesteps need not divide each other."""
    times = with_logits(logits, uniform).double()
    bins, t = len(logits), torch.arange(count)
    edges = np.concatenate([[0], np.cumsum(times.density().detach().numpy()) / bins])
    until = torch.from_numpy(np.interp(np.arange(count + 1) / count, np.arange(bins + 1) / bins, edges))  # u(t)
    losses = {"loss": (t * 1.0).sin().double() + 2, "mse": (t * 1.0).double()}
    weighed = times.weigh(losses, t, count)
    for name, loss in losses.items():
        assert (until.diff() * weighed[name]).sum().item() == pytest.approx(loss.mean().item(), rel=1e-12)
    objective = DDPMObjective(DDPM(num_timesteps=count), learned_times=times)
    for inside in (until[:-1] + 1e-9, until[1:] - 1e-9):
        assert torch.equal(objective.timesteps(inside), t)


def test_more_bins_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="bins=32"):
        DDPMObjective(DDPM(num_timesteps=31), learned_times=LearnedTimes(32))


def test_times_are_drawn_on_the_schedules_device() -> None:
    # meta tensors have no values: whatever would copy one to the host fails on them
    assert LearnedTimes(4).to("meta").times(grid(8)).device.type == "meta"


def trained(loss: Tensor, literal: bool) -> Tensor:
    """The density after training on a loss that depends on t alone, [bins]."""
    times, bins = LearnedTimes(len(loss), uniform=0.05), len(loss)
    optimizer = torch.optim.Adam(times.parameters(), lr=0.05)
    u = grid(2048)
    for _ in range(400):
        t = times.times(u)
        value = loss[(t * bins).long().clamp(max=bins - 1)]
        if literal:  # the plain denoising loss of the times that the schedule gives
            p = times.density()[(t * bins).long().clamp(max=bins - 1)]
            total = (value * p.log()).mean()
        else:
            total = times.weigh({"loss": value}, (t * 2048).long().clamp(max=2047), 2048)["loss"].mean()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return times.density().detach()


def test_it_learns_the_density_of_least_variance() -> None:
    loss = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(trained(loss, literal=False).double(), loss / loss.mean(), rtol=0.03, atol=0)


def test_on_the_plain_loss_it_would_collapse_to_where_the_loss_is_smallest() -> None:
    """Why the paper's words are not taken more literally than this: the network would see one noise level only."""
    density = trained(torch.tensor([4.0, 2.0, 1.0, 0.5], dtype=torch.float64), literal=True)
    assert density.argmax() == 3
    assert density[3] > 3.5
    assert density[:3].max() < 0.2


def test_only_training_follows_it_and_its_term_is_zero() -> None:
    times = with_logits([3.0, 0.0, 0.0, 0.0])
    objective = DDPMObjective(DDPM(), "simple", learned_times=times)
    u = grid(1000).float()
    assert (objective.timesteps(u) < 250).float().mean() > 0.6
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 300, 600, 999])
    losses = objective.loss(0 * x, x, x, t, x)
    torch.testing.assert_close(losses["loss"], losses["mse"], rtol=1e-6, atol=0)
    losses["loss"].mean().backward()
    assert times.logits.grad.abs().max() > 0
    objective.eval()
    assert torch.equal(objective.timesteps(u), DDPMObjective(DDPM(), "simple").timesteps(u))
    assert torch.equal(objective.loss(0 * x, x, x, t, x)["loss"], x.square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("arguments", [{"bins": 1}, {"uniform": 0.0}, {"uniform": 1.5}])
def test_impossible_schedules_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        LearnedTimes(**arguments)
