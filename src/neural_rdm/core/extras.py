"""How what is missing is installed, in words that can be pasted into the shell that printed them."""

from __future__ import annotations

import importlib.metadata
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
