"""Where the jobs of a sweep run: a *line* is a job as a command line, and a *pool* runs lines, here or elsewhere.

Hydra's own plugins for joblib, submitit and Ray are not used. They call the task function in their worker processes,
where Lightning's ranks would repeat the worker's command line, and they know nothing of a run folder that is gone on
with: a job that was cut is started anew. What is left of them for command lines is the few lines of each pool below.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from neural_rdm.cli.jobs import State, environment, state
from neural_rdm.config.grammar import written
from neural_rdm.core.arguments import NonNegative, Positive, checked
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.extras import install
from neural_rdm.core.given import read_json
from neural_rdm.core.locks import lives
from neural_rdm.core.output import LOG, appended
from neural_rdm.core.signals import catch, give_back

_PAUSE = 0.2  # seconds between two looks at what a job is asked to do


@dataclass
class Line:
    """A job: called, it runs `python -m module` with its overrides in a process of its own to its end.

    A run that has begun goes on instead. All output is appended to `output.log` in its folder. The process stops as by
    a signal where `ask_to_stop` was called, and where the sweep that the line is of has died on the same machine; a
    sweep on another host may die, as the login node of a cluster does, and its jobs stay.

    Attributes:
        folder: of its run, from `cwd`.
        overrides: of a run that begins.
        further: of every run: options of Hydra and `--config-dir`.
        threads: `OMP_NUM_THREADS` of the job; None leaves the environment's.
        requests: signals that it was asked to send; a copy of the line, elsewhere, reads them from a file.
    """

    folder: Path
    module: str
    overrides: list[str]
    further: list[str]
    threads: int | None = None
    requests: list[int] = field(default_factory=list)
    cwd: str = field(default_factory=os.getcwd)
    owner: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))

    def command(self) -> list[str]:
        """The command line, as it has to be now."""
        place = written(str(self.folder))
        begun = state(Path(self.cwd) / self.folder, self.module) is State.BEGUN
        own = [f"resume={place}"] if begun else [*self.overrides, f"hydra.run.dir={place}"]
        return [sys.executable, "-m", self.module, *own, *self.further, "hydra.mode=RUN"]

    def __call__(self) -> int:
        """Run the job; returns its exit code, that of its signal (128 + number) where one ended it."""
        with self._logged() as log:
            more = {"PYTHONUNBUFFERED": "1"} | ({} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)})
            process = subprocess.Popen(
                self.command(),
                cwd=self.cwd,
                env=environment() | more,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what asks the sweep to stop reaches the job through it, and once
            )
            self._pid = process.pid
            received: list[int] = []
            before = catch(received.append)  # of a cluster; in a thread this does nothing
            try:
                return self._watched(process, received)
            finally:
                give_back(before)

    def checkpoint(self) -> Any:
        """What submitit calls before a time limit or a preemption: the job saves its step, and goes on in a new one."""
        from submitit.helpers import DelayedSubmission

        os.kill(self._pid, signal.SIGTERM)
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(self)

    def _watched(self, process: subprocess.Popen[bytes], received: list[int]) -> int:
        sent = 0
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_PAUSE)
                return code if code >= 0 else 128 - code
            wanted = [*self._asked(), *received]
            for number in wanted[sent:]:
                process.send_signal(number)
            sent = max(sent, len(wanted))

    def _logged(self) -> Any:
        folder = Path(self.cwd) / self.folder
        folder.mkdir(parents=True, exist_ok=True)
        return os.fdopen(appended(folder / LOG), "ab")

    def ask_to_stop(self, number: int) -> None:
        """Send a signal to the job, wherever it runs."""
        self.requests.append(int(number))
        with contextlib.suppress(OSError):  # on a full disk jobs of this process stop all the same
            self._request.write_text(json.dumps(self.requests), encoding="utf-8")

    def forget(self) -> None:
        """Remove what `ask_to_stop` has left."""
        self._request.unlink(missing_ok=True)

    @property
    def _request(self) -> Path:
        folder = Path(self.cwd) / self.folder
        return folder.with_name(f".stop-{folder.name}")

    def _asked(self) -> list[int]:
        found = self.requests
        with contextlib.suppress(OSError, ValueError):
            found = found or read_json(self._request)
        host, pid = self.owner
        orphan = not found and host == socket.gethostname() and not lives(pid)
        return [int(signal.SIGTERM)] if orphan else found


class Future(Protocol):
    """A line that runs."""

    def done(self) -> bool:
        """Whether it has ended."""

    def result(self) -> int:
        """Its exit code."""


class Local:
    """Processes of this machine."""

    here = True  # whether the jobs share the processors of this machine

    def start(self, jobs: int, folder: Path) -> Callable[[Line], Future]:
        """Make ready for so many jobs at once of the sweep in a folder; returns what submits a line."""
        return ThreadPoolExecutor(jobs).submit


@checked()
class Joblib:
    """What joblib computes on.

    Args:
        backend: loky (processes of this machine), or one that is registered with joblib, such as dask or ray.
    """

    here = True

    def __init__(self, backend: str = "loky") -> None:
        self.backend = backend

    def start(self, jobs: int, folder: Path) -> Callable[[Line], Future]:
        """See `Local.start`."""
        joblib, pool = _imported("joblib"), ThreadPoolExecutor(jobs)
        parallel = {"n_jobs": max(2, jobs), "backend": self.backend}  # of one, joblib makes no process
        return lambda line: pool.submit(lambda: joblib.Parallel(**parallel)([joblib.delayed(_run)(line)])[0])


@checked()
class Submitit:
    """Jobs of a SLURM cluster, submitted by submitit. They stay in the queue where the sweep dies.

    Args:
        cluster: slurm, or local for processes of this machine in its place.
        parameters: those of submitit: timeout_min, gpus_per_node, cpus_per_task, mem_gb, slurm_partition, ...
    """

    here = False

    def __init__(self, cluster: Literal["slurm", "local"] = "slurm", parameters: dict[str, Any] | None = None) -> None:
        self.cluster, self.parameters = cluster, {"timeout_min": 24 * 60} | dict(parameters or {})

    def start(self, jobs: int, folder: Path) -> Callable[[Line], Future]:
        """See `Local.start`."""
        submitit = _imported("submitit")
        try:
            executor = submitit.AutoExecutor(folder / "submitit", cluster=self.cluster)
            executor.update_parameters(**self.parameters)
        except (RuntimeError, NameError, ValueError, TypeError) as error:
            raise ConfigError(f"launcher=submitit launcher.cluster={self.cluster}: {error}") from error
        return executor.submit


@checked()
class Ray:
    """Tasks of a Ray cluster.

    Args:
        address: of the cluster; null starts one on this machine.
        num_cpus: processors of each job.
        num_gpus: GPUs of each job.
    """

    here = False

    def __init__(self, address: str | None = None, num_cpus: Positive = 1, num_gpus: NonNegative = 0) -> None:
        self.address, self.needs = address, {"num_cpus": num_cpus, "num_gpus": num_gpus}

    def start(self, jobs: int, folder: Path) -> Callable[[Line], Future]:
        """See `Local.start`."""
        ray = _imported("ray")
        ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        task = ray.remote(**self.needs, max_retries=0)(_run)
        return lambda line: task.remote(line).future()


def _run(line: Line) -> int:
    return line()


def _imported(library: str) -> Any:
    try:
        return import_module(library)
    except ImportError as error:
        raise ConfigError(
            f"launcher={library} needs {library}: {install('ray' if library == 'ray' else 'launchers')}"
        ) from error
