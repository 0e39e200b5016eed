"""A sweep's folder: which jobs it holds, and how each goes on when the same sweep is started there again."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_text
from neural_rdm.core.given import read_json
from neural_rdm.core.ranks import RANK_VARIABLES
from neural_rdm.reports.sweeps import FILE, Record, read_record

SWEEP_DIR = "hydra.sweep.dir"
PARENT = "NEURAL_RDM_PARENT"  # environment variable: the process whose end ends this one
_PAUSE = 0.5  # seconds between two looks at the parent
#: arguments that say how the jobs are run and not which, or how many more follow: they may change when a sweep goes on
_HOW = (f"{SWEEP_DIR}=", "hydra.mode=", "jobs=", "launcher=", "launcher.", "sweeper.trials=")


class State(Enum):
    """How far a job is."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"


def open_record(folder: Path, arguments: Sequence[str], jobs: Sequence[Sequence[str]], base: str | None) -> Record:
    """The record of a sweep in its folder: what is there, or a new one, which is not written yet.

    Args:
        arguments: of the sweep, as they were typed; those of `_HOW` do not count.
        jobs: the overrides of each job as they are planned now; none where they are proposed one by one.

    Raises:
        ConfigError: the folder holds another sweep, or runs of something else.
    """
    own = [a for a in arguments if not a.lstrip("+").startswith(_HOW)]
    typed = sorted(own, key=lambda a: a.lstrip("+~").startswith(("hydra.", "hydra/")))  # as Hydra keeps them
    links = [path for path in folder.glob("[0-9]*") if path.is_symlink() and not finished(path)]
    if links:  # in a folder of somebody else's, to one of the user's
        raise ConfigError(
            f"{links[0]} is a link to {links[0].resolve()}, where the sweep would train: remove it, or put what it "
            "leads to in its place"
        )
    if not (folder / FILE).is_file():
        if found := sorted([*folder.glob("config.yaml"), *folder.glob("*/config.yaml")]):
            raise ConfigError(f"{folder} holds runs that are of no sweep ({found[0]}): choose another {SWEEP_DIR}")
        return Record(typed, {str(number): list(job) for number, job in enumerate(jobs)}, base)
    try:
        record = read_record(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder / FILE} cannot be read ({error}); choose another {SWEEP_DIR}") from error
    if record.arguments != typed:
        raise ConfigError(
            f"{folder} holds the sweep {' '.join(record.arguments) or '(no arguments)'}, not "
            f"{' '.join(typed) or '(no arguments)'}: give the same arguments to go on with it, or choose another "
            f"{SWEEP_DIR}"
        )
    before, now = (sorted(map(list, each)) for each in (record.jobs.values(), jobs))  # their order may be shuffled
    if jobs and before != now:
        other = next(job for job in [*before, *now] if job not in before or job not in now)
        raise ConfigError(
            f"the sweep in {folder} was of other jobs than these arguments stand for now ({' '.join(other)}): its "
            f"experiment has changed meanwhile; choose another {SWEEP_DIR}"
        )
    return record


def save_record(folder: Path, record: Record) -> None:
    """Write a sweep's record into its folder."""
    write_text(folder / FILE, json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False) + "\n")


def state(folder: Path, module: str) -> State:
    """How far the job of a command is whose run folder this is.

    Training is resumed. Samples and latents are not looked at: the same command goes on with them by itself.
    """
    if module != "neural_rdm.train":
        return State.FINISHED if (folder / "report" / "metrics.json").is_file() else State.NEW
    if finished(folder):
        return State.FINISHED
    return State.BEGUN if (folder / "config.yaml").is_file() else State.NEW


def finished(folder: Path) -> dict[str, Any]:
    """The content of a run's `finished.json`; empty where it is missing or damaged."""
    try:
        content = read_json(folder / "finished.json")
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def environment() -> dict[str, str]:
    """What a process that this one starts finds in its environment: no rank of Lightning's, and who its parent is."""
    return {k: v for k, v in os.environ.items() if k not in RANK_VARIABLES} | {PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Stop this process as SIGTERM does, once the process is gone that started it with `environment`.

    Training saves its step then and the launcher of a sweep stops its job, also where the parent was killed and could
    tell nobody. The ranks that this process starts end with it in the same way.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return
    os.environ[PARENT] = str(os.getpid())

    def watch() -> None:
        while str(os.getppid()) == parent:
            time.sleep(_PAUSE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
