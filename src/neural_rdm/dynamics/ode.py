"""Depth as time (paper, Sec. 2.2; theory sections 2 and 3): a gated stack is the Euler discretisation of an ODE.

    gating-residual ODE, Eq. 4, 18 [R]     dz/dtau = alpha(tau) F(z, tau) + beta(tau)
    probability-flow ODE, Eq. 6, 21 [R]    dz/dt   = f(t) z - 1/2 g(t)^2 grad log p_t(z)

Set side by side, F is the score, beta stands for the drift f and alpha for -1/2 g^2, each times the step. For Gaussian
data the score is known and linear, so all of this can be checked to the last digit: `gated_stack` builds the units,
`recover_gates` trains them, `schedule_of` reads the schedule back out of the gates.

That the gates recover f and g^2 holds under two conditions: the branches are the exact score of Gaussian data, and
the exact states of the ODE are given as targets at every depth. It says nothing of the gates of a network that is
trained on a denoising loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.diffusion.schedules import Schedule
from neural_rdm.residual import Residual

Score = Callable[[Tensor, Tensor], Tensor]  # z [B, D], t [] -> grad log p_t(z) [B, D]


def pf_ode(schedule: Schedule, score: Score) -> Score:
    """The right-hand side of the probability-flow ODE (Eq. 6, 21 [R]): (z [B, D], t []) -> dz/dt [B, D]."""
    return lambda z, t: schedule.f(t) * z - 0.5 * schedule.g2(t) * score(z, t)


@dataclass(frozen=True)
class GaussianData:
    """Data x_0 ~ N(mean, diag(variance)), for which every quantity of the theory is known.

    Args:
        mean: [D].
        variance: [D], above 0.
        schedule: what noise does to them.
    """

    mean: Tensor
    variance: Tensor
    schedule: Schedule

    def moments(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [D] of z_t."""
        signal = self.schedule.signal(t)
        return signal * self.mean, signal.square() * self.variance + self.schedule.variance(t)

    def score(self, z: Tensor, t: Tensor) -> Tensor:
        """grad log p_t at z [B, D]."""
        mean, variance = self.moments(t)
        return (mean - z) / variance

    def flow(self, z: Tensor, start: Tensor, end: Tensor) -> Tensor:
        """The exact solution at `end` of the PF-ODE that is at z [B, D] at `start`: z keeps its standard score."""
        (mean, variance), (mean_end, variance_end) = self.moments(start), self.moments(end)
        return mean_end + (variance_end / variance).sqrt() * (z - mean)


class GatedStack(nn.Module):
    """N gated units in a row, unit i over the step from times[i] to times[i + 1], with branch F_i = score(., times[i]).

    The gates carry the step: alpha_i = -1/2 g^2(t_i) dt_i, beta_i = f(t_i) dt_i with dt_i = t_{i+1} - t_i, below 0 when
    denoising. They use `beta_form=linear`, beta * z: the drift of every schedule is linear in z.

    Args:
        times: [N + 1], monotone.
        score: the branches, which are not trained.
        dim: D.
        granularity: `scalar` (the schedule has one f and g^2 for all channels) or `channel`.
    """

    def __init__(self, times: Tensor, score: Score, dim: int, granularity: Any = "scalar") -> None:
        super().__init__()
        self.times, self.score = times, score
        rule = Residual("gated", granularity=granularity, beta_form="linear")
        self.units = nn.ModuleList(rule.unit(dim) for _ in range(len(times) - 1)).to(times.dtype)

    def step(self, index: int, z: Tensor) -> Tensor:
        """Unit `index` applied to z [B, D]."""
        unit: nn.Module = self.units[index]
        result: Tensor = unit(z, lambda h: self.score(h, self.times[index]))
        return result

    def forward(self, z: Tensor) -> Tensor:
        """z [B, D] at times[0] -> [B, D] at times[N]."""
        for index in range(len(self.units)):
            z = self.step(index, z)
        return z


@torch.no_grad()
def gated_stack(schedule: Schedule, times: Tensor, score: Score, dim: int, granularity: Any = "scalar") -> GatedStack:
    """The stack whose gates come from a schedule: one Euler step of the PF-ODE a unit. See `GatedStack`."""
    stack = GatedStack(times, score, dim, granularity)
    for unit, t, dt in zip(stack.units, times, times.diff(), strict=False):
        unit.get_parameter("alpha").fill_(-0.5 * schedule.g2(t) * dt)
        unit.get_parameter("beta").fill_(schedule.f(t) * dt)
    return stack


def schedule_of(stack: GatedStack) -> tuple[Tensor, Tensor]:
    """f and g^2 at times[:-1], as the stack's gates have them, each [N, gates]."""
    dt = stack.times.diff().unsqueeze(1)
    alpha = torch.stack([unit.get_parameter("alpha").detach() for unit in stack.units])
    beta = torch.stack([unit.get_parameter("beta").detach() for unit in stack.units])
    return beta / dt, -2 * alpha / dt


def recover_gates(stack: GatedStack, states: Tensor, iterations: int = 50) -> Tensor:
    """Train the gates alone, from 0, so that each unit maps the state at its depth to the state at the next one.

    The branches stay frozen. The objective is a sum of squares, one for each unit (L-BFGS, at most `iterations`).

    Args:
        states: [N + 1, B, D], exact solutions of the PF-ODE at the stack's times.

    Returns:
        The mean squared error that is left, [].
    """
    for parameter in stack.parameters():
        nn.init.zeros_(parameter)
    left = []
    for index, unit in enumerate(stack.units):
        # with the earlier states given, no unit's error depends on another's gates
        left.append(_fit(unit, partial(stack.step, index, states[index]), states[index + 1], iterations))
    return torch.stack(left).mean()


def _fit(unit: nn.Module, run: Callable[[], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Train one unit's gates; returns its mean squared error."""
    optimizer = torch.optim.LBFGS(
        unit.parameters(), max_iter=iterations, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    scale = (run().detach() - target).square().mean()  # gates at 0: the whole step

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (run() - target).square().mean() / scale
        loss.backward()
        return loss

    optimizer.step(closure)
    return (run().detach() - target).square().mean()
