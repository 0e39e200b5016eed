"""`python -m benchmarks peer=PATH`: an official repository, checked out there, raced against ours.

The same weights, the outputs, losses and samples compared first; then training steps and the sampler, interleaved
A B C ... C B A in one process. On a CPU times are CPU times of one thread; on a GPU wall times, theirs in float32 as
their scripts train, ours in bf16 as ours do.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.official import Peer, Race, peer_at
from neural_rdm.backbones.modulation import modulated
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.diffusion.guidance import guided_model, halves
from neural_rdm.diffusion.samplers import denoise, told
from neural_rdm.latents.first_stage import Identity
from neural_rdm.reports.tables import markdown_table
from neural_rdm.surgery.official import load_official
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.module import module_class
from neural_rdm.training.optim import Optimizer

PARTS = ("forward", "backward", "optimizer", "average")
ROUNDS, SAMPLING_ROUNDS = 6, 3
CLOSE, SAMPLES_CLOSE = 1e-4, 1e-3  # of the spread of what is compared; samples amplify rounding over their steps
DRAWS = 4000  # of the bootstrap


def clock(device: torch.device) -> float:
    """Seconds: of the process's CPU time, or on a GPU of the wall, its work done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def opened(net: nn.Module) -> nn.Module:
    """Random weights everywhere: what starts at zero would hide what comes before it, and cost less."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return net


class Theirs:
    """Training steps with the official code."""

    def __init__(self, peer: Peer, race: Race, net: nn.Module, x: Tensor, y: Tensor) -> None:
        self.peer, self.net, self.x, self.y = peer, net, x, y
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0)
        self.average = peer.average(net)

    def __call__(self) -> list[float]:
        """Take a step; seconds of each part."""
        marks = [clock(self.x.device)]
        t, noise = self.peer.draw(self.x)
        loss = self.peer.loss(self.net, self.x, self.y, t, noise)
        marks.append(clock(self.x.device))
        self.optimizer.zero_grad()
        loss.backward()
        marks.append(clock(self.x.device))
        self.optimizer.step()
        marks.append(clock(self.x.device))
        self.average()
        loss.item()
        marks.append(clock(self.x.device))
        return np.diff(marks).tolist()


class Ours:
    """Training steps with the module, the optimizer and the average that a run has."""

    def __init__(self, peer: Peer, net: Any, x: Tensor, y: Tensor, compiled: bool) -> None:
        self.module = module_class(net)(net, peer.objective(), Optimizer(), Identity(), compile_blocks=compiled)
        self.module.configure_model()
        self.module.train()
        self.optimizer = self.module.optimizer.build(net)
        self.average = EMA()
        self.average._prepare(net)
        self.device, self.batch = x.device, {"x": x, "y": y, "position": torch.arange(len(x))}

    def cast(self) -> AbstractContextManager[Any]:
        """bf16 on a GPU."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()

    def __call__(self) -> list[float]:
        """Take a step; seconds of each part."""
        marks = [clock(self.device)]
        with self.cast():
            losses = self.module.training_step(self.batch, 0)  # type: ignore[arg-type]
        marks.append(clock(self.device))
        losses["loss"].backward()
        marks.append(clock(self.device))
        self.optimizer.step()
        self.optimizer.zero_grad()
        marks.append(clock(self.device))
        self.average.on_step_end(SimpleNamespace(callbacks=[]), self.module)  # type: ignore[arg-type]
        marks.append(clock(self.device))
        return np.diff(marks).tolist()


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the spread."""
    spread = theirs.std() if theirs.numel() > 1 else theirs.abs()
    return float((ours - theirs).abs().max() / spread)


def interval(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """The ratio of the medians over rounds, and its 95 % interval: rounds drawn anew, in pairs."""
    rounds = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    ratios = np.median(ours[rounds], axis=1) / np.median(theirs[rounds], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(ours) / np.median(theirs)), float(low), float(high)


def interleaved(cases: dict[str, Callable[[], list[float]]], rounds: int) -> dict[str, np.ndarray[Any, Any]]:
    """[rounds, parts] seconds of every case: the mean of its two turns in a round A B C C B A."""
    for case in cases.values():
        case()
    taken: dict[str, list[list[float]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name in [*cases, *reversed(cases)]:
            taken[name].append(cases[name]())
    return {name: np.array(rows).reshape(rounds, 2, -1).mean(axis=1) for name, rows in taken.items()}


def rows_of(taken: dict[str, np.ndarray[Any, Any]], parts: tuple[str, ...], goals: Any) -> list[dict[str, Any]]:
    """A row a case: median milliseconds of its parts, and its ratio to the official one."""
    totals, rows = {name: times.sum(axis=1) for name, times in taken.items()}, []
    for name, times in taken.items():
        row: dict[str, Any] = {"case": name}
        row |= {part: 1000 * float(value) for part, value in zip(parts, np.median(times, axis=0), strict=True)}
        row["total"] = 1000 * float(np.median(totals[name]))
        row["ratio"], row["low"], row["high"] = interval(totals[name], totals["official"])
        row["ratio of minima"] = float(totals[name].min() / totals["official"].min())
        if name.removeprefix("ours, ") in goals:
            row["goal"] = goals[name.removeprefix("ours, ")]
        rows.append(row)
    return rows


def race(peer: Peer, name: str) -> dict[str, Any]:
    """One network: compared, then raced.

    Raises:
        DataError: outputs, losses or samples differ by more than rounding: nothing that is timed would mean anything.
    """
    asked = peer.races[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    theirs = opened(peer.network(asked)).to(device).eval()
    nets: dict[str, Any] = {}
    for kind in {"eager": 0, **asked.goals}:
        nets[kind] = load_official(peer.net(**asked.ours, residual="gated"), theirs.state_dict()).to(device).eval()
    net = nets["eager"]
    x = torch.randn(asked.batch, *net.input_shape, device=device)
    y = torch.randint(0, max(net.num_classes, 1), (asked.batch,), device=device)
    shown = {"y": y} if net.num_classes else {}
    found: dict[str, Any] = {
        "network": name,
        "rounds": {"step": ROUNDS, "sampling": SAMPLING_ROUNDS},
        "batch": asked.batch,
        "parameters": sum(p.numel() for p in net.parameters()),
    }
    found["differences"] = compare(peer, asked, net, theirs, x, y, shown)
    wrong = {k: v for k, v in found["differences"].items() if not v < (SAMPLES_CLOSE if k == "samples" else CLOSE)}
    if wrong:
        raise DataError(f"{name}: ours is not what {peer.name} computes: {wrong} of its spread")
    if asked.samples:
        found["sampler"] = f"{peer.sampler.said}, {asked.samples} at a time"
        found["sampling"] = sampling(peer, asked, nets, theirs)
        print(f"{name}, {peer.sampler.said}, {asked.samples} samples:\n\n{markdown_table(found['sampling'])}")
    cases: dict[str, Any] = {"official": Theirs(peer, asked, theirs.train(), x, y)}
    cases |= {f"ours, {kind}": Ours(peer, net, x, y, kind == "compiled") for kind, net in nets.items()}
    found["step"] = rows_of(interleaved(cases, ROUNDS), PARTS, asked.goals)
    print(f"{name}, training step, batch {asked.batch}:\n\n{markdown_table(found['step'])}")
    return found


def compare(
    peer: Peer, asked: Race, net: Any, theirs: nn.Module, x: Tensor, y: Tensor, shown: dict[str, Tensor]
) -> dict[str, float]:
    """How far outputs, loss and samples are from one another, of their spread."""
    t, noise = peer.draw(x)
    objective, our_t = peer.objective(), peer.our_times(t)
    xt = objective.process.q_sample(x, our_t, noise)
    with torch.no_grad():
        output, official = peer.our_model(net)(xt, our_t, **shown), peer.their_output(theirs, xt, t, shown)
        channels = min(output.shape[-3], official.shape[-3])  # SiT drops the second half
        loss = objective.loss(output, x, xt, our_t, noise)["loss"].mean()
        found = {
            "output": far(output.narrow(-3, 0, channels), official.narrow(-3, 0, channels)),
            "loss": far(loss, peer.loss(theirs, x, y, t, noise)),
        }
        if asked.samples:
            found["samples"] = far(draw(peer, net, noise, shown), peer.sample(theirs, noise, y))
    return found


@torch.no_grad()
def draw(peer: Peer, net: Any, noise: Tensor, shown: dict[str, Tensor]) -> Tensor:
    """Our sampler, from given noise, with the tables of modulation that a run draws with."""
    null = {"y": torch.tensor([net.null_class], device=noise.device)} if shown else None
    predict, process = guided_model(peer.our_model(net), peer.sampler.guidance, shown, null), peer.objective().process
    times = [peer.their_time(time) for time in peer.sampler.scheduler(process).timesteps.tolist()]
    rows = halves(shown, null) if null else shown
    with modulated(net, times, rows, len(noise) * (2 if null else 1)) as tell:
        return denoise(told(predict, lambda time: tell(peer.their_time(time))), process, peer.sampler, noise)


def sampling(peer: Peer, asked: Race, nets: dict[str, Any], theirs: nn.Module) -> list[dict[str, Any]]:
    """Both samplers from the same noise, interleaved."""
    net = nets["eager"]
    device = next(net.parameters()).device
    noise = torch.randn(asked.samples, *net.input_shape, device=device)
    y = torch.arange(asked.samples, device=device)
    shown = {"y": y} if net.num_classes else {}

    def timed(sample: Callable[[], Tensor]) -> Callable[[], list[float]]:
        def case() -> list[float]:
            begin = clock(device)
            sample()
            return [clock(device) - begin]

        return case

    cases = {"official": timed(lambda: peer.sample(theirs, noise, y))}
    for kind, own in nets.items():
        cases[f"ours, {kind}"] = timed(lambda own=own: draw(peer, own, noise, shown))
    rows = rows_of(interleaved(cases, SAMPLING_ROUNDS), ("sampling",), {})
    for row in rows:
        row["official over it"] = 1 / row["ratio"]
    return rows


def commit_of(folder: Path) -> str | None:
    """What is checked out there; None without git."""
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def run(path: Path, names: list[str]) -> dict[str, Any]:
    """Races of the repository that is checked out there: all of them, or those of `names`.

    Raises:
        UserError: no repository that is known, no such race, or one that cannot be run.
    """
    peer = peer_at(path)
    if unknown := set(names) - set(peer.races):
        raise ConfigError(f"{', '.join(sorted(unknown))}: {peer.name} is raced as {', '.join(peer.races)}")
    commits = {"commit": commit_of(path), "commit of ours": commit_of(Path(__file__).parent)}
    return {
        "peer": peer.name,
        "source": peer.source,
        "method": "the same weights and inputs; A B C C B A, a round is the mean of its two turns; `ratio` of the "
        "medians over the rounds to the official code, `low` and `high` its 95 % interval (bootstrap of rounds); ms",
        "races": [race(peer, name) | commits for name in names or peer.races],
    }
