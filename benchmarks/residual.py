"""What the residual rules and the sensitivity probe cost, in time and in activations kept for the backward pass.

A whole training step is too noisy (2 to 4 %) to show what a gate costs. So one residual addition is timed by itself,
its extra time over the plain rule is multiplied by the number of additions in a network, and the sum is given as a
share of that network's training step, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.diffusion.process import DDPM
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual import Residual, Unit

BASE = "resnet"
FIVE = ("gated", "adaln", "skip", "resnet", "rezero")
ROUNDS, REPEATS = 31, 16  # of a unit; a round is a few hundred milliseconds
PROBED = "gated, probe on"
STEPS = 12
# name -> (network arguments, batch)
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "DiT-S/2": ({"input_size": 32, "hidden_size": 384, "depth": 12, "num_heads": 6}, 2),
    "digits": (
        {"input_size": 8, "in_channels": 1, "hidden_size": 96, "depth": 4, "num_heads": 4, "num_classes": 10},
        128,
    ),
}


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    torch.manual_seed(0)
    networks = {}
    for name, (arguments, batch) in NETWORKS.items():
        step = step_time(arguments, batch)
        shape = (batch, (arguments["input_size"] // 2) ** 2, arguments["hidden_size"])
        networks[name] = unit_times(shape, 2 * arguments["depth"], step)
        print(
            f"{name}: one training step {step:.0f} ms; one residual addition, forward and backward, of {list(shape)}:\n"
        )
        print(markdown_table([{"rule": rule, **row} for rule, row in networks[name]["rules"].items()]))
    memory = []
    for precision in ("float32", "bf16 autocast"):
        row = {rule: saved_bytes(rule, precision != "float32") for rule in (BASE, "gated")}
        memory.append({"precision": precision, **row, "gated_extra": row["gated"] / row[BASE] - 1})
    print(f"bytes that the 12 blocks of DiT-S/2 keep for the backward pass, batch 2:\n\n{markdown_table(memory)}")
    return {
        "method": (
            "rules interleaved A B C ... C B A, a round's time is the mean of the two; ratios and differences are "
            "medians over rounds of values paired within a round; the probe's are over gated without it, all others "
            "over resnet; share_of_step: extra_ms times the additions in the network, over its training step in the "
            "same run"
        ),
        "networks": networks,
        "saved_bytes": memory,
    }


def interleaved(cases: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of each case in each round, every case run in the orders A B C and C B A."""
    for case in cases.values():
        case()
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        spent = dict.fromkeys(cases, 0.0)
        for name in [*cases, *reversed(cases)]:
            begin = time.process_time()
            cases[name]()
            spent[name] += (time.process_time() - begin) * 500
        for name, value in spent.items():
            times[name].append(value)
    return times


def unit_times(shape: tuple[int, int, int], units: int, step_ms: float) -> dict[str, Any]:
    """Forward and backward of one residual addition with an adaLN gate, for every rule, and with the sensitivity probe.

    Args:
        shape: [B, N, D] of the stream.
        units: residual additions in the network.
        step_ms: its training step.
    """
    cases = {rule: partial(_one_unit, *_unit(rule, shape)) for rule in FIVE}
    probed = _unit("gated", shape)
    probed[0].probe = torch.zeros(2, requires_grad=True)
    times = interleaved({**cases, PROBED: partial(_one_unit, *probed)}, ROUNDS)
    rules = {}
    for rule, values in times.items():
        over = times["gated" if rule == PROBED else BASE]
        extra = statistics.median(v - base for v, base in zip(values, over, strict=True)) / REPEATS
        rules[rule] = {
            "ms": statistics.median(values) / REPEATS,
            "extra_ms": extra,
            "ratio": statistics.median(v / base for v, base in zip(values, over, strict=True)),
            "share_of_step": units * extra / step_ms,
        }
    return {"shape": list(shape), "units": units, "step_ms": step_ms, "rules": rules}


def _unit(rule: str, shape: tuple[int, int, int]) -> tuple[Unit, Tensor, Tensor, Tensor]:
    """A unit, a stream, an adaLN gate and the gradient of the output."""
    gate = torch.randn(shape[0], shape[2], requires_grad=True)
    return Residual(rule).unit(shape[-1]), torch.randn(shape, requires_grad=True), gate, torch.randn(shape)


def _one_unit(unit: Unit, z: Tensor, gate: Tensor, grad: Tensor) -> None:
    # The branch is one operation, the same for every rule: it makes `read` and the branch's gradient count.
    for _ in range(REPEATS):
        torch.autograd.backward(unit(z, torch.sigmoid, gate), grad)
        unit.zero_grad()
        z.grad = gate.grad = None


def step_time(arguments: dict[str, Any], batch: int) -> float:
    """Milliseconds of a training step of the gated network, probe off."""
    return statistics.median(interleaved({"step": training_step(arguments, batch)}, STEPS // 2)["step"])


def training_step(arguments: dict[str, Any], batch: int) -> Callable[[], None]:
    """Forward, backward and fused AdamW of a DiT; the gated one, where the arguments name no other rule."""
    net = DiT(**arguments)
    process, optimizer = DDPM(), torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    x = torch.randn(batch, net.in_channels, net.input_size, net.input_size)
    t, y = torch.randint(0, 1000, (batch,)), torch.randint(0, net.num_classes, (batch,))
    noise = torch.randn_like(x)
    xt = process.q_sample(x, t, noise)

    def step() -> None:
        predicted = net(xt, t, y)[:, : net.in_channels]
        nn.functional.mse_loss(predicted, noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def saved_bytes(rule: str | Residual, bf16: bool) -> int:
    """Bytes that the blocks of DiT-S/2 keep for the backward pass at batch 2, weights not counted."""
    torch.manual_seed(0)
    net = DiT(**NETWORKS["DiT-S/2"][0], residual=rule)
    z, c, e = (torch.randn(shape, requires_grad=True) for shape in ((2, 256, 384), (2, 384), (2, 384)))

    def forward() -> None:
        stream = net.stack.open(z)
        for block in net.blocks:
            stream, _ = block(stream, c, e)
        net.stack.close(stream, e)

    with torch.autocast("cpu", torch.bfloat16, bf16):
        return kept_bytes(forward, net.parameters())


def kept_bytes(forward: Callable[[], Any], weights: Iterable[Tensor]) -> int:
    """Bytes that a forward pass keeps for backward, those of the weights not counted.

    Storages are counted once each, however many saved tensors look into them.
    """
    owned = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()  # alive, or another could take its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in kept.values())
