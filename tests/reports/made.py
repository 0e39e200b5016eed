"""Runs that nobody trained: the files that reports read, with numbers that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

PROTOCOL = "how; 50 samples a class; weights ema; step {step}; seed {seed}. So it was."


def make_run(
    folder: Path,
    rule: str = "gated",
    seed: int = 0,
    losses: Mapping[int, float] | None = None,
    row: Mapping[str, Any] | None = None,
    finished: bool = True,
    protocol: str = PROTOCOL,
    **settings: Any,
) -> Path:
    """A run of a rule and a seed.

    Args:
        losses: step -> validation loss, the last step being that of the run; the training loss is twice as large.
        row: numbers of its report; None for a run without one.
        finished: an unfinished one has not logged its last step.
        settings: further keys of its configuration, nested.
    """
    losses = {2: 1.0, 4: 0.5} if losses is None else losses
    last = max(losses)
    config = {
        "choices": {"exp": "made", "residual": rule, "diffusion": "ddpm"},
        "seed": seed,
        "residual": {"rule": rule, "granularity": "channel"},
        "control": None,
        "gamma": 0.0,
        "backbone": {"depth": 2},
        "trainer": {"max_steps": last},
        "data": {"batch_size": 8},
        "optimizer": {"lr": 1e-3},
        "diffusion": {"loss": "hybrid"},
        "callbacks": {"sensitivity": {"every_n_steps": seed + 1}},
    }
    for key, value in settings.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in config else value  # type: ignore[dict-item]
    logged = [(step, loss) for step, loss in losses.items() if finished or step < last]
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = "".join(f"{step},{2 * float(loss)!r},{float(loss)!r}\n" for step, loss in logged)
    (folder / "metrics.csv").write_text(f"step,train/loss,val/loss\n{lines}")
    if finished:
        (folder / "finished.json").write_text(json.dumps({"global_step": last}))
    if row is not None:
        (folder / "report").mkdir()
        report = {"protocol": protocol.format(step=last, seed=seed), "rows": [{"name": "generated", **row}]}
        (folder / "report" / "metrics.json").write_text(json.dumps(report))
    return folder


def write_sweep(
    folder: Path, jobs: Mapping[str, list[str]], base: str | None = None, **states: Mapping[str, Any]
) -> None:
    """`sweep.json`; `states` are called `job_0`, `job_1`, ..."""
    told = {name.removeprefix("job_"): dict(state) for name, state in states.items()}
    record = {"arguments": [], "jobs": dict(jobs), "base": base, "states": told}
    (folder / "sweep.json").write_text(json.dumps(record))
