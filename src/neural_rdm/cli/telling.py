"""What a sweep says of itself: its plan, how far its jobs are, how long the rest takes. On a terminal and in a log file
alike these are plain lines.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from neural_rdm.cli.jobs import State, state
from neural_rdm.cli.planning import Plan
from neural_rdm.cli.pools import Future, Line
from neural_rdm.config.compose import as_text
from neural_rdm.config.grids import SEED
from neural_rdm.core.output import LOG
from neural_rdm.core.progress import span
from neural_rdm.reports.runs import steps_done

#: how a job has ended that is not finished
ENDS = ("failed", "pruned", "stopped")


@dataclass
class Running:
    """A job that runs."""

    line: Line
    future: Future
    begin: float  # time.monotonic()
    before: int  # steps that it had done then
    shown: int = 0  # bytes of its output that were shown
    given_up: bool = False
    first: tuple[float, int] | None = None  # when steps were seen first, and how many

    def steps(self) -> int:
        """Steps that it has done since it was started."""
        return max(0, (steps_done(self.line.folder) or 0) - self.before)

    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.begin

    def rate(self, steps: int) -> float | None:
        """Steps in a second since they were seen first, now that there are so many; None where none came since."""
        now = time.monotonic()
        self.first = self.first or ((now, steps) if steps else None)
        return None if self.first is None or steps == self.first[1] else (steps - self.first[1]) / (now - self.first[0])

    def show(self) -> None:
        """Print what it has printed since."""
        with contextlib.suppress(OSError), (self.line.folder / LOG).open("rb") as log:
            log.seek(self.shown)
            new = log.read()
            self.shown += len(new)
            sys.stdout.write(new.decode("utf-8", "replace"))
            sys.stdout.flush()


class Telling:
    """Tells of a sweep.

    Args:
        total: its jobs, those that will be proposed too.
    """

    def __init__(self, plan: Plan, total: int) -> None:
        self.plan, self.record, self.total = plan, plan.record, total
        self.failed: set[str] = set()  # now; those that had failed before are tried again

    def plan_of(self, threads: int | None) -> None:
        """What is going to happen."""
        far = [self._state(number) for number in self.record.jobs]
        seeds = {o for job in self.record.jobs.values() for o in job if o.startswith(f"{SEED}=")}
        settings = {tuple(o for o in job if o not in seeds) for job in self.record.jobs.values()}
        of = f" ({len(settings)} settings, {len(seeds)} seeds)" if len(seeds) > 1 else ""
        begun = f", {far.count(State.BEGUN)} begun" if State.BEGUN in far else ""
        each = "" if threads is None else f", {threads} thread{'s' * (threads > 1)} each"
        print(f"sweep -> {self.plan.folder}")
        finished = f"{far.count(State.FINISHED)} finished"
        print(f"  {self.total} job{'s' * (self.total != 1)}{of}, {finished}{begun}; {self.plan.how.jobs} at once{each}")
        varied: dict[str, dict[str, None]] = {}
        for number in self.record.jobs:
            for override in self.record.apart(number):
                key, _, value = override.partition("=")
                varied.setdefault(key, {})[value] = None
        for ranged in self.plan.typed if self.total > len(far) else ():  # jobs that are still to be proposed
            if ranged.is_sweep_override():
                print(f"  {as_text(ranged)}")
        for key, values in varied.items() if self.total == len(far) else ():
            print(f"  {key}: {', '.join(values)}")
        left = self.left([])
        print(f"  about {span(left)}" if left else "  how long it takes is told once a job has done steps", flush=True)

    def begins(self, number: str, folder: Path, begun: bool) -> None:
        """A job starts."""
        print(f"{self._title(number)} {'goes on' if begun else 'begins'} -> {folder}", flush=True)

    def ends(self, number: str, seconds: float) -> None:
        """A job has ended, as the record says."""
        how, folder = self.record.states[number], self.plan.folder / number
        self.failed |= {number} if how["state"] == "failed" else set()
        what = {"pruned": "is given up: its validation loss is worse than the others'"}.get(how["state"], how["state"])
        why = f": {how['error']} (all of it: {folder / LOG})" if "error" in how else ""
        print(f"{self._title(number)} {what} after {span(seconds)}{why}", flush=True)

    def progress(self, running: dict[str, Running]) -> None:
        """A line for each job that runs, and one for the sweep."""
        for number, job in running.items():
            done, planned, new = job.before + job.steps(), self.plan.steps.get(number), job.steps()
            line = f"step {done}" + (f" of {planned}" if planned else "")
            rate = job.rate(new)
            if rate and done != planned:
                line += f", {rate:.3g} steps/s" + (f", {span((planned - done) / rate)} left" if planned else "")
            print(f"{self._title(number)}: {line if done else f'running for {span(job.seconds())}'}", flush=True)
        self.summary(self.left(running.values()))

    def summary(self, left: float | None = None) -> None:
        """How many jobs are finished, and how many are not and will not be."""
        states = [how["state"] for how in self.record.states.values()]
        finished = sum(self._state(number) is State.FINISHED for number in self.record.jobs)
        told = [f"{finished} of {self.total} jobs finished"]
        told += [f"{states.count(end)} {end}" for end in ENDS if end in states]
        told += [f"about {span(left)} left"] if left else []
        print(f"sweep: {', '.join(told)}", flush=True)

    def left(self, running: Iterable[Running]) -> float | None:
        """Seconds to the end, by what a step of the jobs so far has taken, their starts and reports included; None
        where nothing tells.
        """
        spent = [(how["seconds"], how["steps"]) for how in self.record.states.values() if how.get("steps")]
        spent += [(job.seconds(), job.steps()) for job in running]
        seconds, steps = sum(s for s, _ in spent), sum(n for _, n in spent)
        planned = self.plan.steps
        if not steps or not planned:
            return None
        ended = self.failed | {n for n, how in self.record.states.items() if how["state"] == "pruned"}
        rest = sum(
            max(0, planned[n] - (steps_done(self.plan.folder / n) or 0))
            for n in planned
            if n not in ended and self._state(n) is not State.FINISHED
        )
        rest += (self.total - len(planned)) * sum(planned.values()) // len(planned)  # jobs still to be proposed
        return rest * seconds / steps / self.plan.how.jobs

    def _state(self, number: str) -> State:
        return state(self.plan.folder / number, self.plan.module)

    def _title(self, number: str) -> str:
        typed = {as_text(override) for override in self.plan.typed}
        own = self.record.apart(number) or [o for o in self.record.jobs[number] if o not in typed]
        return f"[{int(number) + 1} of {self.total}] {' '.join(own)}".rstrip()


def why(log: Path, code: int) -> str:
    """Why a job has failed: the first line of its error, or else the last line that it printed."""
    if code > 128 and code - 128 in {int(number) for number in signal.Signals}:
        return f"ended by {signal.Signals(code - 128).name}"
    lines = list(_lines(log))
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line)]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")


def _lines(log: Path) -> Iterator[str]:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 65536))
        yield from (line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip())
