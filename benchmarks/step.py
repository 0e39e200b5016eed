"""A whole training step of DiT-S/2 and Latte-S/2 on a CPU, part by part: forward, backward, optimizer, EMA.

Three steps run interleaved: `official` (the arithmetic of the official code: `x + gate * f`, a SiLU in every block,
AdamW without fusion, an EMA tensor by tensor, `loss.item()` every step), ours without gates (`resnet`) and with them
(`gated`). What a step keeps in memory at its peak is measured in processes of their own.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT, DiTBlock
from neural_rdm.backbones.latte import Latte
from neural_rdm.diffusion.process import DDPM
from neural_rdm.reports.tables import markdown_table

PARTS = ("forward", "backward", "optimizer", "ema")
SIZE = {"input_size": 32, "hidden_size": 384, "depth": 12, "num_heads": 6}
#: name -> (class, arguments, batch, rounds)
NETWORKS: dict[str, tuple[Callable[..., Any], dict[str, Any], int, int]] = {
    "DiT-S/2": (DiT, SIZE, 2, 9),
    "Latte-S/2, 4 frames": (Latte, {**SIZE, "num_frames": 4, "extras": 2}, 1, 5),
}
PEAK_BATCH = 4


class Official(DiTBlock):
    """A block with the official arithmetic."""

    def forward(self, z: Tensor, c: Tensor, e: Tensor, *_: Any) -> tuple[Tensor, None]:
        modulation = self.adaLN_modulation(nn.functional.silu(c)).chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (m.unsqueeze(1) for m in modulation)
        z = z + gate_a * self.attn(self.attn_norm(z) * (1 + scale_a) + shift_a)
        return z + gate_m * self.mlp(self.mlp_norm(z) * (1 + scale_m) + shift_m), None


class Step:
    """One way to take training steps."""

    def __init__(self, kind: str, build: Callable[..., Any], arguments: dict[str, Any], batch: int) -> None:
        torch.manual_seed(0)
        self.official = kind == "official"
        self.net = build(**arguments, residual="resnet" if self.official else kind)
        for name, weight in self.net.named_parameters():  # a fresh adaLN-Zero network multiplies zeros
            if weight.requires_grad and "unit" not in name:
                nn.init.normal_(weight, std=0.02)
        if self.official:
            for block in self.net.blocks:
                block.__class__ = Official
        weights = [p for p in self.net.parameters() if p.requires_grad]
        options = {} if self.official else {"fused": True}
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, **options)
        self.weights, self.averages = weights, [p.detach().clone() for p in weights]
        self.t = torch.randint(0, 1000, (batch,))
        self.y = torch.randint(0, self.net.num_classes, (batch,))
        self.noise = torch.randn(batch, *self.net.input_shape)
        self.x = DDPM().q_sample(torch.randn_like(self.noise), self.t, self.noise)

    def __call__(self) -> dict[str, float]:
        """Take a step; milliseconds of CPU time of each part."""
        marks = [time.process_time()]
        output = self.net(self.x, self.t, self.y)
        loss = nn.functional.mse_loss(output.narrow(-3, 0, self.net.in_channels), self.noise)
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(time.process_time())
        with torch.no_grad():
            if self.official:
                for average, weight in zip(self.averages, self.weights, strict=True):
                    average.mul_(0.9999).add_(weight, alpha=1e-4)
                loss.item()
            else:
                torch._foreach_lerp_(self.averages, [w.detach() for w in self.weights], 1e-4)
        marks.append(time.process_time())
        return {part: 1000 * (b - a) for part, a, b in zip(PARTS, marks, marks[1:], strict=False)}

    @torch.no_grad()
    def infer(self) -> dict[str, float]:
        """A forward pass alone."""
        begin = time.process_time()
        self.net(self.x, self.t, self.y)
        return {"inference": 1000 * (time.process_time() - begin)}


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Times are milliseconds of CPU time."""
    networks = {}
    for name, (build, arguments, batch, rounds) in NETWORKS.items():
        steps = {kind: Step(kind, build, arguments, batch) for kind in ("official", "resnet", "gated")}
        result = compare(dict(steps), "official", rounds)
        del steps["official"]
        inference = compare({kind: step.infer for kind, step in steps.items()}, "resnet", 2 * rounds)
        peaks = {kind: peak(name, kind) for kind in ("resnet", "gated")}
        networks[name] = {
            "batch": batch,
            "step": result,
            "inference": inference,
            "peak_bytes": {**peaks, "gated_extra": peaks["gated"] / peaks["resnet"] - 1, "batch": PEAK_BATCH},
        }
        print(f"{name}, batch {batch}:\n\n{markdown_table([{'step': k, **v} for k, v in result.items()])}")
        print(f"a forward pass:\n\n{markdown_table([{'step': k, **v} for k, v in inference.items()])}")
        print(f"peak memory of a step, gated over resnet: {peaks['gated'] / peaks['resnet'] - 1:+.2%}\n")
    return {
        "method": "cases interleaved A B C C B A; medians over rounds; ratios are medians of ratios within a round, "
        "`ratio_of_minima` compares the fastest of each; noise of a whole step's ratio is 2 to 4 %. Peak: resident "
        "memory of a process after two steps over that before the network was made",
        "networks": networks,
    }


def compare(cases: dict[str, Callable[[], dict[str, float]]], base: str, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of every part of every case, and its total over that of `base`."""
    for case in cases.values():
        case()
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name in [*cases, *reversed(cases)]:
            taken[name].append(cases[name]())
    totals = {name: [sum(parts.values()) for parts in rows] for name, rows in taken.items()}
    result = {}
    for name, rows in taken.items():
        # the 2k-th and (2k+1)-th of each case belong to one round
        pairs = zip(_rounds(totals[name]), _rounds(totals[base]), strict=True)
        result[name] = {
            **{part: statistics.median(row[part] for row in rows) for part in rows[0]},
            "total": statistics.median(totals[name]),
            "ratio": statistics.median(a / b for a, b in pairs),
            "ratio_of_minima": min(totals[name]) / min(totals[base]),
        }
    return result


def _rounds(values: list[float]) -> list[float]:
    return [a + b for a, b in zip(values[::2], values[1::2], strict=True)]


def peak(name: str, kind: str) -> int:
    """Bytes that two training steps need, in a process of their own."""
    code = f"from benchmarks.step import own_peak; print(own_peak({name!r}, {kind!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def own_peak(name: str, kind: str) -> int:
    """Bytes by which this process's largest resident size grows over two training steps."""
    torch.set_num_threads(1)
    build, arguments, _, _ = NETWORKS[name]
    Step(kind, build, {**arguments, "depth": 2}, 1)()  # libraries allocate at their first use
    before = _resident()
    step = Step(kind, build, arguments, PEAK_BATCH)
    step()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
