"""What a sweep's folder says of its jobs: the file that the launcher writes, and what it tells a report."""

from __future__ import annotations

import json
from pathlib import Path

#: {"arguments": [typed, ...], "jobs": {number: [override, ...]}}, beside the folders of the jobs
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
