"""How a command ends that is stopped before it has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


@pytest.mark.parametrize(
    ("line", "quiet"),
    [
        (("-m", "neural_rdm.stats"), True),
        (("-u", "-m", "neural_rdm.train"), True),
        (("-c", "import neural_rdm, omegaconf"), False),  # somebody else's program says itself what the signal does
    ],
)
def test_ctrl_c_is_silent_from_the_first_import_of_a_command(
    line: tuple[str, ...], quiet: bool, tmp_path: Path
) -> None:
    """Found by `benchmarks soak`: a rank was asked to stop as it loaded the first library."""
    (tmp_path / "omegaconf.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}
    done = subprocess.run(
        [sys.executable, *line], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGINT
    assert ("KeyboardInterrupt" not in done.stderr) is quiet
