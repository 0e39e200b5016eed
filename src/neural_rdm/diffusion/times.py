"""Importance sampling of training timesteps, with a distribution that is learned along with the network [O].

A monotone function u -> t(u) of [0, 1] turns uniform numbers into timesteps. The loss at timestep t is divided by
p_t = T (u((t + 1) / T) - u(t / T)), T times the probability of that timestep. So the expected loss and the expected
gradient are exactly those of uniform timesteps, whatever was learned; only their variance changes. The process is not
learned: the network is told t, f and g^2 stay those of `diffusion.process`, and no sampler reads this module. It is
*not* the "parameterized mean-variance scheduler" of the paper (Sec. 2.2), whose formula is lost.

Without that division the function would collapse: it would move to where the loss is smallest, to pure noise, and stay
there (a test shows it). With it the function minimises the estimate's variance (as the noise schedule of Variational
Diffusion Models, Kingma et al. 2021, does): the second moment E_p[(loss / p)^2], with gradient
-E_p[(loss / p)^2 d log p]. Its optimum is p proportional to the root mean square of the loss at t.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Fraction, above, at_least, checked


@checked()
class LearnedTimes(nn.Module):
    """A monotone, piecewise linear t(u) on [0, 1], which draws the training timesteps.

    Args:
        bins: pieces, equally wide in t; no more than there are timesteps.
        uniform: the share of the density that stays uniform, in (0, 1]; no loss weighs more than 1 / uniform.

    Raises:
        ValueError: fewer than two bins, or a share outside (0, 1].
    """

    def __init__(self, bins: Annotated[int, at_least(2)] = 32, uniform: Annotated[Fraction, above(0)] = 0.2) -> None:
        super().__init__()
        self.bins, self.uniform = bins, uniform
        self.logits = nn.Parameter(torch.zeros(bins))

    def density(self) -> Tensor:
        """du/dt in each bin [bins], float32 (float64 if the logits are); its mean is 1, at the start all of it is."""
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        free = logits.softmax(dim=0) * self.bins
        return self.uniform + (1 - self.uniform) * free

    @torch.no_grad()
    def times(self, u: Tensor) -> Tensor:
        """t(u) [B] in [0, 1] for u [B] in [0, 1], on the schedule's device and in the dtype of its density."""
        density = self.density()
        u = u.to(density.dtype).to(density.device, non_blocking=True)  # to float32 first: MPS has no float64
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / self.bins])
        index = (torch.searchsorted(edges, u, right=True) - 1).clamp(0, self.bins - 1)
        within = (u - edges[index]) * self.bins / density[index]  # share of the bin, in t
        return ((index + within) / self.bins).clamp(0, 1)

    def mass(self, t: Tensor, num_timesteps: int) -> Tensor:
        """p_t [B], T times the probability of the timesteps t int64 [B] in 0..T-1, exactly.

        With no more bins than timesteps, a timestep lies in one bin or across the border of two.
        """
        density, bins = self.density(), self.bins
        first = t * bins // num_timesteps
        border = (first + 1) * num_timesteps  # in units of 1 / (bins T), as t * bins is
        share = ((border - t * bins).to(density.dtype) / bins).clamp(max=1)  # of the timestep, in its first bin
        return share * density[first] + (1 - share) * density[(first + 1).clamp(max=bins - 1)]

    def weigh(self, losses: dict[str, Tensor], t: Tensor, num_timesteps: int) -> dict[str, Tensor]:
        """Per-sample losses [B] at t int64 [B], divided by `mass`.

        "loss" also carries the schedule's own gradient, by a term that is 0: the size of what is reported stays that
        of the denoising loss.
        """
        p = self.mass(t, num_timesteps)
        weighed = {name: value / p.detach() for name, value in losses.items()}
        own = -weighed["loss"].detach().square() * p.log()  # not normalised by the batch: ranks and micro-steps add up
        return weighed | {"loss": weighed["loss"] + (own - own.detach())}
