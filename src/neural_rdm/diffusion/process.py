"""The diffusion process: what the noise does at each timestep, and what one step back looks like.

Notation of DDPM (Ho et al. 2020): beta_t is the variance of the noise added at step t, alpha_bar_t the product of
(1 - beta_s) for s <= t, and x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. Timesteps count from 0 (nearly
clean) to T - 1 (nearly noise).

Flows keep that direction and that unit: t runs from 0 (data) to T (pure noise), with T = num_timesteps = 1000, so that
one timestep embedding serves both kinds of process. SiT's own code and weights turn both round: s in [0, 1] with the
data at s = 1, x_s = s x_0 + (1 - s) eps, and the velocity d x_s / ds = x_0 - eps. Hence t = 1000 (1 - s), and the
velocity here, eps - x_0, is minus SiT's. `diffusion.process.num_timesteps=1` makes t the share 1 - s.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from neural_rdm.core import noise as tables
from neural_rdm.core.arguments import Count, Fraction, checked
from neural_rdm.diffusion import constraints
from neural_rdm.diffusion.schedules import VP_SCHEDULES


@checked(constraints.betas_ascend)
class DDPM:
    """A discrete variance-preserving process, and what the network says of it.

    Samples are images [B, C, H, W] or clips [B, F, C, H, W]; t is an int64 tensor [B] on the samples' device. The
    tables are float64; each is gathered in the sample's dtype, on its device, without making the host wait.

    Args:
        schedule: `linear` (DiT, Latte, ADM), `scaled_linear` (LDM, Stable Diffusion) or `cosine` (Improved DDPM); see
            `diffusion.schedules`.
        num_timesteps: T.
        beta_start: the first beta; None for the schedule's own (`cosine` has none to choose).
        beta_end: the last beta.
        prediction: what the network predicts: `epsilon`, `v` = signal * eps - noise * x_0 (Salimans and Ho 2022), or
            `x0`.

    Attributes:
        betas: float64 [T].
        alphas_cumprod: alpha_bar, float64 [T].
        usable: how many of the timesteps, from 0 on, samplers visit; see `core.noise.LEAST_ALPHA_BAR`.

    Raises:
        ValueError: an unknown schedule or prediction, T < 1, betas that are not 0 < beta_start <= beta_end < 1, or
            betas for a schedule that has none.
    """

    def __init__(
        self,
        schedule: Literal["linear", "scaled_linear", "cosine"] = "linear",
        num_timesteps: Count = 1000,
        beta_start: Fraction | None = None,
        beta_end: Fraction | None = None,
        prediction: Literal["epsilon", "v", "x0"] = "epsilon",
    ) -> None:
        ends = {k: v for k, v in (("beta_start", beta_start), ("beta_end", beta_end)) if v is not None}
        self.prediction = prediction
        self._fill(VP_SCHEDULES[schedule](**ends).betas(num_timesteps))

    def _fill(self, betas: Tensor) -> None:
        self.betas = betas
        self.alphas_cumprod = bar = torch.cumprod(1 - betas, dim=0)
        self.usable = tables.usable(bar.tolist())
        before = torch.cat([bar.new_ones(1), bar[:-1]])
        variance = betas * (1 - before) / (1 - bar)
        # The posterior variance of step 0 is 0. Its logarithm is taken from step 1, as Improved DDPM does.
        log_variance = torch.cat([variance[1:2] if len(betas) > 1 else betas[:1], variance[1:]]).log()
        self._tables = {
            "signal": bar.sqrt(),
            "noise": (1 - bar).sqrt(),
            "snr": bar / (1 - bar),
            "log_beta": betas.log(),
            "fixed_large": torch.cat([log_variance[:1], betas[1:].log()]),
            "posterior_x0": betas * before.sqrt() / (1 - bar),
            "posterior_xt": (1 - before) * (1 - betas).sqrt() / (1 - bar),
            "posterior_variance": variance,
            "posterior_log_variance": log_variance,
        }
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps."""
        return len(self.betas)

    def _at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """Table `name` at t [B], shaped to broadcast with x [B, ...]."""
        key = (name, x.device, x.dtype)
        if key not in self._copies:
            self._copies[key] = self._tables[name].to(x.device, x.dtype)
        return self._copies[key][t].view(-1, *[1] * (x.dim() - 1))

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_0 and standard normal noise of the same shape (DDPM, eq. 4)."""
        return self._at("signal", t, x0) * x0 + self._at("noise", t, x0) * noise

    def snr(self, t: Tensor, like: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) at t [B], shaped to broadcast with `like` [B, ...]."""
        return self._at("snr", t, like)

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict at `q_sample(x0, t, noise)`."""
        if self.prediction == "v":
            return self._at("signal", t, x0) * noise - self._at("noise", t, x0) * x0
        return noise if self.prediction == "epsilon" else x0

    def predict_x0(self, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x_0 as the network's output [B, C or 2C, ...] at (xt, t) has it; not clipped: latents have no fixed range.

        Raises:
            ValueError: the output has neither C nor 2C channels.
        """
        predicted, _ = split_output(model_output.to(xt.dtype), xt.shape[-3])
        if self.prediction == "epsilon":
            return (xt - self._at("noise", t, xt) * predicted) / self._at("signal", t, xt)
        if self.prediction == "v":
            return self._at("signal", t, xt) * xt - self._at("noise", t, xt) * predicted
        return predicted

    def q_posterior(self, x0: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q(x_{t-1} | x_t, x_0): mean, variance and clipped log-variance, each of x's shape (DDPM, eqs. 6 and 7)."""
        mean = self._at("posterior_x0", t, xt) * x0 + self._at("posterior_xt", t, xt) * xt
        variance = self._at("posterior_variance", t, xt)
        log_variance = self._at("posterior_log_variance", t, xt)
        return mean, variance.expand_as(xt), log_variance.expand_as(xt)

    def p_mean_variance(self, model_output: Tensor, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p(x_{t-1} | x_t) as the network predicts it.

        Args:
            model_output: `prediction` with x's C channels (the variance is then beta, "fixed large", the default of
                official DiT and ADM; at t = 0 that of the posterior at t = 1), or 2C channels on dimension -3: the
                prediction, then v in about [-1, 1], which interpolates the log-variance between the posterior's (-1)
                and log beta (1) (Improved DDPM, eq. 15).
            xt: [B, C, H, W] or [B, F, C, H, W].
            t: int64 [B].

        Returns:
            mean, log-variance and predicted x_0, each of x's shape.

        Raises:
            ValueError: the output has neither C nor 2C channels.
        """
        x0 = self.predict_x0(model_output, xt, t)
        _, v = split_output(model_output.to(xt.dtype), xt.shape[-3])
        mean, _, small = self.q_posterior(x0, xt, t)
        if v is None:
            return mean, self._at("fixed_large", t, xt).expand_as(xt), x0
        return mean, torch.lerp(small, self._at("log_beta", t, xt).expand_as(xt), (v + 1) / 2), x0


@checked()
class Flow:
    """The straight path x_t = (1 - t/T) x_0 + (t/T) eps of flow matching; the network predicts its velocity, eps - x_0.

    Times are float [B] in [0, T], as the network is told them: real numbers, not indices (Lipman et al. 2023; Liu et
    al. 2023; SiT's linear path in this module's direction of time, see above).

    Args:
        num_timesteps: T, the number that the network knows pure noise by.

    Raises:
        ValueError: T < 1.
    """

    prediction = "velocity"

    def __init__(self, num_timesteps: Count = 1000) -> None:
        self.num_timesteps = num_timesteps

    def _share(self, t: Tensor, x: Tensor) -> Tensor:
        return (t.to(x.dtype) / self.num_timesteps).view(-1, *[1] * (x.dim() - 1))

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t from x_0 and standard normal noise of the same shape."""
        return torch.lerp(x0, noise, self._share(t, x0))

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """What the network should predict: the velocity, the same all along the path."""
        return noise - x0

    def predict_x0(self, model_output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x_0 where the path through xt ends, if it keeps the predicted velocity (the first C channels)."""
        velocity, _ = split_output(model_output.to(xt.dtype), xt.shape[-3])
        return xt - self._share(t, xt) * velocity


def split_output(model_output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The prediction and, if the network learns it, the variance half v (else None), of an output with C or 2C
    channels.

    Raises:
        ValueError: dimension -3 of the output is neither C nor 2C.
    """
    found = model_output.shape[-3]
    if found == channels:
        return model_output, None
    if found != 2 * channels:
        raise ValueError(
            f"the network gave {found} channels for samples of {channels}; it must give {channels} (learn_sigma=false) "
            f"or {2 * channels} (learn_sigma=true)"
        )
    predicted, v = model_output.chunk(2, dim=-3)
    return predicted, v
