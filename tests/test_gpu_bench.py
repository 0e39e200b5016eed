"""The benchmark for a GPU, run small on a CPU with none of the packages that such a machine may lack."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from neural_rdm.residual import RULES
from tests.helpers import ROOT

ABSENT = ("hydra", "omegaconf", "lightning", "diffusers", "decord", "torchmetrics")


def test_all_of_it_runs_without_the_packages_of_the_project(tmp_path: Path) -> None:
    for name in ABSENT:  # in front of the real ones
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not on this machine')\n")
    out = tmp_path / "found.json"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), str(out), "--tiny"],
        capture_output=True, text=True, env=environment, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert all(row["right"] for row in [*found["syncs"], *found.get("correctness", [])])
    networks = {(row["network"], row["compiled"]) for row in found["training"]}
    assert networks == {(n, c) for n in ("DiT-S/2", "DiT-XL/2", "Latte-XL/2") for c in (False, True)}
    assert all(row["samples_per_s"] > 0 and row["tflops"] > 0 for row in found["training"])
    ours = {
        name for name, rule in RULES.items() if rule.__module__.startswith("neural_rdm.")
    }  # not those of other tests
    assert {row["rule"] for row in found["rules"]} == ours
    assert all(row["images_per_s"] > 0 for row in found["sampling"])
    left = found.get("left out", [])
    assert all(row["section"] == "correctness" for row in left)  # where the golden files are not there
