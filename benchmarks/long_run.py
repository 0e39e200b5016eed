"""`python -m benchmarks long_run`: 20,000 steps of the digits with everything on, watched from outside.

A process that trains for weeks must not grow, and neither must its log. The command is the ordinary one; this process
reads what the system says of it every few seconds: its memory (the resident set of the trainer and, apart, of its
worker) and its CPU time, with the step that it has logged last.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

STEPS, EVERY = 20_000, 5.0
COMMAND = (
    "exp=digits_gated", "backbone.hidden_size=16", "backbone.depth=2", "backbone.num_heads=2", "data.batch_size=8",
    "data.num_workers=1", "gamma=0.35", "callbacks.ema.further=[0.999]", "metric.per_class=2", "sampler.steps=2",
    "log_every_n_steps=20", "checkpoint.every_n_steps=500", "callbacks.validation.every_n_steps=1000",
    "callbacks.samples.every_n_steps=1000", "callbacks.samples.per_class=1", "callbacks.sensitivity.every_n_steps=50",
    "callbacks.evaluation.every_n_steps=4000", "callbacks.evaluation.count=20", "logger=tensorboard",
)  # fmt: skip
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
RESULTS = Path(__file__).parent / "results"


def run(steps: int = STEPS, every: float = EVERY) -> dict[str, Any]:
    """The slopes, the sizes and the CPU time of a long run; its samples go to `results/long_run.csv`."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        line = [sys.executable, "-m", "neural_rdm.train", *COMMAND, f"trainer.max_steps={steps}"]
        begin = time.monotonic()
        rows = []
        with (Path(place) / "output.txt").open("w") as output, subprocess.Popen(
            [*line, f"hydra.run.dir={folder}"], cwd=place, stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        ) as process:  # fmt: skip
            try:
                while process.poll() is None:
                    time.sleep(every)
                    if (row := _look(process.pid, folder, time.monotonic() - begin)) is not None:
                        rows.append(row)
                        print(row, flush=True)
            finally:
                process.terminate()
        said = (Path(place) / "output.txt").read_text()
        assert process.returncode == 0, said
        result = summary(rows, steps) | {"files": _sizes(folder), "printed_bytes": len(said)}
    with (RESULTS / "long_run.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return {"command": ["neural-rdm", "train", *COMMAND, f"trainer.max_steps={steps}"], "steps": steps, **result}


def _look(pid: int, folder: Path, seconds: float) -> dict[str, Any] | None:
    """What is known of the run now; None before its first row."""
    try:
        children = _children(pid)
        step = int((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0])
        cpu = _cpu(pid)
        return {
            "seconds": round(seconds, 1),
            "step": step,
            "cpu_s": round(cpu + sum(map(_cpu, children)), 2),
            "trainer_mb": round(_private(pid) / 2**20, 2),
            "worker_mb": round(sum(map(_private, children)) / 2**20, 2),
            "log_bytes": (folder / "output.log").stat().st_size,
            "run_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        }
    except (OSError, ValueError, IndexError):  # a process that has just ended
        return None


def _children(pid: int) -> list[int]:
    stats = ((int(path.name), path / "stat") for path in Path("/proc").iterdir() if path.name.isdigit())
    return [
        child for child, stat in stats if stat.is_file() and int(stat.read_text().rpartition(")")[2].split()[1]) == pid
    ]


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _private(pid: int) -> int:
    """Memory of a process that no file stands behind: what a leak grows."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return 1024 * int(fields.get("RssAnon", "0 kB").split()[0])  # none of a process that is ending


def summary(rows: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Slopes of the memory over the second half of the run, and CPU time a step in its first and last tenth.

    The first tenth begins with the first row that is known, behind what a run does once; the last ends with the last
    row before the last step, when the worker is there still.
    """
    highest = max(row["trainer_mb"] for row in rows)
    rows = [row for row in rows if row["step"] < steps]
    step, cpu = (np.array([row[key] for row in rows], float) for key in ("step", "cpu_s"))
    half = step >= steps / 2
    result: dict[str, Any] = {"highest_mb_with_the_report": highest}
    for key in ("trainer_mb", "worker_mb"):
        memory = np.array([row[key] for row in rows], float)
        x, y = step[half] / 1000, memory[half]
        slope, offset = np.polyfit(x, y, 1)
        rest = y - slope * x - offset
        error = float(np.sqrt(rest @ rest / max(1, len(x) - 2) / ((x - x.mean()) @ (x - x.mean()))))
        result[key] = {
            "at_tenth": float(np.interp(steps / 10, step, memory)),
            "at_end": float(memory[-1]),
            "highest": float(memory.max()),
            "slope_mb_per_1000_steps": float(slope),
            "slope_2_standard_errors": 2 * error,
        }
    tenths = [float(np.interp(steps * k / 10, step, cpu)) for k in range(11)]
    each = [1000 * (b - a) / (steps / 10) for a, b in itertools.pairwise(tenths)]
    each[0] = 1000 * float(np.interp(steps / 10, step, cpu) - cpu[0]) / (steps / 10 - step[0])
    each[-1] = 1000 * float(cpu[-1] - np.interp(steps * 0.9, step, cpu)) / float(step[-1] - steps * 0.9)
    result["cpu_ms_per_step_by_tenth"] = each
    result["last_tenth_against_first"] = each[-1] / each[0] - 1
    result["cpu_ms_per_step"] = statistics.fmean(each)
    return result


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of the files of a finished run, by their folder or name."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).parts[0]
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sizes


if __name__ == "__main__":
    print(json.dumps(run(steps=int(sys.argv[1]), every=0.5), indent=1))
