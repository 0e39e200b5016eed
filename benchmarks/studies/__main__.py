"""`python -m benchmarks.studies [NAME ...]`: train what is not there yet of these studies, or of all."""

from __future__ import annotations

import argparse
import os
import sys
import time

from benchmarks.commit import commit_of
from benchmarks.studies.measures import MEASURES
from benchmarks.studies.plan import STUDIES, Job, Study
from benchmarks.studies.rows import RESULTS, add, read
from benchmarks.training import Row, machine, train
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import DataError, UserError
from neural_rdm.core.locks import held
from neural_rdm.core.progress import span

#: of this folder, what a row depends on
CODE = ("benchmarks/studies/measures.py", "benchmarks/studies/plan.py")


def main() -> None:
    """Train, one run behind the other, and tell each as it ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(STUDIES)}; all by default")
    parser.add_argument("--list", action="store_true", help="say how much of each is done, and train nothing")
    parser.add_argument("--runs", type=int, metavar="N", help="stop a study once N of its runs are done")
    typed = parser.parse_args()
    if unknown := sorted(set(typed.names) - set(STUDIES)):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    for name in typed.names or STUDIES:
        study = STUDIES[name]
        if typed.list:
            print(f"{name}: {len(read(name))} of {len(study.jobs)} runs done. {study.question}")
        else:
            run(study, typed.runs)


def run(study: Study, count: int | None = None) -> None:
    """Train what is not there yet of the first `count` runs; one process at a time for a study."""
    folder = RESULTS / f".{study.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder, "benchmarks.studies"):
        done = {study.key(row) for row in read(study.name)}
        left = [job for job in study.jobs[:count] if study.key(job.row) not in done]
        print(f"{study.name}: {len(done)} of {len(study.jobs)} runs done", flush=True)
        began, work = time.monotonic(), 0.0
        for i, job in enumerate(left):
            row = train_job(study, job)
            add(study.name, row)
            work += job.work
            ahead = sum(other.work for other in left[i + 1 :]) * (time.monotonic() - began) / work
            print(f"[{study.name}, about {span(ahead)} left] {shown(row)}", flush=True)
    os.rmdir(folder)


def train_job(study: Study, job: Job) -> Row:
    """One run: what it is, what it found, the commit, and the machine."""
    cfg = compose_config("train", [*study.settings, *job.overrides]).cfg
    during = {step: MEASURES[study.during] for step in study.steps}  # noqa: C420 - not asked of a study without steps
    found = train(cfg, *(MEASURES[name] for name in study.measures), during=during)
    return job.row | {"steps": cfg.trainer.max_steps} | found | {"commit": commit_of(*CODE), "machine": machine()}


def shown(row: Row) -> str:
    """A run in one line, its vectors left out."""
    parts = {
        k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in row.items() if k not in ("commit", "machine")
    }
    return " ".join(f"{key}={value}" for key, value in parts.items() if value and " " not in value)


if __name__ == "__main__":
    try:
        main()
    except (DataError, UserError) as error:
        sys.exit(str(error))
