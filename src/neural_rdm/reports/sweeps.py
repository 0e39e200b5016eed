"""What a sweep's folder says of its jobs: the file that the launcher writes, and what it tells a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: {"arguments": [typed, ...], "jobs": {number: [override, ...]}}, beside the folders of the jobs; `base` is what the
#: sweep compares with, `states` {number: {"state": word, "error": first line}} how far each job came
FILE = "sweep.json"


def swept(run: Path) -> str | None:
    """The overrides that a job of a sweep has and not all others of it have, such as `residual=gated seed=1`.

    Args:
        run: the job's folder, named by its number.

    Returns:
        None where the folder is no job's, or where there is but one job.
    """
    run = run.resolve()
    try:
        jobs = json.loads((run.parent / FILE).read_text(encoding="utf-8"))["jobs"]
        own, others = jobs[run.name], [set(other) for number, other in jobs.items() if number != run.name]
        varied = [o for o in own if not all(o in other for other in others)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return " ".join(varied) or None


def base_of(runs: Sequence[Path]) -> str | None:
    """What the sweeps that these runs are jobs of compare with: their `base`, where all have the same."""
    found = {base for folder in _sweeps(runs) if (base := read(folder).get("base"))}
    return str(found.pop()) if len(found) == 1 else None


def failures(runs: Sequence[Path]) -> dict[Path, tuple[list[str], str]]:
    """Job folder -> its overrides and why it failed, of the sweeps that these runs are jobs of."""
    found: dict[Path, tuple[list[str], str]] = {}
    for folder in _sweeps(runs):
        record = read(folder)
        jobs, states = record.get("jobs"), record.get("states")
        for number, overrides in jobs.items() if isinstance(jobs, dict) else ():
            state = states.get(number) if isinstance(states, dict) else None
            told = state if isinstance(state, dict) else {"state": state}
            if told.get("state") == "failed":
                found[folder / number] = (
                    list(map(str, overrides)),
                    f"failed: {told.get('error') or 'no reason recorded'}",
                )
    return found


def read(folder: Path) -> dict[str, Any]:
    """The content of a sweep's file; empty where it is missing or damaged."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _sweeps(runs: Sequence[Path]) -> list[Path]:
    return list(dict.fromkeys(folder for run in runs if ((folder := run.resolve().parent) / FILE).is_file()))
