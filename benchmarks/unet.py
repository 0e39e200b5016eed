"""A whole training step of a U-Net on a CPU: diffusers' own loop against ours, without gates and with them.

`diffusers` is stock UNet2DModel (64, 128, 256 channels, 16.1 M parameters, 32 x 32 cells, batch 2) with AdamW as its
training examples build it and an average tensor by tensor. Ours trains the same network under the rules `resnet` and
`gated`: channels last, AdamW fused, averages by one foreach operation. The three run interleaved.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual.gating import gate

ROUNDS = 9
KINDS = ("diffusers", "resnet", "gated")


class Step:
    """One way to take training steps."""

    def __init__(self, kind: str) -> None:
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        self.stock = kind == "diffusers"
        net: Any = UNet2DModel(
            sample_size=32, in_channels=4, out_channels=4, block_out_channels=(64, 128, 256), layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=32,
        )  # fmt: skip
        if not self.stock:
            gate(net, kind).to(memory_format=torch.channels_last)
        self.net = net
        self.weights = list(net.parameters())
        self.averages = [w.detach().clone() for w in self.weights]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4, fused=None if self.stock else True)

    def __call__(self) -> float:
        """Take one step; returns its CPU time in seconds."""
        generator = torch.Generator().manual_seed(0)
        x, target = (torch.randn(2, 4, 32, 32, generator=generator) for _ in range(2))
        start = time.process_time()
        loss = nn.functional.mse_loss(self.net(x, torch.tensor([10, 700])).sample, target)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            if self.stock:
                for average, weight in zip(self.averages, self.weights, strict=True):
                    average.lerp_(weight, 1e-4)
            else:
                torch._foreach_lerp_(self.averages, self.weights, 1e-4)
        return time.process_time() - start


def run() -> dict[str, Any]:
    """Seconds of a step, and the median of the ratios to diffusers' loop."""
    steps = {kind: Step(kind) for kind in KINDS}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(ROUNDS):
        for kind in KINDS if number % 2 else reversed(KINDS):
            seconds[kind].append(steps[kind]())

    def ratio(kind: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[kind], seconds[other], strict=True))

    rows = [
        {
            "step": kind,
            "parameters": sum(w.numel() for w in steps[kind].weights),
            "seconds": statistics.median(seconds[kind]),
            "over diffusers": ratio(kind, "diffusers"),
            "over resnet": ratio(kind, "resnet"),
        }
        for kind in KINDS
    ]
    print(markdown_table(rows))
    return {"rounds": ROUNDS, "rows": rows, "goal": "gated over diffusers at most 0.88"}
