"""`python -m neural_rdm.sweep`: train a multirun, then compare its runs.

python -m neural_rdm.sweep exp=digits_gated residual=gated,adaln,skip,resnet,rezero
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from neural_rdm.cli.app import fail
from neural_rdm.cli.jobs import SWEEP_DIR, environment
from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import as_typed, written
from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.core.extras import typed
from neural_rdm.core.signals import catch, give_back
from neural_rdm.report import compare
from neural_rdm.reports.rates import BEST_BY
from neural_rdm.reports.sweeps import FILE
from neural_rdm.runs.load import find_runs

HELP = """Train one run for each combination of comma-separated values, then compare them.

python -m neural_rdm.sweep exp=digits_gated residual=gated,adaln,skip,resnet,rezero
python -m neural_rdm.sweep exp=digits_gated residual=gated,resnet backbone.depth=2,4 seed=0,1,2
python -m neural_rdm.sweep exp=digits_gated residual=gated,resnet optimizer.lr=1e-3,3e-3,1e-2 [best_by=val/loss]
python -m neural_rdm.sweep hydra.sweep.dir=DIR [...]      (the folder to write to; of the same sweep: go on there)

The arguments are those of neural_rdm.train (see python -m neural_rdm.train --help). The runs go to
outputs/sweep/<experiment>/<time>/0, 1, 2, ..., and comparison.md, comparison.csv and comparison_losses.png beside them.
Where runs differ in optimizer.lr, the comparison also tells the best learning rate of each rule, by the metric best_by:
a column of metrics.csv (val/loss by default) or a number of the report (frechet_pixels).
A run that fails does not stop the others; the exit code says that one has failed. The same command with the same folder
goes on: finished runs stay, interrupted ones are resumed from their checkpoints, failed ones are tried again.
"""
DEFAULT_EXP = "digits_gated"


def sweep(argv: list[str]) -> int:
    """Run `neural_rdm.train -m` with these arguments, write the comparison, and return the multirun's exit code.

    In the folder of an earlier sweep with the same arguments only what is not finished is run, from where it stopped.

    Raises:
        UserError: arguments that are not overrides, or a sweep folder that only Hydra could resolve.
    """
    overrides = [a for a in argv if a not in ("-m", "--multirun")]
    chosen = [a.partition("=")[2] for a in overrides if a.startswith("best_by=")]
    trained = [a for a in overrides if not a.startswith("best_by=")]
    folder, more = choose_folder(trained)
    code = run([sys.executable, "-m", "neural_rdm.train", "-m", *trained, *more])
    runs = find_runs(folder) if (folder / FILE).is_file() else []  # a folder of something else is left alone
    if runs:
        compare(runs, folder, chosen[-1] if chosen else BEST_BY)
    if code and code != 2 and (folder / FILE).is_file():
        own = shlex.join(a for a in overrides if not a.startswith(f"{SWEEP_DIR}="))
        again = f"python -m neural_rdm.sweep {own} {typed(SWEEP_DIR, folder)}"
        print(f"not every job is finished; this goes on with the sweep:\n  {again}", flush=True)
    return code


def choose_folder(overrides: list[str]) -> tuple[Path, list[str]]:
    """The folder of the sweep and the overrides that send its runs there.

    Raises:
        ConfigError: an argument that is not an override, or a folder with an interpolation in it.
    """
    parsed = parse(as_typed([a for a in overrides if "=" in a and not a.startswith("-")], "train"))
    given = [str(o.value()) for o in parsed if o.key_or_group == SWEEP_DIR]
    if given:
        if "${" in given[-1]:
            raise ConfigError(f"{SWEEP_DIR}={given[-1]}: give this command a plain folder, without ${{...}}")
        return Path(given[-1]), []
    chosen = ["several" if o.is_sweep_override() else str(o.value()) for o in parsed if o.key_or_group == "exp"]
    folder = Path("outputs/sweep") / (chosen or [DEFAULT_EXP])[-1] / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return folder, [f"{SWEEP_DIR}={written(str(folder))}"]


def run(command: list[str]) -> int:
    """Run a command as a session of its own, hand on what asks it to stop to all its processes, and return its exit
    code.

    Where this process is killed, the command stops as by SIGTERM (see `cli.jobs.end_with_parent`).
    Lightning's rank variables are left out of its environment: a sweep started inside a job is not a rank of it.
    """
    process = subprocess.Popen(command, env=environment(), start_new_session=True)

    def forward(number: signal.Signals) -> None:
        if process.poll() is None:
            os.killpg(process.pid, number)

    before = catch(forward)
    try:
        code = process.wait()
    finally:
        give_back(before)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        raise SystemExit(0)
    try:
        raise SystemExit(sweep(sys.argv[1:]))
    except UserError as error:
        fail(error)
