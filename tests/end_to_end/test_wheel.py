"""The package as a wheel: configurations travel inside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.commands import TINY
from tests.helpers import ROOT

pytestmark = pytest.mark.end_to_end


def test_an_installed_wheel_needs_no_checkout(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    result = subprocess.run(build, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        for name in ("exp/digits_gated", "exp/paper/table2_sky", "study/fig6"):
            assert f"neural_rdm/configs/{name}.yaml" in archive.namelist()
        assert "neural_rdm/reports/pages/comparison.html" in archive.namelist()
        archive.extractall(site)
    # `site` comes before the editable install's path, so nothing of the checkout is imported.
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    where = [sys.executable, "-c", "import neural_rdm; print(neural_rdm.__file__)"]
    assert (
        str(site)
        in subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    )
    bare = *TINY, "~callbacks.sensitivity"
    command = [sys.executable, "-m", "neural_rdm.train", *bare, "trainer.max_steps=2", "hydra.run.dir=run"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "samples" / "final.png").is_file()
