"""Where a run comes from: what its process can say of the command line, the code, its libraries and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neural_rdm.core.extras import ROOT

#: what a run's numbers depend on beside this project
LIBRARIES = ("torch", "lightning", "diffusers", "timm", "torchmetrics", "hydra-core", "numpy")
#: arguments that say where a run is and how its process was started, not what is trained
PLACES = ("hydra.run.dir=", "hydra.mode=", "resume=", "accept_data=")


def origin() -> dict[str, Any]:
    """What this process says of itself, as plain values; what cannot be known is None.

    Returns:
        `time` (UTC, in seconds), `command_line` (as it was typed, without the interpreter's path), `arguments` (those
        that say what is trained), `commit` and `dirty` (whether the files of package and configurations are others than
        the commit's; both None of an installed package), `versions` of Python, this project and `LIBRARIES`, `machine`.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command_line": ["python", *sys.orig_argv[1:]],
        "arguments": [a for a in sys.argv[1:] if not a.startswith(PLACES)],
        **_lasting(),
    }


@functools.cache
def _lasting() -> dict[str, Any]:
    """What stays as it is while a process lives: the code that it has loaded, and the machine."""
    commit, dirty = code_version(ROOT)
    versions = {"python": platform.python_version(), **{name: _version(name) for name in ("neural-rdm", *LIBRARIES)}}
    return {"commit": commit, "dirty": dirty, "versions": versions, "machine": machine()}


def code_version(root: Path) -> tuple[str | None, bool | None]:
    """The git commit of a checkout, and whether its `src` or `configs` hold anything else; None twice where `root` is
    no checkout of this project, or there is no git.
    """
    if not (root / "pyproject.toml").is_file() or not (root / "src" / "neural_rdm").is_dir():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "src", "configs")
    return (None, None) if commit is None or changed is None else (commit, bool(changed))


def machine() -> dict[str, Any]:
    """`system`, `processor`, `cores` and `gpus` (the models that a Linux driver names) of this machine; it is read
    without torch.
    """
    gpus = [_field(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    return {
        "system": platform.platform(terse=True),
        "processor": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpus": gpus,
    }


def _field(path: Path, name: str) -> str | None:
    """The first value of a field in a file of lines `name: value`."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.+)$", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return found[1].strip() if found else None


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
