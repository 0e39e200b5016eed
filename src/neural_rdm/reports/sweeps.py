"""What a sweep's folder says of its jobs: the file that the launcher writes, and what it tells a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_rdm.core.given import read_json

#: beside the folders of the jobs, see `Record`
FILE = "sweep.json"


@dataclass
class Record:
    """The content of `sweep.json`.

    Attributes:
        arguments: of the sweep, as they were typed.
        jobs: number -> its overrides, one of them `seed=...` where seeds vary.
        base: the setting that a report compares the others with, as overrides (`residual=resnet`).
        states: number -> `state` (running, finished, failed, stopped or pruned), `seconds` that it took, `steps` that
            it has done in them, and of a failed one `error`, the line that says why. Jobs that never began have none.
    """

    arguments: list[str]
    jobs: dict[str, list[str]] = field(default_factory=dict)
    base: str | None = None
    states: dict[str, dict[str, Any]] = field(default_factory=dict)

    def apart(self, number: str) -> list[str]:
        """The overrides of a job that not all jobs have, such as `residual=gated` and `seed=1`."""
        every = set.intersection(*map(set, self.jobs.values()))
        return [o for o in self.jobs[number] if o not in every]


def read_record(folder: Path) -> Record:
    """What `sweep.json` in a sweep's folder says.

    Raises:
        OSError: there is none.
        ValueError: it is damaged.
    """
    content = read_json(folder / FILE)
    try:
        jobs = {str(number): list(map(str, overrides)) for number, overrides in content["jobs"].items()}
        if odd := [number for number in jobs if not (number.isascii() and number.isdecimal())]:
            raise ValueError(f"its job {odd[0]!r} has no number")  # a folder is named by it
        states = {str(number): dict(state) for number, state in content.get("states", {}).items()}
        return Record(list(content["arguments"]), jobs, content.get("base"), states)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no record of a sweep: {error}") from error


def swept(run: Path) -> str | None:
    """The overrides that a job of a sweep has and not all others of it have, such as `residual=gated seed=1`.

    Args:
        run: the job's folder, named by its number.

    Returns:
        None where the folder is no job's, or where there is but one job.
    """
    run = run.resolve()
    try:
        return " ".join(read_record(run.parent).apart(run.name)) or None
    except (OSError, ValueError, KeyError):
        return None
