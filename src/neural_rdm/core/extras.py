"""Advice that can be pasted into the shell that printed it: how to install what is missing, how to type a value."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import sys
from pathlib import Path

#: of a checkout; of an installed wheel the folder above site-packages' parent, which holds no pyproject.toml
ROOT = Path(__file__).resolve().parents[3]


def install(extra: str) -> str:
    """The command that installs an extra of this project (`mp4`, `text`, ...) into the environment that is running.

    The package is on no index: a checkout installs itself once more, with the extra; of a wheel, which cannot, the
    extra's own requirements are named.
    """
    pip = Path(sys.executable).with_name("pip")
    command = f"{_shown(pip)} install" if pip.is_file() else f"{_shown(Path(sys.executable))} -m pip install"
    if (ROOT / "pyproject.toml").is_file() and (ROOT / "src" / "neural_rdm").is_dir():
        return f'{command} -e "{_shown(ROOT)}[{extra}]"'
    wanted = (line.partition(";") for line in importlib.metadata.requires("neural-rdm") or [])
    names = [f'"{name.strip()}"' for name, _, marker in wanted if marker.replace("'", '"').endswith(f'"{extra}"')]
    return f"{command} {' '.join(names)}"


def _shown(path: Path) -> str:
    """A path as short as it can be typed in the current folder."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # outside of the current folder, or that folder is gone
        return str(path)


def typed(key: str, value: object) -> str:
    """`key=value` as it is typed into a shell, with quotes only where Hydra or the shell would read something else.

    Args:
        value: text and paths as they are, anything else as JSON has it.
    """
    if not isinstance(value, str | Path):
        return shlex.quote(f"{key}={json.dumps(value)}")
    text = str(value)
    if not re.fullmatch(r"[A-Za-z0-9_./+-]+", text):  # in Hydra's grammar a backslash escapes before a quote only
        text = re.sub(r"(\\*)'", r"\1\1\'", text)
        text = "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
    return shlex.quote(f"{key}={text}")
