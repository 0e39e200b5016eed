"""What an epsilon-predicting network is trained to minimise, one number per sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from neural_rdm.diffusion.process import DDPM, split_output

LOSSES = ("hybrid", "simple")


class EpsilonObjective:
    """The training loss of DiT and Latte (`hybrid`) or of DDPM, LDM and U-ViT (`simple`).

    `simple` is the squared error of epsilon (DDPM, eq. 14). `hybrid` adds the variational bound in bits per dimension,
    which trains only the variance: the mean is detached (Improved DDPM, section 3.1, weighed as in official DiT).

    Args:
        process: the diffusion process.
        loss: `hybrid`, for networks with learn_sigma=true, or `simple`, for any; a learned variance is then left out.

    Raises:
        ValueError: an unknown `loss`.
    """

    def __init__(self, process: DDPM, loss: str = "hybrid") -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss={loss!r} is not one of {', '.join(LOSSES)}")
        self.process, self.hybrid = process, loss == "hybrid"

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform timesteps int64 [B] in 0..T-1 from uniform numbers u [B] in [0, 1)."""
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
            noise: what the network should predict, x0's shape.

        Returns:
            "loss", "mse" and, when hybrid, "vb" (bits per dimension, times T / 1000); loss = mse + vb.

        Raises:
            ValueError: hybrid without a learned variance, or channels that do not fit.
        """
        dtype = torch.promote_types(x0.dtype, torch.float32)
        model_output, x0, xt, noise = (x.to(dtype) for x in (model_output, x0, xt, noise))
        eps, v = split_output(model_output, x0.shape[-3])
        mse = _mean(torch.square(noise - eps))
        if not self.hybrid:
            return {"loss": mse, "mse": mse}
        if v is None:
            raise ValueError(
                "loss=hybrid trains a learned variance: build the network with learn_sigma=true, or set loss=simple"
            )
        vb = self.bits(torch.cat([eps.detach(), v], dim=-3), x0, xt, t) * (self.process.num_timesteps / 1000)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

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
