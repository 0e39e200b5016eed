"""Every residual rule on the digits at two depths: a short sweep of learning rates each, then three seeds at the best.

Each finished run is a line of `results/first_look.csv`, on disk before the next one begins: killed and started again,
the study goes on with what is not there. Runs share data, noise, timesteps and the draws of their initial weights
within a seed.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from benchmarks import training
from benchmarks.commit import commit_of
from benchmarks.residual import interleaved
from benchmarks.training import VAL_DRAWS, held_out, report
from neural_rdm.config.compose import compose_config
from neural_rdm.core.files import write_text
from neural_rdm.reports.tables import csv_text
from neural_rdm.runs import build
from neural_rdm.training.module import NeuralRDM

RUNS = Path(__file__).parent / "results" / "first_look.csv"
#: the rules in the order in which they run: the paper's five first, then from one tensor to a whole history
RULES = (
    "resnet", "gated", "adaln", "skip", "rezero", "layerscale", "sandwich", "mvsplit", "ihc", "hc", "denseformer",
    "block_attnres", "delta", "dar",
)  # fmt: skip
UNITS = (12, 48)
SEEDS = (0, 1, 2)
SWEEP_SEED = 100  # of no run that is compared
SWEEP_STEPS, STEPS = 100, 150
ROUNDS = 5  # of the steps that are timed
SETTINGS = (
    "exp=digits_gated",
    "backbone.hidden_size=32",
    "data.batch_size=48",
    "optimizer.warmup_steps=20",
    "sampler.steps=10",
    "sampler.cfg_scale=1.0",
    "metric.per_class=25",
    "checkpoint.every_n_steps=1000000",
    "~logger",
)
METHOD = (
    f"the default experiment (class-conditional DiT, patch 4, hybrid loss, AdamW, cosine, EMA 0.99 with warm-up) at "
    f"width 32 and batch 48; {STEPS} steps, {SWEEP_STEPS} in the sweep, of which 20 are warm-up; runs: first_look.csv. "
    f"val_loss: hybrid loss of the EMA weights, all held-out digits at {VAL_DRAWS} timesteps and noises each, the same "
    "for every run; frechet_pixels, accuracy: 250 digits, dpm++ 10 steps, no guidance. costs: a training step, all "
    f"rules in turns A B C ... C B A, {ROUNDS} rounds: medians of milliseconds and of ratios paired in a round"
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A row of the study: its name, and the overrides that make it."""

    name: str
    overrides: tuple[str, ...]


CASES = [Case(rule, (f"residual={rule}",)) for rule in RULES]
#: `gated (folded)` is `resnet`, to the last bit of every weight: its alpha starts at 1 and its beta at 0
CONTROLS = [
    Case("rezero (folded)", ("residual=rezero", "control=folded")),
    Case("layerscale (folded)", ("residual=layerscale", "control=folded")),
    Case("resnet +MLP as ihc", ("residual=ihc", "control=mlp_widened")),
]
SLOW = ("delta", "dar")  # at many units: their attention grows with the square of the depth


@dataclass(frozen=True)
class Part:
    """Cases at one depth: all of their sweep comes first, then one seed behind the other.

    Args:
        rates: the learning rates that every case is swept over.
        further: best rate so far -> the one beyond it, where that is an edge of the grid and the grid is widened.
    """

    units: int
    cases: list[Case]
    rates: tuple[float, ...]
    further: dict[float, float]

    def jobs(self, rows: list[Row]) -> Iterator[tuple[Case, str, float, int]]:
        """Case, stage, learning rate and seed of every run, in order; `rows` grows by each before the next is asked."""
        for case in self.cases:
            grid = list(self.rates)
            for lr in grid:  # it grows
                yield case, "sweep", lr, SWEEP_SEED
                beyond = self.further.get(best_rate(rows, self.units, case.name))
                if lr == grid[-1] and beyond is not None and beyond not in grid:
                    grid.append(beyond)
        for seed in SEEDS:
            for case in self.cases:
                yield case, "run", best_rate(rows, self.units, case.name), seed

    def work(self, case: Case, stage: str) -> float:
        """About how long a run takes, in units of its own."""
        return (STEPS if stage == "run" else SWEEP_STEPS) * self.units * (1 + self.units / 12 * (case.name in SLOW))

    def left(self, rows: list[Row]) -> float:
        """The work of the runs that are not done, where each grid is widened once."""
        planned = {"sweep": len(self.rates) + 1, "run": len(SEEDS)}
        done = Counter((row["case"], row["stage"]) for row in rows if row["units"] == self.units)
        return sum(
            max(0, count - done[case.name, stage]) * self.work(case, stage)
            for case in self.cases
            for stage, count in planned.items()
        )


#: at the first depth 0.1 was worse than 0.03 for every rule, so that the second begins below
PARTS = (
    Part(UNITS[0], CASES, (3e-3, 1e-2, 3e-2), {3e-2: 1e-1, 1e-1: 3e-1, 3e-3: 1e-3}),
    Part(UNITS[1], [case for case in CASES if case.name not in SLOW], (1e-2, 3e-2), {1e-2: 3e-3, 3e-3: 1e-3}),
    Part(UNITS[0], CONTROLS, (1e-2, 3e-2), {1e-2: 3e-3, 3e-2: 1e-1}),
    Part(UNITS[1], [case for case in CASES if case.name in SLOW], (1e-2, 3e-2), {1e-2: 3e-3, 3e-3: 1e-3}),
)


def run() -> Row:
    """Do what is not done yet, printing each run as it ends, then time the steps; method and times as plain values."""
    rows = read()
    began, done = time.monotonic(), 0.0
    for part in PARTS:
        for case, stage, lr, seed in part.jobs(rows):
            if any(same(row, part.units, case, stage, lr, seed) for row in rows):
                continue
            rows.append(train(part.units, case, stage, lr, seed))
            write_text(RUNS, csv_text(rows))
            done += part.work(case, stage)
            minutes = sum(other.left(rows) for other in PARTS) * (time.monotonic() - began) / done / 60
            print(f"[{len(rows)} done, about {minutes:.0f} minutes left] {shown(rows[-1])}", flush=True)
    return {"method": METHOD, "costs": [row for units in UNITS for row in costs(units)]}


def costs(units: int) -> list[Row]:
    """Milliseconds of CPU time of a training step of every rule, and its time over that of the first, medians over
    rounds in which all rules take turns.
    """
    steps = {}
    for case in CASES:
        cfg = configuration(units, case, "run", 1e-3, SWEEP_SEED)
        data = build.data(cfg)
        data.setup()
        module = build.module(cfg, data.space)
        optimizer = module.optimizer.build(module.net)
        steps[case.name] = partial(step, module, optimizer, next(iter(data.train_dataloader())))
    times = interleaved(steps, ROUNDS)
    base = times[CASES[0].name]
    return [
        {
            "units": units,
            "case": name,
            "step_ms": statistics.median(values),
            "over_first": statistics.median(v / b for v, b in zip(values, base, strict=True)),
        }
        for name, values in times.items()
    ]


def step(module: NeuralRDM, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """One training step, on the same batch every time."""
    module.losses(batch, "train", drop=True)["loss"].mean().backward()
    torch.nn.utils.clip_grad_norm_(module.net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def best_rate(rows: Iterable[Row], units: int, name: str) -> float:
    """The learning rate of the lowest validation loss in a case's sweep; a run that broke counts as the worst."""
    swept = [row for row in rows if (row["units"], row["case"], row["stage"]) == (units, name, "sweep")]
    return float(min(swept, key=lambda row: float("inf") if row["val_loss"] is None else row["val_loss"])["lr"])


def same(row: Row, units: int, case: Case, stage: str, lr: float, seed: int) -> bool:
    """Whether a row is the run of these settings."""
    return tuple(row[key] for key in ("units", "case", "stage", "lr", "seed")) == (units, case.name, stage, lr, seed)


def configuration(units: int, case: Case, stage: str, lr: float, seed: int) -> DictConfig:
    """The run's configuration."""
    steps = STEPS if stage == "run" else SWEEP_STEPS
    sizes = f"backbone.depth={units // 2}", f"trainer.max_steps={steps}", f"optimizer.lr={lr}", f"seed={seed}"
    return compose_config("train", [*SETTINGS, *case.overrides, *sizes]).cfg


def train(units: int, case: Case, stage: str, lr: float, seed: int) -> Row:
    """Train one network and measure it: its own row, with empty numbers and `broken` where its loss was not finite.

    Raises:
        SystemExit: a signal asks to stop; the run is begun anew next time.
    """
    cfg = configuration(units, case, stage, lr, seed)
    measures = [held_out, report("frechet_pixels", "accuracy")] if stage == "run" else [held_out]
    found = training.train(cfg, *measures)
    row: Row = {"units": units, "case": case.name, "stage": stage, "lr": lr, "seed": seed}
    row |= {"steps": cfg.trainer.max_steps, "parameters": found["parameters"]}
    names = ("val_loss", "val_mse", "frechet_pixels", "accuracy", "train_loss", "step_ms", "broken")
    return row | {name: found.get(name) for name in names} | {"commit": commit_of()}


def read() -> list[Row]:
    """The runs that are done, numbers as numbers."""
    if not RUNS.is_file():
        return []
    with RUNS.open(newline="", encoding="utf-8") as file:
        return [{key: _value(key, text) for key, text in row.items()} for row in csv.DictReader(file)]


def _value(key: str, text: str) -> Any:
    if key in ("case", "stage", "broken", "commit"):
        return text
    if key in ("units", "seed", "steps", "parameters"):
        return int(text)
    return float(text) if text else None


def shown(row: Row) -> str:
    """A run in one line."""
    names = ("val_loss", "frechet_pixels", "accuracy", "step_ms")
    numbers = ", ".join(f"{name} {row[name]:.4g}" for name in names if row[name] is not None)
    return f"{row['units']} units, {row['case']}, {row['stage']}, lr {row['lr']:g}, seed {row['seed']}: " + (
        row["broken"] or numbers
    )
