"""A command that stands for training in the tests of sweeps: it takes milliseconds, and does what it is told.

`python -m job how=finish|fail|wait|crash|kill|late hydra.run.dir='DIR' ...` counts its steps in metrics.csv and ends
with a report.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from neural_rdm.cli.planning import Plan
from neural_rdm.reports.sweeps import Record

COMMAND = """
import json, os, pathlib, signal, sys, time
given = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
folder = pathlib.Path(given["hydra.run.dir"].strip("'"))
signals = []
for number in (1, 2, 15):
    signal.signal(number, lambda number, _: signals.append(number))
(folder / "environment.json").write_text(json.dumps(dict(os.environ)))
print("I am", folder.name, flush=True)
metrics = folder / "metrics.csv"
metrics.write_text("step,val/loss\\n")
how, loss = given.get("how", "finish"), float(given.get("loss", 0))
for step in range(1, 6):
    with metrics.open("a") as file:
        file.write(f"{step},{loss}\\n")
    while how == "wait" and step == 3 and not signals and not pathlib.Path("go").exists():
        time.sleep(0.01)
    if signals:
        time.sleep(0.2)
        (folder / "signals.json").write_text(json.dumps([signals, os.getpgid(0) != os.getpgid(os.getppid())]))
        print("stopped after step", step, flush=True)
        sys.exit(128 + signals[0])
if how == "fail":
    print("error: this cannot work", file=sys.stderr)
    sys.exit(2)
if how == "crash":
    raise RuntimeError("out of memory")
if how == "kill":
    os.kill(os.getpid(), 9)
(folder / "report").mkdir(exist_ok=True)
(folder / "report" / "metrics.json").write_text(json.dumps({"rows": [{"name": "generated", "accuracy": 1 - loss}]}))
if how == "late":
    os.kill(os.getpid(), 9)
"""


class Stub(Plan):
    """A sweep of such commands."""

    @property
    def module(self) -> str:
        """What runs a job."""
        return "job"


def stub(jobs: list[str], /, **how: object) -> Stub:
    """A sweep of these jobs in `sweep`, in the current folder, where the command is written."""
    Path("job.py").write_text(COMMAND, encoding="utf-8")
    usual = {
        "jobs": 1,
        "launcher": {"_target_": "neural_rdm.cli.pools.Local"},
        "sweeper": {"_target_": "neural_rdm.cli.sweepers.Grid"},
    }
    record = Record([], {str(n): job.split() for n, job in enumerate(jobs)})
    plan = Stub("job", Path("sweep"), record, OmegaConf.create(usual | how), [], [], lambda _: None)  # type: ignore[arg-type, return-value]
    plan.steps = dict.fromkeys(record.jobs, 5)
    return plan
