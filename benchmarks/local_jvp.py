"""What the whole local gradient of a gate on the branch would cost: one Jacobian-vector product a unit and step.

`supervise` gives alpha of `gated` and `rezero` the projection of the local gradient on alpha. One entry for each
channel needs `<J_i s_i, g s_{i+1}>`, the branch's Jacobian times s_i, which no ordinary backward pass forms.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.residual import NETWORKS, interleaved
from neural_rdm.backbones.dit import DiT
from neural_rdm.dynamics import probe, supervise
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import units

ROUNDS = 11
NAMES = ("digits",)  # of NETWORKS; DiT-S/2 takes a minute a round on one core
GAMMA = 0.35
SEEDS = range(3)


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    networks = {name: costs(*NETWORKS[name], ROUNDS) for name in NAMES}
    for name, row in networks.items():
        print(f"{name}:\n\n{markdown_table([row])}")
    cosines = [cosine for seed in SEEDS for cosine in alignment(seed)]
    aligned = {"median": statistics.median(cosines), "lowest": min(cosines), "highest": max(cosines)}
    print(f"cosine of the projection to the whole local gradient, by unit:\n\n{markdown_table([aligned])}")
    return {
        "method": (
            "training step of a gated DiT: forward, backward, fused AdamW; supervised: with the probe and `supervise`; "
            "jvp: with one torch.func.jvp of every branch at (z_i, s_i) under the MATH kernel as well. Interleaved "
            "A B C C B A; *_ratio: [median, lowest, highest] over rounds of the ratio to the plain step in the same "
            "round. cosine: of the projection on alpha to the whole local gradient in alpha, one value a unit, for the "
            f"network `digits` with all weights moved by N(0, 0.2^2), seeds {SEEDS[0]} to {SEEDS[-1]}, float64, its "
            "sign dropped"
        ),
        "networks": networks,
        "cosine": aligned,
    }


@contextmanager
def kept(net: nn.Module) -> Iterator[list[tuple[Any, Tensor, tuple[Any, ...], Tensor]]]:
    """(unit, z_i, (branch, g), z_{i+1}) of every unit of one forward pass; their gradients are kept."""
    seen: list[tuple[Any, Tensor, tuple[Any, ...], Tensor]] = []

    def keep(unit: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
        arguments[0].retain_grad()
        out.retain_grad()
        seen.append((unit, arguments[0], arguments[1:3], out))

    hooks = [unit.register_forward_hook(keep) for _, unit in units(net)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def products(seen: list[tuple[Any, Tensor, tuple[Any, ...], Tensor]]) -> list[Tensor]:
    """`<J_i s_i, g s_{i+1}>` [D] of every unit."""
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        for _, z, (branch, g), out in seen:
            _, tangent = torch.func.jvp(branch, (z.detach(),), (z.grad,))
            found.append((tangent * g[:, None] * out.grad).sum(dim=(0, 1)))
    return found


def network(arguments: dict[str, Any], batch: int, std: float = 0.02) -> tuple[DiT, tuple[Tensor, ...]]:
    """A network whose gradient reaches every unit, and a batch: x, t, y and a target."""
    net = DiT(**arguments)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(std * torch.randn_like(parameter))
    x = torch.randn(batch, net.in_channels, net.input_size, net.input_size)
    t, y = torch.randint(0, 1000, (batch,)), torch.randint(0, net.num_classes, (batch,))
    return net, (x, t, y, torch.randn_like(x))


def loss(net: DiT, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean squared error of the prediction []."""
    x, t, y, target = batch
    return nn.functional.mse_loss(net(x, t, y)[:, : net.in_channels], target)


def costs(arguments: dict[str, Any], size: int, rounds: int) -> dict[str, Any]:
    """Times of the three kinds of step."""
    torch.manual_seed(0)
    net, batch = network(arguments, size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def plain() -> None:
        loss(net, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    def supervised(jvp: bool = False) -> None:
        with kept(net) as seen, probe(net, branches=True) as rows:
            loss(net, batch).backward()
        supervise(net, rows.grad, GAMMA)
        if jvp:
            products(seen)
        optimizer.step()
        optimizer.zero_grad()

    times = interleaved({"plain": plain, "supervised": supervised, "jvp": lambda: supervised(True)}, rounds)
    row: dict[str, Any] = {"units": len(list(units(net))), "plain_ms": statistics.median(times["plain"])}
    for name in ("supervised", "jvp"):
        ratios = [value / base for value, base in zip(times[name], times["plain"], strict=True)]
        row[f"{name}_ratio"] = [statistics.median(ratios), min(ratios), max(ratios)]
    return row


def alignment(seed: int) -> list[float]:
    """|cosine| between alpha, along which `supervise` moves it, and the whole local gradient, by unit."""
    torch.manual_seed(seed)
    net, batch = network(NETWORKS["digits"][0], 16, std=0.2)
    net, batch = net.double(), tuple(part.double() if part.is_floating_point() else part for part in batch)
    with kept(net) as seen:
        loss(net, batch).backward()
    pairs = zip(seen, products(seen), strict=True)
    return [abs(torch.cosine_similarity(unit.alpha.detach(), p, dim=0).item()) for (unit, *_), p in pairs]
