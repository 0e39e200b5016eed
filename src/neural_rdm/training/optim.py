"""What is trained and how: AdamW or Muon, gates without weight decay and at a learning rate of their own; schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from neural_rdm.core.arguments import Fraction, Natural, NonNegative, Positive, checked
from neural_rdm.residual import gate_names
from neural_rdm.training import constraints
from neural_rdm.training.adamw import AdamW
from neural_rdm.training.muon import Muon, matrices


@checked(constraints.two_betas, constraints.muon_on_device)
@dataclass(frozen=True)
class Optimizer:
    """How a network is optimised.

    Args:
        lr: learning rate; never scaled by batch size or devices.
        weight_decay: AdamW's, for everything but the gates (decay would pull alpha to 0).
        betas: AdamW's.
        eps: AdamW's.
        gate_lr_scale: learning rate of the gates over `lr`.
        clip: largest norm of the gradient; None for no clipping.
        clip_after: optimizer steps before clipping begins (Latte: 20 000 on SkyTimelapse, 100 000 on UCF-101).
        warmup_steps: linear warm-up from 0.
        skip_nonfinite: so many steps of a run are left out where loss or gradient is not finite; one more stops it.
        schedule: `constant`; `cosine` down to 0 at the run's last step; or `wsd`: constant, then down to 0 as 1 - sqrt
            over the last `decay_share` of the run (Haegele et al. 2024); a longer run shares all that is before.
        name: `adamw`, or `muon` for the matrices of the blocks with AdamW for the rest (see `muon`).
        decay_share: of the run's steps, for `wsd`.
        offload: keep AdamW's moments in the memory of the host, 8 bytes a parameter that the device then has free.
    """

    lr: Positive = 1e-4
    weight_decay: NonNegative = 0.0
    betas: Sequence[float] = (0.9, 0.999)
    eps: Positive = 1e-8
    gate_lr_scale: NonNegative = 1.0
    clip: Positive | None = None
    clip_after: Natural = 0
    warmup_steps: Natural = 0
    skip_nonfinite: Natural = 0
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    name: Literal["adamw", "muon"] = "adamw"
    decay_share: Fraction = 0.2
    offload: bool = False

    def build(self, net: nn.Module, schedule: Sequence[nn.Parameter] = (), seed: int = 0) -> torch.optim.AdamW:
        """AdamW over the trainable parameters of `net`, fused, in two groups: the network and its gates; and a third,
        without weight decay, where the objective has a learned `schedule`. Weights in bfloat16 are rounded at random,
        by `seed` (see `adamw`).

        Raises:
            ValueError: Muon with such weights (a configuration of both is refused before).
        """
        parameters, rule, parts = dict(net.named_parameters()), gate_names(net), self.parts(net)
        groups: list[dict[str, Any]] = []
        for names in self.names(net):
            own: dict[str, Any] = {"name": "net", "lr": self.lr, "weight_decay": self.weight_decay}
            if names[0] in rule:
                own = {"name": "gates", "lr": self.lr * self.gate_lr_scale, "weight_decay": 0.0}
            if parts:
                own["parts"] = parts.get(names[0])
            groups.append({**own, "params": [parameters[name] for name in names]})
        if schedule:
            groups.append({"name": "schedule", "params": list(schedule), "lr": self.lr, "weight_decay": 0.0})
        options: dict[str, Any] = {"lr": self.lr, "betas": (self.betas[0], self.betas[1]), "eps": self.eps}
        if self.name == "muon":
            return Muon(groups, **options)
        if self.offload or any(p.dtype.itemsize < 4 for p in parameters.values()):
            return AdamW(groups, seed, self.offload, **options)
        return torch.optim.AdamW(groups, fused=True, **options)

    def parts(self, net: nn.Module) -> dict[str, int]:
        """The weights of Muon, and how many matrices stand in each."""
        return matrices(net) if self.name == "muon" else {}

    def names(self, net: nn.Module) -> list[list[str]]:
        """The trainable parameters' names, group by group, in the optimizer's order: the network's, then its gates';
        in front of them, with Muon, its matrices, by the number of them in a weight.
        """
        rule, parts = gate_names(net), self.parts(net)
        trainable = [name for name, p in net.named_parameters() if p.requires_grad]
        groups = [[n for n in trainable if parts.get(n) == count] for count in sorted(set(parts.values()))]
        rest = [name for name in trainable if name not in parts]
        groups += [[n for n in rest if n not in rule], [n for n in rest if n in rule]]
        return [group for group in groups if group]

    def factor(self, step: int, max_steps: int) -> float:
        """The learning rate at `step` (0-based) over its base value."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "wsd":
            steps = max(1, round(self.decay_share * max_steps))
            return 1.0 - math.sqrt(min(1.0, max(0, step - (max_steps - steps)) / steps))
        progress = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


TRAIN_ONLY = ("all", "gates", "gates+norms")


def freeze(net: nn.Module, train_only: str) -> None:
    """Let only a part of `net` train: fine-tuning of pretrained weights (paper, Sec. 2.1 [P]: the gates "can be
    independently trained or fine-tuned without considering the parameters of the feature mapping network").

    `gates` are all parameters of the residual rule: alpha and beta of every unit. `gates+norms` adds what normalisation
    layers scale and shift by: their own weights and biases and, where adaLN makes scale and shift out of the condition,
    the bias of that layer, which is their constant part; in networks of diffusers the table that stands for it.

    Raises:
        ValueError: an unknown choice, or a network whose rule has no gates.
    """
    if train_only not in TRAIN_ONLY:
        raise ValueError(f"train_only={train_only} is not one of {', '.join(TRAIN_ONLY)}")
    if train_only == "all":
        return
    trained = gate_names(net)
    if not trained:
        raise ValueError(f"train_only={train_only}: this network's residual rule has no gates; use train_only=all")
    if train_only == "gates+norms":
        norms = {name for name, module in net.named_modules() if "norm" in type(module).__name__.lower()}
        for name, module in net.named_modules():
            if name in norms and isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_contiguous)
            # diffusers keeps the layer that makes scale and shift inside the norm
            adaln = "adaLN_modulation" in name.split(".") or name.rpartition(".")[0] in norms
            trained |= {
                f"{name}.{p}"
                for p, _ in module.named_parameters(recurse=False)
                if name in norms or (adaln and p == "bias") or p == "scale_shift_table"
            }
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in trained)


def _contiguous(norm: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The input of a GroupNorm that trains, in the usual layout where nothing before it trains: on a CPU torch 2.13's
    backward pass ends the process by SIGSEGV where such an input, which needs no gradient, is channels last.
    """
    if torch.is_grad_enabled() and inputs and not inputs[0].requires_grad:
        return (inputs[0].contiguous(), *inputs[1:])
    return inputs
