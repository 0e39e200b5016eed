"""What Lightning and every callback cost beside a step: the real command `train`, with a clock around the step's own
work: forward pass, loss and backward pass, norm and clipping of the gradient, optimizer, average. Everything else
between two batches is the cost.

The network is DiT-S on the digits, cut into 64 tokens, in batches of 8: as many tokens and parameters as DiT-S/2 on
latents in batches of 2, without a data set to fetch. A share of whole steps would drown in their noise of some percent;
a clock inside one process does not.
"""

from __future__ import annotations

import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neural_rdm.reports.tables import markdown_table

STEPS, WARM = 30, 10
COMMAND = (
    "exp=digits_gated", "backbone.hidden_size=384", "backbone.depth=12", "backbone.num_heads=6",
    "backbone.patch_size=1", "data.batch_size=8", "data.num_workers=0", "~metric", "log_every_n_steps=10",
    "callbacks.sensitivity.every_n_steps=1000",
)  # fmt: skip


def run() -> dict[str, Any]:
    """Milliseconds of CPU time of the median step, of its own work, and of the rest."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        arguments = [*COMMAND, f"trainer.max_steps={STEPS}", f"hydra.run.dir={folder}/run"]
        code = "import sys; from benchmarks.overhead import clocked; clocked(sys.argv.pop(1))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(found), *arguments], capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert found.is_file(), done.stdout + done.stderr
        steps = json.loads(found.read_text())
    rows = [{"what": name, "ms": 1000 * statistics.median(step[name] for step in steps)} for name in steps[0]]
    rest = [step["whole"] - step["own work"] for step in steps]
    result = {
        "steps": len(steps),
        "command": ["neural-rdm", "train", *COMMAND],
        "rows": rows,
        "rest_ms": {"median": 1000 * statistics.median(rest), "mean": 1000 * statistics.fmean(rest)},
        "share": sum(rest) / sum(step["own work"] for step in steps),
        "goal": "at most 0.01",
    }
    print(markdown_table(rows))
    print(f"beside the step's own work: {result['rest_ms']['mean']:.2f} ms a step, {result['share']:.2%} of it\n")
    return result


def clocked(out: str) -> None:
    """Run the command `train` in this process, its arguments in `sys.argv`, with a clock around the step's work."""
    import torch

    from neural_rdm.training import parallel
    from neural_rdm.training.callbacks.ema import EMA
    from neural_rdm.training.callbacks.progress import StepBar
    from neural_rdm.training.module import NeuralRDM

    own, steps, mark = [0.0], [], [0.0]

    def timed(kind: Any, name: str) -> None:
        plain: Callable[..., Any] = getattr(kind, name)

        def method(*args: Any, **options: Any) -> Any:
            if closure := options.pop("closure", None):  # the optimizer's: Lightning's way to the other parts
                closure()
            begin = time.process_time()
            try:
                return plain(*args, **options)
            finally:
                own[0] += time.process_time() - begin

        setattr(kind, name, method)

    for kind, name in (
        (NeuralRDM, "training_step"), (torch.Tensor, "backward"), (parallel, "norms"),
        (NeuralRDM, "configure_gradient_clipping"), (torch.optim.AdamW, "step"), (EMA, "on_step_end"),
    ):  # fmt: skip
        timed(kind, name)
    shown = StepBar.on_step_end

    def on_step_end(self: Any, *args: Any) -> None:
        shown(self, *args)
        now = time.process_time()
        steps.append({"whole": now - mark[0], "own work": own[0]})
        own[0], mark[0] = 0.0, now

    StepBar.on_step_end = on_step_end  # type: ignore[method-assign]
    try:
        runpy.run_module("neural_rdm.train", run_name="__main__", alter_sys=True)
    finally:
        Path(out).write_text(json.dumps(steps[WARM:]))
