"""`python -m neural_rdm.sweep`: train the jobs of a study, or of a command line, then compare them.

python -m neural_rdm.sweep exp=digits_gated residual=gated,adaln,skip,resnet,rezero
"""

from __future__ import annotations

import shlex
import sys

from neural_rdm.cli.app import Arguments, plan
from neural_rdm.cli.jobs import SWEEP_DIR, end_with_parent
from neural_rdm.cli.launcher import launch
from neural_rdm.cli.stopping import Work, stoppable, told
from neural_rdm.config.compose import prepare_hydra
from neural_rdm.core.extras import typed
from neural_rdm.report import compare
from neural_rdm.runs.load import find_runs
from neural_rdm.train import complete

HELP = """Train one run for each job of a study, or each combination of comma-separated values, then compare them.

python -m neural_rdm.sweep exp=digits_gated residual=gated,adaln,skip,resnet,rezero
python -m neural_rdm.sweep exp=digits_gated residual=gated,resnet backbone.depth=2,4 seeds=3 jobs=2
python -m neural_rdm.sweep exp=STUDY [seeds=10] [KEY=V1,V2 ...]         (an experiment with a node sweep)
python -m neural_rdm.sweep exp=digits_gated residual=gated,resnet optimizer.lr=1e-3,3e-3,1e-2 [best_by=val/loss]
python -m neural_rdm.sweep hydra.sweep.dir=DIR [...]      (the folder to write to; of the same sweep: go on there)
python -m neural_rdm.sweep sweeper=optuna sweeper.trials=20 optimized_metric=val/loss \\
    'optimizer.lr=tag(log,interval(1e-4,1e-2))'           (settings proposed by Optuna, the worse ones given up early)
python -m neural_rdm.sweep launcher=submitit launcher.parameters.slurm_partition=gpu jobs=64 [...] (also joblib, ray)

jobs=N runs so many jobs at once, which share the processors (OMP_NUM_THREADS); seeds=N (or a list) gives every job
the seeds 0 to N - 1. All other arguments are those of neural_rdm.train (see python -m neural_rdm.train --help); a comma
list is crossed with the grids of the study, and a key that is typed takes the place of a grid's.
The runs go to outputs/sweep/<experiment>/<time>/0, 1, 2, ..., each with what it printed in output.log, and
index.html (the page), comparison.md, comparison.csv, summary.csv and the figures beside them; sweep.json
says what the jobs are and which failed.
Where runs differ in optimizer.lr, the comparison also tells the best learning rate of each rule, by the metric best_by:
a column of metrics.csv (optimized_metric, or val/loss, by default) or a number of the report (frechet_pixels).
A run that fails does not stop the others; the exit code says that one has failed. The same command with the same folder
goes on: finished runs stay, interrupted ones are resumed from their checkpoints, failed ones are tried again.
"""


def sweep(argv: list[str], work: Work | None = None) -> int:
    """Train the jobs that these arguments stand for, write their comparison, and return the exit code.

    In the folder of an earlier sweep with the same arguments only what is not finished is run, from where it stopped.

    Args:
        work: is told the folder.

    Raises:
        UserError: a mistake in the arguments, before anything has started.
    """
    chosen = [a.partition("=")[2] for a in argv if a.startswith("best_by=")]
    trained = [a for a in argv if not a.startswith("best_by=")]
    planned = plan("train", Arguments.parse(["-m", *trained]), complete)
    if work is not None:
        work.folder = planned.folder
    code = launch(planned)
    if runs := find_runs(planned.folder):
        compare(runs, planned.folder, chosen[-1] if chosen else planned.objective)
    if code:
        own = shlex.join(a for a in argv if not a.startswith(f"{SWEEP_DIR}="))
        again = f"python -m neural_rdm.sweep {own} {typed(SWEEP_DIR, planned.folder)}"
        print(f"not every job is finished; this goes on with the sweep:\n  {again}", flush=True)
    return code


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP, end="")
        raise SystemExit(0)
    prepare_hydra()
    end_with_parent()
    work = Work("sweep")
    with stoppable(work), told(work):
        raise SystemExit(sweep(sys.argv[1:], work))
