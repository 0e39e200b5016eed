"""The paper's "parameterized mean-variance scheduler" (Sec. 2.2) taken literally [O]: a schedule that is learned.

A monotone function u -> t(u) of [0, 1] says how fast the noise level moves: signal and variance at u are the process's
at t(u), with drift f(t(u)) t'(u) and diffusion g^2(t(u)) t'(u). The network is still told t, so that what a number
means to it does not change while the function is trained.

Trained on the plain denoising loss such a schedule collapses: it moves to where the loss is smallest, to pure noise,
and stays there (a test shows it). So the loss is divided by the density p(t) = du/dt, which makes its expectation the
same for every schedule (of whole timesteps nearly so: one that straddles two bins has the weight of its middle; with
1000 timesteps the mean loss moved by less than 0.1 % in a measurement), and the schedule minimises the variance of that
estimate (as the noise schedule of Variational Diffusion Models, Kingma et al. 2021, does): the second moment
E_p[(loss / p)^2], with gradient -E_p[(loss / p)^2 d log p]. Its optimum is p proportional to the root mean square of
the loss at t. This choice is ours; the paper has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedTimes(nn.Module):
    """A monotone, piecewise linear t(u) on [0, 1], trained with the denoising loss.

    Args:
        bins: pieces, equally wide in t.
        uniform: the share of the density that stays uniform, in (0, 1]; no loss weighs more than 1 / uniform.

    Raises:
        ValueError: fewer than two bins, or a share outside (0, 1].
    """

    def __init__(self, bins: int = 32, uniform: float = 0.2) -> None:
        super().__init__()
        if bins < 2 or not 0 < uniform <= 1:
            raise ValueError(f"need bins={bins} of at least 2 and uniform={uniform} in (0, 1]")
        self.uniform = uniform
        self.logits = nn.Parameter(torch.zeros(bins))

    def density(self) -> Tensor:
        """p(t) = du/dt in each bin [bins], float32; its mean is 1, and at the start it is 1 everywhere."""
        free = self.logits.float().softmax(dim=0) * len(self.logits)
        return self.uniform + (1 - self.uniform) * free

    @torch.no_grad()
    def times(self, u: Tensor) -> Tensor:
        """t(u) [B] in [0, 1] for u [B] in [0, 1]."""
        density = self.density().double().to(u.device)
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / len(density)])
        index = (torch.searchsorted(edges, u.double(), right=True) - 1).clamp(0, len(density) - 1)
        within = (u - edges[index]) * len(density) / density[index]  # share of the bin, in t
        return ((index + within) / len(density)).clamp(0, 1).to(u.dtype)

    def weigh(self, losses: dict[str, Tensor], t: Tensor) -> dict[str, Tensor]:
        """Per-sample losses [B] at t [B] in [0, 1), divided by the density.

        "loss" also carries the schedule's own gradient, by a term that is 0: the size of what is reported stays that
        of the denoising loss.
        """
        p = self.density()[(t * len(self.logits)).long().clamp(max=len(self.logits) - 1)]
        weighed = {name: value / p.detach() for name, value in losses.items()}
        own = -weighed["loss"].detach().square() * p.log()  # not normalised by the batch: ranks and micro-steps add up
        return weighed | {"loss": weighed["loss"] + (own - own.detach())}
