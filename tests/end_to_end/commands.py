"""Starting the commands as a user would, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from neural_rdm.core.files import load_tensors, remove
from tests.processes import Popen

#: the default experiment, cut down to seconds
TINY = (
    "backbone.depth=2",
    "backbone.hidden_size=32",
    "backbone.num_heads=4",
    "data.batch_size=16",
    "sampler.steps=2",
    "metric.per_class=2",
    "callbacks.samples.per_class=1",
    "logger=csv",
)
#: the same without what takes longest: the figures of the sensitivities, and the samples that are measured at the end
BARE = (*(option for option in TINY if not option.startswith("metric.")), "~metric", "~callbacks.sensitivity")


def start(*args: str, cwd: Path, module: str = "train") -> subprocess.Popen[str]:
    """Start `python -m neural_rdm.MODULE ARGS` in `cwd`; output goes to `cwd/output.txt` as well as nowhere else."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with (cwd / "output.txt").open("a") as output:
        return Popen(
            [sys.executable, "-m", f"neural_rdm.{module}", *args],
            cwd=cwd,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def run(*args: str, cwd: Path, module: str = "train", timeout: float = 300) -> tuple[int, str]:
    """Run a command to its end; returns its exit code and all it printed."""
    (cwd / "output.txt").unlink(missing_ok=True)
    process = start(*args, cwd=cwd, module=module)
    try:
        code = process.wait(timeout)
    finally:
        process.kill()
    return code, (cwd / "output.txt").read_text()


def cut(whole: Path, folder: Path, step: int) -> None:
    """Copy a run as it was when it had saved `step`."""
    shutil.copytree(whole, folder, symlinks=True)
    (folder / "finished.json").unlink()
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name == "last.ckpt" or int(path.stem.removeprefix("step=")) > step:
            remove(path)
    assert (folder / "checkpoints" / f"step={step:09d}.ckpt").exists()


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str], timeout: float = 120) -> None:
    """Wait until the run in `folder` has logged `step` or a later one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        lines = (folder / "metrics.csv").read_text().splitlines() if (folder / "metrics.csv").is_file() else []
        if len(lines) > 1 and lines[-1].split(",")[0].isdigit() and int(lines[-1].split(",")[0]) >= step:
            return
        assert process.poll() is None, f"the run ended before step {step}"
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Paths at which two checkpoints differ in a single bit, or in the type of a container."""
    if type(a) is not type(b):
        return [where]
    if isinstance(a, dict) and isinstance(b, dict):
        odd = [f"{where}/{key}" for key in a.keys() ^ b.keys()]
        return odd + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{where}/{i}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b
    return [] if same else [where]


def checkpoint(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    """A run's checkpoint, read as strictly as anybody may read it."""
    path = folder / "checkpoints" / name
    return load_tensors(path) if path.is_dir() else torch.load(path, weights_only=True)
