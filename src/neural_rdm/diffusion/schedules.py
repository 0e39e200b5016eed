"""Mean-variance schedules in continuous time (paper, Sec. 2.2 and Eq. 5, 6 [R]; Song et al. 2021).

Time runs from 0 (data) to 1 (noise): z_t = signal(t) x_0 + sqrt(variance(t)) eps, the marginal of the SDE

    dz = f(t) z dt + g(t) dw        with    f = d log signal / dt,    g^2 = d variance / dt - 2 f variance

| class          | process                              | used by                              |
|----------------|--------------------------------------|--------------------------------------|
| `Linear`       | variance preserving, beta linear     | DDPM, DiT, Latte                     |
| `ScaledLinear` | the same, sqrt(beta) linear          | LDM, Stable Diffusion, U-ViT         |
| `Cosine`       | the same, alpha_bar a squared cosine | Improved DDPM                        |
| `Interpolant`  | (1 - t) x_0 + t eps                  | flow matching, SiT; beyond the paper |

Times are tensors of any shape, and every function returns that shape, in their dtype.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from neural_rdm.core import noise


class Schedule(ABC):
    """What noise does to data over time, and the SDE that does it."""

    @abstractmethod
    def signal(self, t: Tensor) -> Tensor:
        """Factor of the data at t."""

    @abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """Variance of the noise at t."""

    @abstractmethod
    def f(self, t: Tensor) -> Tensor:
        """Drift coefficient: the SDE's drift is f(t) z, linear in z."""

    @abstractmethod
    def g2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient."""


class VP(Schedule):
    """A variance-preserving schedule: f = -beta/2, g^2 = beta, alpha_bar = exp(-integral of beta from 0 to t)."""

    @abstractmethod
    def beta(self, t: Tensor) -> Tensor:
        """Rate of the noise at t."""

    @abstractmethod
    def integral(self, t: Tensor) -> Tensor:
        """Integral of beta from 0 to t."""

    @abstractmethod
    def betas(self, num_timesteps: int) -> Tensor:
        """DDPM's table, float64 [T]. `Linear` and `ScaledLinear` keep their betas for every T: only their table of 1000
        steps stands for the continuous schedule.
        """

    def signal(self, t: Tensor) -> Tensor:
        """sqrt(alpha_bar)."""
        return torch.exp(-0.5 * self.integral(t))

    def variance(self, t: Tensor) -> Tensor:
        """1 - alpha_bar."""
        return -torch.expm1(-self.integral(t))

    def f(self, t: Tensor) -> Tensor:
        """-beta/2."""
        return -0.5 * self.beta(t)

    def g2(self, t: Tensor) -> Tensor:
        """beta."""
        return self.beta(t)


@dataclass(frozen=True)
class Linear(VP):
    """beta linear in t. `beta_start` and `beta_end` are DDPM's, for 1000 steps; beta(t) is 1000 times as large.

    Raises:
        ValueError: betas that are not 0 < beta_start <= beta_end < 1.
    """

    beta_start: float = noise.ENDS["linear"][0]
    beta_end: float = noise.ENDS["linear"][1]
    _power = noise.POWERS["linear"]

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(
                f"need 0 < beta_start <= beta_end < 1, not beta_start={self.beta_start}, beta_end={self.beta_end}"
            )

    def _ends(self) -> tuple[float, float]:
        return (1000 * self.beta_start) ** self._power, (1000 * self.beta_end) ** self._power

    def beta(self, t: Tensor) -> Tensor:
        """From 1000 beta_start to 1000 beta_end."""
        first, last = self._ends()
        return (first + t * (last - first)) ** (1 / self._power)

    def integral(self, t: Tensor) -> Tensor:
        """Of a straight line."""
        first, last = self._ends()
        return first * t + 0.5 * (last - first) * t.square()

    def betas(self, num_timesteps: int) -> Tensor:
        """Evenly spaced, both ends included; not rescaled for T other than 1000."""
        betas = noise.linear_betas(num_timesteps, self.beta_start, self.beta_end, self._power)
        return torch.tensor(betas, dtype=torch.float64)


@dataclass(frozen=True)
class ScaledLinear(Linear):
    """sqrt(beta) linear in t (LDM's own code calls this one "linear"). LDM's ImageNet models: 0.0015 to 0.0195;
    Stable Diffusion: 0.00085 to 0.012.
    """

    beta_start: float = noise.ENDS["scaled_linear"][0]
    beta_end: float = noise.ENDS["scaled_linear"][1]
    _power = noise.POWERS["scaled_linear"]

    def integral(self, t: Tensor) -> Tensor:
        """Of the square of a straight line."""
        first, last = self._ends()
        slope = last - first
        return first**2 * t + first * slope * t.square() + slope**2 * t**3 / 3


@dataclass(frozen=True)
class Cosine(VP):
    """alpha_bar(t) = cos^2(h(t)) / cos^2(h(0)), h(t) = pi/2 (t + s) / (1 + s) (Improved DDPM, eq. 17).

    beta is infinite at t = 1; the discrete table is clipped at 0.999, as there.
    """

    s: float = 0.008

    def _angle(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * (t + self.s) / (1 + self.s)

    def _cos(self, t: Tensor) -> Tensor:
        return torch.cos(self._angle(t)).clamp(min=0)  # pi / 2 may round up, where the cosine is negative

    def beta(self, t: Tensor) -> Tensor:
        """-d log alpha_bar / dt."""
        return math.pi / (1 + self.s) * torch.sin(self._angle(t)) / self._cos(t)

    def integral(self, t: Tensor) -> Tensor:
        """-log alpha_bar."""
        start = math.cos(0.5 * math.pi * self.s / (1 + self.s))
        return 2 * (start / self._cos(t)).log().clamp(min=0)

    def betas(self, num_timesteps: int) -> Tensor:
        """1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), at most 0.999."""
        return torch.tensor(noise.cosine_betas(num_timesteps, self.s), dtype=torch.float64)


@dataclass(frozen=True)
class Interpolant(Schedule):
    """z_t = (1 - t) x_0 + t eps: the straight paths of flow matching (SiT, rectified flow). f is infinite at t = 1."""

    def signal(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def variance(self, t: Tensor) -> Tensor:
        """t^2."""
        return t.square()

    def f(self, t: Tensor) -> Tensor:
        """-1 / (1 - t)."""
        return -1 / (1 - t)

    def g2(self, t: Tensor) -> Tensor:
        """2 t / (1 - t)."""
        return 2 * t / (1 - t)


#: the variance-preserving schedules by the names that configurations use
VP_SCHEDULES: dict[str, type[VP]] = {"linear": Linear, "scaled_linear": ScaledLinear, "cosine": Cosine}
