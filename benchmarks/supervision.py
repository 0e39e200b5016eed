"""What measuring and supervising the sensitivity in every step costs, by unit, as a share of a training step."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch

from benchmarks.residual import NETWORKS, REPEATS, ROUNDS, _one_unit, _unit, interleaved, step_time
from neural_rdm.backbones.dit import DiT
from neural_rdm.dynamics import supervise
from neural_rdm.reports.tables import markdown_table
from neural_rdm.residual.taps import WATCHED

#: what a unit's taps measure -> how many rows they fill
TAPS = {"off": 0, "entry and exit": 2, "for supervision": 4, "what units.csv holds": 0}
BINS = 4


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    torch.manual_seed(0)
    networks = {}
    for name, (arguments, batch) in NETWORKS.items():
        step = step_time(arguments, batch)
        shape = (batch, (arguments["input_size"] // 2) ** 2, arguments["hidden_size"])
        count = 2 * arguments["depth"]
        cases = {}
        for taps, rows in TAPS.items():
            unit, *rest = _unit("gated", shape)
            unit.probe = torch.zeros(rows, requires_grad=True) if rows else None
            if taps == "what units.csv holds":
                one_hot = torch.nn.functional.one_hot(torch.arange(batch) % BINS, BINS).float()
                unit.watched = torch.zeros(BINS, len(WATCHED), requires_grad=True), one_hot
            cases[taps] = partial(_one_unit, unit, *rest)
        times = interleaved(cases, ROUNDS)
        extra = {
            taps: statistics.median(v - base for v, base in zip(values, times["off"], strict=True)) / REPEATS
            for taps, values in times.items()
        }
        net = DiT(**arguments)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        apply = {"supervise": partial(supervise, net, torch.rand(count, 4) + 0.1, 0.35)}
        applied = statistics.median(interleaved(apply, ROUNDS)["supervise"])
        rows = [{"taps": taps, "extra_ms_a_unit": ms, "share_of_step": count * ms / step} for taps, ms in extra.items()]
        rows.append({"taps": "the gradient added", "extra_ms_a_unit": applied / count, "share_of_step": applied / step})
        networks[name] = {"step_ms": step, "units": count, "shape": list(shape), "taps": rows}
        print(f"{name}: one training step {step:.0f} ms; {count} gated units of {list(shape)}:\n")
        print(markdown_table(rows))
    return {
        "method": (
            "a unit's forward and backward, taps interleaved A B C ... C B A; extra: medians over rounds of "
            "differences to the unit without taps, paired within a round; share_of_step: times the units, over a "
            "training step"
        ),
        "networks": networks,
    }
