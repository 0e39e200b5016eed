"""Runs the jobs of a sweep: several at once, each a process and a folder of its own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from hydra.utils import instantiate

from neural_rdm.cli.jobs import State, save_record, state
from neural_rdm.cli.planning import Plan
from neural_rdm.cli.pools import Future, Line
from neural_rdm.cli.sweepers import Sweeper
from neural_rdm.cli.telling import Running, Telling, why
from neural_rdm.core.errors import first_line
from neural_rdm.core.files import sweep
from neural_rdm.core.locks import held
from neural_rdm.core.output import LOG
from neural_rdm.core.progress import EVERY
from neural_rdm.core.signals import catch, give_back
from neural_rdm.reports.pages.index import tell
from neural_rdm.reports.runs import steps_done
from neural_rdm.reports.sweeps import FILE as SWEEP_FILE

_PAUSE = 0.1  # seconds between two looks at the jobs


def launch(plan: Plan) -> int:
    """Run what is not finished of a sweep.

    A job that fails does not stop the others. The signals that ask this process to stop are handed on to every job,
    which saves its step; the same sweep started again goes on.

    Returns:
        The exit code: 0, 1 where a job has failed, 128 + its number where a signal stopped the sweep.

    Raises:
        UserError: the sweep cannot begin.
    """
    sweeper: Sweeper = instantiate(plan.how.sweeper)
    sweeper.check(plan)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with held(plan.folder, "sweep"):
            sweep(plan.folder, deep=False)  # what a killed one has left; each job sweeps its own folder
            return _Sweep(plan, sweeper).run()
    finally:
        if (plan.folder / SWEEP_FILE).is_file():
            tell(plan.folder)


class _Sweep:
    """The jobs that run now."""

    def __init__(self, plan: Plan, sweeper: Sweeper) -> None:
        self.plan, self.record, self.sweeper, self.at_once = plan, plan.record, sweeper, plan.how.jobs
        pool = instantiate(plan.how.launcher)
        self.submit: Callable[[Line], Future] = pool.start(self.at_once, plan.folder)
        self.threads = _threads(self.at_once) if pool.here else None
        self.running: dict[str, Running] = {}
        self.signal = 0
        sweeper.begin()
        self.tell = Telling(plan, sweeper.total)

    def run(self) -> int:
        """Run them to their ends; returns the exit code of the sweep."""
        save_record(self.plan.folder, self.record)
        tell(self.plan.folder)
        self.tell.plan_of(self.threads)
        before, told = catch(self._stop), time.monotonic()
        try:
            while True:
                while not self.signal and len(self.running) < self.at_once and (number := self.sweeper.next()):
                    self._start(number)
                if not self.running:
                    break
                for number in [n for n, job in self.running.items() if job.future.done()]:
                    self._end(number)
                for number, job in self.running.items():
                    if self.at_once == 1:  # what several print at once would be soup
                        job.show()
                    if not job.given_up and not self.signal and self.sweeper.gives_up(number):
                        job.given_up = True
                        job.line.ask_to_stop(signal.SIGTERM)
                if time.monotonic() - told > EVERY:
                    told = time.monotonic()
                    self.tell.progress(self.running)
                time.sleep(_PAUSE)
        finally:
            give_back(before)
        self.tell.summary()
        failed = any(how["state"] == "failed" for how in self.record.states.values())
        return 128 + self.signal if self.signal else int(failed)

    def _stop(self, number: signal.Signals) -> None:
        self.signal = number
        for job in self.running.values():
            job.line.ask_to_stop(number)

    def _start(self, number: str) -> None:
        folder, module = self.plan.folder / number, self.plan.module
        line = Line(folder, module, self.record.jobs[number], self.plan.further, self.threads)
        line.forget()
        self.record.states[number] = {"state": "running"}
        save_record(self.plan.folder, self.record)
        self.tell.begins(number, folder, begun=state(folder, module) is State.BEGUN)
        printed = (folder / LOG).stat().st_size if (folder / LOG).is_file() else 0
        begin, before = time.monotonic(), steps_done(folder) or 0
        self.running[number] = Running(line, self.submit(line), begin, before, printed)

    def _end(self, number: str) -> None:
        job = self.running.pop(number)
        error = ""
        try:
            code = job.future.result()
        except Exception as problem:  # of the pool: a worker or a node was lost
            code, error = 1, first_line(problem)
        if self.at_once == 1:
            job.show()
        job.line.forget()
        there = state(job.line.folder, self.plan.module)
        if (there is State.FINISHED and code > 128) or (code == 0 and there is not State.BEGUN):
            how = "finished"  # also where a signal came behind that
        elif job.given_up:
            how = "pruned"
        elif self.signal:
            how = "stopped"
        else:
            how, error = "failed", error or why(job.line.folder / LOG, code)
        self.record.states[number] = {"state": how, "seconds": round(job.seconds(), 1), "steps": job.steps()}
        self.record.states[number] |= {"error": error} if how == "failed" else {}
        save_record(self.plan.folder, self.record)
        self.sweeper.ended(number)
        self.tell.ends(number, job.seconds())


def _threads(jobs: int) -> int | None:
    """Of each of so many jobs on this machine; None where it is said already. An experiment may say fewer."""
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)
