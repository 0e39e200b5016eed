"""What a network is trained to minimise, one number per sample."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Positive, checked
from neural_rdm.diffusion import constraints
from neural_rdm.diffusion.process import DDPM, Flow, split_output
from neural_rdm.diffusion.times import LearnedTimes


@checked(constraints.enough_timesteps)
class DDPMObjective(nn.Module):
    """The training loss of DiT, Latte, DDPM, LDM and U-ViT.

    `simple` is the squared error of what the process says that the network predicts: epsilon (DDPM, eq. 14), v or x_0.
    `hybrid` adds, for a network that learns its variance, the variational bound in bits per dimension, which trains
    only that: the mean is detached (Improved DDPM, section 3.1). Its weight is 1 for
    any number T of timesteps, as in official DiT; Improved DDPM itself weighs it by T / 1000, the same at T = 1000.

    Args:
        process: the diffusion process.
        loss: `hybrid`, or `simple`, which leaves a learned variance out.
        min_snr_gamma: weigh the squared error so that x_0's has the weight min(SNR, gamma) (Hang et al. 2023, who take
            5); None for the weight 1 on whatever is predicted.
        learned_times: draws the training timesteps by importance, see `LearnedTimes`; None for uniform ones.

    Raises:
        ValueError: an unknown `loss`, a gamma that is not above 0, or learned times with more bins than timesteps.
    """

    def __init__(
        self,
        process: DDPM,
        loss: Literal["hybrid", "simple"] = "hybrid",
        min_snr_gamma: Positive | None = None,
        learned_times: LearnedTimes | None = None,
    ) -> None:
        super().__init__()
        self.process, self.hybrid, self.min_snr_gamma = process, loss == "hybrid", min_snr_gamma
        self.learned_times = learned_times

    def timesteps(self, u: Tensor) -> Tensor:
        """Timesteps int64 [B] in 0..T-1 from uniform numbers u [B] in [0, 1): uniform, or in training as learned."""
        if self.learned_times is not None and self.training:
            u = self.learned_times.times(u)
        count = self.process.num_timesteps
        # u just below 1 may round to 1 in float32
        return (u * count).long().clamp(max=count - 1)

    def loss(self, model_output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Per-sample losses [B] in float32 (float64 for float64 samples), also when the network ran in bfloat16.

        Args:
            model_output: [B, C or 2C, H, W] or [B, F, C or 2C, H, W], the network at (xt, t).
            x0: [B, C, H, W] or [B, F, C, H, W], the clean sample.
            xt: `process.q_sample(x0, t, noise)`.
            t: int64 [B].
            noise: standard normal, x0's shape.

        Returns:
            "loss", "mse" and, when hybrid with a learned variance, "vb" (bits per dimension); loss = mse + vb. With
            learned times each is divided by T times the probability of its t, so that its expectation is that of
            uniform timesteps (see `times`).

        Raises:
            ValueError: channels that do not fit.
        """
        dtype = torch.promote_types(x0.dtype, torch.float32)
        model_output, x0, xt, noise = (x.to(dtype) for x in (model_output, x0, xt, noise))
        predicted, v = split_output(model_output, x0.shape[-3])
        mse = _mean(torch.square(self.process.target(x0, t, noise) - predicted)) * self._weight(t, x0)
        losses = {"loss": mse, "mse": mse}
        if self.hybrid and v is not None:
            vb = self.bits(torch.cat([predicted.detach(), v], dim=-3), x0, xt, t)
            losses = {"loss": mse + vb, "mse": mse, "vb": vb}
        if self.learned_times is not None and self.training:
            return self.learned_times.weigh(losses, t, self.process.num_timesteps)
        return losses

    def _weight(self, t: Tensor, like: Tensor) -> Tensor | float:
        """The weight [B] of min-SNR on the error of what is predicted."""
        if self.min_snr_gamma is None:
            return 1.0
        snr = self.process.snr(t, like).flatten()
        # |x_0 error|^2 = |epsilon error|^2 / SNR = |v error|^2 / (SNR + 1)
        of_x0 = {"epsilon": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.process.prediction]
        return snr.clamp(max=self.min_snr_gamma) / of_x0

    def bits(self, model_output: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The term of the variational bound at t, bits per dimension [B] (Improved DDPM, eqs. 4 to 7).

        For t > 0, KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); at t = 0 the negative log-likelihood of x_0 in [-1, 1]
        cut into 256 levels.
        """
        true_mean, _, true_log_variance = self.process.q_posterior(x0, xt, t)
        mean, log_variance, _ = self.process.p_mean_variance(model_output, xt, t)
        divergence = _mean(normal_kl(true_mean, true_log_variance, mean, log_variance))
        likelihood = _mean(discretized_log_likelihood(x0, mean, log_variance / 2))
        return torch.where(t == 0, -likelihood, divergence) / math.log(2)


@checked()
class FlowObjective(nn.Module):
    """Flow matching: the squared error of the velocity along straight paths.

    Args:
        process: the path.
        logit_mean: centre of the logit-normal times (Stable Diffusion 3, section 3.1); above 0 leans towards noise.
        logit_std: their width; None for uniform times.

    Raises:
        ValueError: a width that is not above 0.
    """

    def __init__(self, process: Flow, logit_mean: float = 0.0, logit_std: Positive | None = 1.0) -> None:
        super().__init__()
        self.process, self.logit_mean, self.logit_std = process, logit_mean, logit_std

    def timesteps(self, u: Tensor) -> Tensor:
        """Times float32 [B] in [0, T] from uniform numbers u [B] in [0, 1)."""
        if self.logit_std is not None:
            inside = u.clamp(1e-6, 1 - 1e-6)  # the ends are infinitely far away
            u = torch.sigmoid(self.logit_mean + self.logit_std * torch.special.ndtri(inside))
        return (u * self.process.num_timesteps).float()

    def loss(self, model_output: Tensor, x0: Tensor, xt: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Per-sample losses "loss" and "mse" [B], equal; see `DDPMObjective.loss`. A learned variance is left out."""
        dtype = torch.promote_types(x0.dtype, torch.float32)
        predicted, _ = split_output(model_output.to(dtype), x0.shape[-3])
        mse = _mean(torch.square(self.process.target(x0.to(dtype), t, noise.to(dtype)) - predicted))
        return {"loss": mse, "mse": mse}


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(other_mean, exp(other_log_variance))) of each entry, in nats."""
    difference = log_variance - other_log_variance
    square = (mean - other_mean).square() * torch.exp(-other_log_variance)
    return 0.5 * (difference.exp() - 1 - difference + square)


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log P of the level of x (one of 256 in [-1, 1], each 2/255 wide) under N(mean, exp(log_scale)^2), in nats.

    The two outermost levels reach to infinity (DDPM, eq. 13). The normal distribution function is the official code's
    tanh approximation, so that losses can be compared with its.
    """
    upper = _normal_cdf((x - mean + 1 / 255) * torch.exp(-log_scale))
    lower = _normal_cdf((x - mean - 1 / 255) * torch.exp(-log_scale))
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def _mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(dim=1)
