"""What very deep networks do in training: 1000 gated blocks, and the five rules side by side from open gates.

The official start (adaLN-Zero) makes every block the identity under every rule, so that depth costs nothing at first.
The rules are therefore compared from random adaLN gates: each block writes into the stream from the first step on.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.residual import FIVE
from neural_rdm.backbones.dit import DiT
from neural_rdm.core.seeding import normal, uniform
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.dynamics.probe import probe
from neural_rdm.reports.tables import markdown_table

WIDTH, HEADS, BATCH, STEPS, LR = 32, 4, 32, 200, 1e-3
DEEP = 1000
COMPARED, SEEDS, GATE_STD = 100, 2, 0.5


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way."""
    deep = train("gated", DEEP, seed=0, open_gates=False)
    print(f"{DEEP} gated blocks of width {WIDTH}, {STEPS} steps, official start:\n\n{markdown_table([deep])}")
    rows = [train(rule, COMPARED, seed, open_gates=True) for seed in range(SEEDS) for rule in FIVE]
    print(f"{COMPARED} blocks from random adaLN gates (std {GATE_STD}), {STEPS} steps:\n\n{markdown_table(rows)}")
    return {
        "method": (
            f"DiT of width {WIDTH}, {HEADS} heads, patch 4, on the 8x8 digits; hybrid loss; fused AdamW at {LR:g}, "
            f"batch {BATCH}, no clipping, no warm-up, float32. open gates: adaLN gate biases and the last layer from "
            f"N(0, {GATE_STD}^2) and N(0, 0.02^2). first, last: mean loss of the first and last 20 steps; sensitivity: "
            "||s_0|| / ||s_N||, the gradient at the first unit's entry over that at the last one's exit, before the "
            "first and after the last step; broken: first step whose loss is not finite"
        ),
        "deep": deep,
        "rules": rows,
    }


def train(rule: str, depth: int, seed: int, open_gates: bool) -> dict[str, Any]:
    """Train one network and say what it did."""
    torch.manual_seed(seed)
    net = DiT(8, 4, 1, WIDTH, depth, HEADS, num_classes=10, residual=rule)
    if open_gates:
        with torch.no_grad():
            nn.init.normal_(net.final_layer.linear.weight, std=0.02)
            for block in net.blocks:
                gates = block.adaLN_modulation[1].bias.view(6, -1)
                gates[[2, 5]] = GATE_STD * torch.randn(2, WIDTH)
    data, objective = Digits(), DDPMObjective(DDPM())
    data.setup()
    assert data.train_set is not None
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0, fused=True)
    losses: list[float] = []
    begin, ratios = time.process_time(), []
    for step in range(STEPS):
        positions = torch.arange(step * BATCH, (step + 1) * BATCH)
        chosen = (torch.from_numpy(uniform(seed, "sample", positions)) * len(data.train_set)).long()
        x, y = data.train_set.x[chosen], data.train_set.y[chosen]
        t = objective.timesteps(torch.from_numpy(uniform(seed, "timestep", positions)))
        noise = normal(seed, "noise", positions, x.shape[1:])
        xt = objective.process.q_sample(x, t, noise)
        if step in (0, STEPS - 1):
            with probe(net) as rows:
                loss = objective.loss(net(xt, t, y), x, xt, t, noise)["loss"].mean()
            loss.backward()
            ratios.append(_ratio(rows.grad))
        else:
            loss = objective.loss(net(xt, t, y), x, xt, t, noise)["loss"].mean()
            loss.backward()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        optimizer.step()
        optimizer.zero_grad()
    broken = next((i for i, value in enumerate(losses) if not math.isfinite(value)), None)
    return {
        "rule": rule,
        "depth": depth,
        "seed": seed,
        "steps": len(losses),
        "first": statistics.fmean(losses[:20]) if broken is None or broken > 20 else None,
        "last": statistics.fmean(losses[-20:]) if broken is None else None,
        "sensitivity_at_first": ratios[0],
        "sensitivity_at_last": ratios[1] if len(ratios) > 1 else None,
        "broken": broken,
        "parameters_finite": all(bool(p.isfinite().all()) for p in net.parameters()),
        "cpu_seconds": time.process_time() - begin,
    }


def _ratio(squared: Tensor | None) -> float | None:
    """||s_0|| over ||s_N||, None where either is 0 (the first step of the official start) or not finite."""
    assert squared is not None
    first, last = squared[0, 0].item(), squared[-1, 1].item()
    return math.sqrt(first / last) if first > 0 and last > 0 and math.isfinite(first / last) else None
