"""What several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(relative: str) -> Path:
    """A file of the folder `shared` that stands beside the checkout on the team's machines, or a skip that says why."""
    path = ROOT.parent / "shared" / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the team's folder 'shared', which is not beside this checkout")
    return path
