"""A sweep's folder: which jobs it holds, and how each goes on when the same sweep is started there again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import write_text
from neural_rdm.core.ranks import RANK_VARIABLES
from neural_rdm.reports.sweeps import FILE

SWEEP_DIR = "hydra.sweep.dir"
PARENT = "NEURAL_RDM_PARENT"  # environment variable: the process whose end ends this one
_PAUSE = 0.5  # seconds between two looks at the parent


class State(Enum):
    """How far a job is."""

    NEW = "new"
    BEGUN = "begun"
    FINISHED = "finished"


def record_sweep(folder: Path, overrides: Sequence[str]) -> None:
    """Write down in `folder` which sweep its runs are of.

    Args:
        overrides: the sweep's arguments, as they were typed; where its folder is does not count.

    Raises:
        ConfigError: the folder holds another sweep, or runs of something else.
    """
    own = [o for o in overrides if not o.lstrip("+").startswith((f"{SWEEP_DIR}=", "hydra.mode="))]
    arguments = sorted(own, key=lambda o: o.lstrip("+~").startswith(("hydra.", "hydra/")))  # as Hydra keeps them
    record = _read(folder)
    if record is None:
        if found := sorted([*folder.glob("config.yaml"), *folder.glob("*/config.yaml")]):
            raise ConfigError(f"{folder} holds runs that are of no sweep ({found[0]}): choose another {SWEEP_DIR}")
        _write(folder, {"arguments": arguments, "jobs": {}})
    elif record["arguments"] != arguments:
        raise ConfigError(
            f"{folder} holds the sweep {' '.join(record['arguments']) or '(no arguments)'}, not "
            f"{' '.join(arguments) or '(no arguments)'}: give the same arguments to go on with it, or choose another "
            f"{SWEEP_DIR}"
        )


def enter(folder: Path, number: int, overrides: Sequence[str]) -> None:
    """Write down in a sweep's folder what its job `number` is, before the job starts.

    Raises:
        ConfigError: it was another one when this sweep was started before (its values were shuffled, or proposed anew).
    """
    record = _read(folder) or {"arguments": [], "jobs": {}}
    known = record["jobs"].setdefault(str(number), list(overrides))
    if known != list(overrides):
        raise ConfigError(
            f"job {number} of {folder} was {' '.join(known)} and would now be {' '.join(overrides)}: this sweep cannot "
            f"go on here; choose another {SWEEP_DIR}"
        )
    _write(folder, record)


def state(folder: Path, module: str) -> State:
    """How far the job of a command is whose run folder this is.

    Training is resumed. Samples and latents are not looked at: the same command goes on with them by itself.
    """
    if module != "neural_rdm.train":
        return State.FINISHED if (folder / "report" / "metrics.json").is_file() else State.NEW
    if _finished(folder):
        return State.FINISHED
    return State.BEGUN if (folder / "config.yaml").is_file() else State.NEW


def objective(folder: Path) -> Any:
    """What a finished run minimises; None where it measured nothing."""
    return _finished(folder).get("objective")


def _finished(folder: Path) -> dict[str, Any]:
    """The content of a run's `finished.json`; empty where it is missing or damaged."""
    try:
        content = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {"arguments": list(content["arguments"]), "jobs": dict(content["jobs"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); choose another {SWEEP_DIR}") from error


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_text(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


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
