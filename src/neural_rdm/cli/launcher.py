"""A Hydra launcher that runs every job of a multirun in a process of its own.

Hydra's own launcher runs the jobs one after another in one process. That cannot work with multi-process training:
Lightning starts the other ranks by repeating the command line, so rank 1 would start the whole multirun again, and the
environment variables of one job's ranks would stay behind for the next. Here each job is `python -m MODULE OVERRIDES`
with a run folder below the sweep's, and with every rank variable removed from its environment. In a sweep that was
started before in the same folder, finished jobs are left as they are and begun ones are resumed.
"""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from neural_rdm.cli.jobs import State, enter, environment, objective, record_sweep
from neural_rdm.cli.jobs import state as state_of
from neural_rdm.config.compose import LAUNCHER, prepare_hydra
from neural_rdm.config.grammar import written
from neural_rdm.core.errors import UserError
from neural_rdm.core.signals import catch, give_back

_OWN = (
    "hydra.mode",
    "hydra.run.",
    "hydra.sweep.",
    "hydra.sweeper",
    "hydra.launcher",
    "hydra/launcher",
    "hydra/sweeper",
)


class SubprocessLauncher(Launcher):
    """Runs the jobs one after another, each as `python -m module`; a job that fails does not stop the others."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.config: DictConfig | None = None
        self.context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra before `launch`."""
        self.config, self.context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one process a job and return what each left in its `finished.json`."""
        assert self.config is not None
        assert self.context is not None
        shared = [o for o in self.config.hydra.overrides.hydra if not o.lstrip("+~").startswith(_OWN)]
        typed = [*self.config.hydra.overrides.task, *self.config.hydra.overrides.hydra]
        results = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            job = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(job):
                job.hydra.job.num, job.hydra.job.id = number, str(number)
            HydraConfig.instance().set_config(job)  # what `${hydra:job.num}` in the folder's name reads
            folder = Path(job.hydra.sweep.dir) / str(job.hydra.sweep.subdir)
            state = self._enter(Path(job.hydra.sweep.dir), typed, number, overrides, folder)
            how = {State.NEW: "", State.BEGUN: " goes on", State.FINISHED: " is finished"}[state]
            title = f"[job {number + 1 - initial_job_idx} of {len(job_overrides)}]"
            print(f"{title} {' '.join(overrides)} -> {folder}{how}", flush=True)
            if state is State.FINISHED:
                results.append(self._result(job, folder, overrides, 0))
                continue
            place = f"hydra.run.dir={written(str(folder))}"
            own = [f"resume={written(str(folder))}"] if state is State.BEGUN else [*overrides, place]
            command = [sys.executable, "-m", self.module, *own, *shared, "hydra.mode=RUN"]
            for source in self.config.hydra.runtime.config_sources:
                if source.provider == "command-line":
                    command += ["--config-dir", source.path]
            code, stopped = _wait(started(command))
            results.append(self._result(job, folder, overrides, code))
            if stopped:
                raise SystemExit(128 + stopped)
        return results

    def _enter(self, sweep: Path, typed: list[str], number: int, overrides: Sequence[str], folder: Path) -> State:
        """Write the job down; Hydra would answer another sweep's folder with a traceback."""
        try:
            record_sweep(sweep, typed)
            enter(sweep, number, overrides)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from error
        return state_of(folder, self.module)

    @staticmethod
    def _result(job: DictConfig, folder: Path, overrides: Sequence[str], code: int) -> JobReturn:
        result = JobReturn(
            overrides=list(overrides), cfg=job, hydra_cfg=job, working_dir=str(folder), task_name=job.hydra.job.name
        )
        if code == 0:
            result.status, result.return_value = JobStatus.COMPLETED, objective(folder)
        else:
            print(f"job failed with exit code {code}: {' '.join(overrides)} (see {folder})", file=sys.stderr)
            # Hydra raises this once all jobs are done: the multirun's own exit code, without a traceback.
            result.status, result.return_value = JobStatus.FAILED, SystemExit(code if code > 0 else 1)
        return result


def started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """A job in a session of its own: what asks the launcher to stop reaches it through the launcher, and once."""
    return subprocess.Popen(command, env=environment(), start_new_session=True)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The exit code of a job, and the signal that asked this process to stop meanwhile (0: none).

    They are passed on: the job finishes its step and saves first.
    """
    received: list[int] = []

    def handle(number: signal.Signals) -> None:
        received.append(number)
        process.send_signal(number)

    before = catch(handle)
    try:
        return process.wait(), received[0] if received else 0
    finally:
        give_back(before)


def register() -> None:
    """Make `hydra/launcher=subprocess` known to Hydra in this process."""
    prepare_hydra()
    Plugins.instance().register(SubprocessLauncher)
    # Hydra instantiates only plugins whose name begins with hydra_plugins, whatever package their class is in.
    Plugins.instance().class_name_to_class[LAUNCHER["_target_"]] = SubprocessLauncher
