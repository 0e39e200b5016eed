"""What a report calls a run, and how far that run is."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from neural_rdm.core.given import plain_yaml, read_given
from neural_rdm.core.locks import is_held
from neural_rdm.core.output import last_error
from neural_rdm.core.records import last_step
from neural_rdm.reports.sweeps import swept

#: the row of a run's report that is its own
GENERATED = "generated"
_CHECKPOINT = re.compile(r"step=(\d+)\.ckpt")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int | None  # optimizer steps behind its newest checkpoint; None where nothing tells
    planned: int | None  # its `trainer.max_steps`; None without a configuration
    # all planned steps are done and, for a run of training, its report is; None where nothing tells
    finished: bool | None

    def __str__(self) -> str:
        if self.finished is not False:
            return "finished" if self.finished else "not recorded"
        steps = "nothing saved" if self.done is None else f"step {self.done}"
        return f"unfinished: {steps}" + (f" of {self.planned}" if self.planned is not None else "")


def progress(run: Path) -> Progress:
    """How far the run in a folder is: from its checkpoints and `finished.json`, or where there are none from the step
    of its numbers (an evaluation) or its last logged step.
    """
    planned = _whole(node(read_mapping(run / "config.yaml"), "trainer").get("max_steps"))
    ended = _whole(read_mapping(run / "finished.json").get("global_step"))
    names = [_CHECKPOINT.fullmatch(path.name) for path in (run / "checkpoints").glob("step=*.ckpt")]
    saved = [int(match[1]) for match in names if match]
    steps = [*saved, *([] if ended is None else [ended])]
    if steps:
        done: int | None = max(steps)
        whole: bool | None = ended is not None and (planned is None or ended >= planned)
    else:
        report = read_report(run)
        measured = _whole(report["facts"].get("step"))
        done = _logged(run / "metrics.csv") if measured is None else measured
        if planned is None or (done is None and report["rows"]):
            whole = None
        else:
            whole = measured is not None and measured >= planned
    return Progress(done, planned, whole)


@dataclass(frozen=True)
class State:
    """What has become of a run: one of `WORDS`, and the same in a few words more."""

    word: str
    told: str


#: the states of runs and sweeps
WORDS = ("training", "finished", "stopped", "failed")


def state(run: Path) -> State:
    """What has become of the run in a folder: it trains while somebody holds the folder's lock; else it is finished,
    has failed with the error that its log ends with, or was stopped.
    """
    far, held = progress(run), is_held(run)
    done = far.done or 0
    if held:
        done = max(done, steps_done(run) or 0)
    steps = f"step {done:,}" + (f" of {far.planned:,}" if far.planned is not None else "")
    if held:
        return State("training", f"training: {steps}")
    if far.finished:
        return State("finished", f"finished: {done:,} steps")
    if (error := last_error(run)) is not None:
        return State("failed", f"failed at {steps}: {error}")
    return State("stopped", f"stopped at {steps}")


def labels(folders: Sequence[Path]) -> list[str]:
    """Names of runs: their folders', those of equal names with their parents'.

    A job of a sweep, whose folder is a number, is told by what it has and the others have not, or else by its rule.
    """
    names = [folder.resolve().name for folder in folders]
    unique = [
        name if names.count(name) == 1 else f"{folder.resolve().parent.name}/{name}"
        for folder, name in zip(folders, names, strict=True)
    ]
    told = [_told(folder) if name.isdigit() else None for folder, name in zip(folders, names, strict=True)]
    return [f"{name}: {what}" if what else name for name, what in zip(unique, told, strict=True)]


def _told(folder: Path) -> str | None:
    return swept(folder) or rule_of(read_mapping(folder / "config.yaml"))


def rule_of(config: Mapping[str, Any]) -> str | None:
    """What a run's residual rule is called, or the control of it that was trained in its place: `gated (folded)`,
    `resnet +MLP as gated`.
    """
    residual, control = config.get("residual"), config.get("control")
    rule = residual.get("rule") if isinstance(residual, dict) else residual
    if not isinstance(rule, str):
        return None
    return {"folded": f"{rule} (folded)", "mlp_widened": f"resnet +MLP as {rule}"}.get(str(control), rule)


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file of a run as a dictionary; empty where it is missing, damaged or something else."""
    try:
        content = copy.deepcopy(_parsed(read_given(path), path.suffix == ".json"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=1024)
def _parsed(text: str, is_json: bool) -> Any:
    """What a text says; a report asks the same of a run many times, and YAML is slow to read."""
    return json.loads(text) if is_json else yaml.safe_load(plain_yaml(text))


def node(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A group of a run's configuration; empty where it is missing or something else."""
    found = config.get(key)
    return found if isinstance(found, dict) else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration as dotted keys; lists as text."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    return found


def read_report(folder: Path) -> dict[str, Any]:
    """`rows`, `protocol` and `facts` of a run's `report/metrics.json`; empty where they are missing or damaged."""
    report = read_mapping(folder / "report" / "metrics.json")
    empty: dict[str, Any] = {"rows": [], "protocol": "", "facts": {}}
    return {key: value if isinstance(value := report.get(key), type(none)) else none for key, none in empty.items()}


def generated(folder: Path) -> dict[str, Any]:
    """A run's own numbers: the row `generated` of its report; empty where there is none."""
    return next((r for r in read_report(folder)["rows"] if isinstance(r, dict) and r.get("name") == GENERATED), {})


def steps_done(run: Path) -> int | None:
    """The last step that a run has logged or saved; None where it has done none yet."""
    saved = [
        int(match[1]) for path in (run / "checkpoints").glob("*.ckpt") if (match := _CHECKPOINT.fullmatch(path.name))
    ]
    logged = [_logged(run / name) for name in ("metrics.csv", "throughput.csv")]
    return max([*saved, *(step for step in logged if step is not None)], default=None)


def _logged(path: Path) -> int | None:
    try:
        return last_step(path)
    except OSError:
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
