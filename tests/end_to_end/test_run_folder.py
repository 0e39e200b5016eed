"""A run of an image folder: what it knows of its data itself, and who may write into it."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.end_to_end.commands import run, start, wait_for_step

pytestmark = pytest.mark.end_to_end

RUN = (
    "data=image_folder", "data.root=pets", "data.image_size=8", "data.batch_size=4", "data.num_workers=0",
    "backbone.input_size=8", "backbone.in_channels=3", "backbone.num_classes=2", "backbone.depth=1",
    "backbone.hidden_size=32", "backbone.num_heads=4", "~metric", "~callbacks", "logger=csv", "sampler.steps=2",
    "log_every_n_steps=1", "checkpoint.every_n_steps=1",
)  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a run, without what a killed process leaves (its lock, what was half written): that is swept."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_a_run_of_an_image_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for i, name in enumerate(("cat", "cat", "cat", "dog", "dog", "dog")):
        (here / "pets" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(here / "pets" / name / f"{i}.png")
    there.mkdir()

    process = start(*RUN, "trainer.max_steps=100000", "hydra.run.dir=run", cwd=here)
    folder = here / "run"
    wait_for_step(folder, 2, process, timeout=240)
    process.send_signal(signal.SIGSTOP)  # it still trains
    try:
        before = content(folder)
        code, output = run(f"resume={folder}", cwd=there)
        assert (code, content(folder)) == (2, before)
        assert f"in use by process {process.pid} on host" in output
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
    assert OmegaConf.load(folder / "config.yaml").data.root == str(here / "pets")

    # without its data, from elsewhere
    (here / "pets").rename(tmp_path / "moved")
    code, output = run(f"run={folder}", "weights=raw", "per_class=1", "hydra.run.dir=drawn", cwd=there, module="sample")
    assert code == 0, output
    code, output = run(f"run={folder}", "weights=raw", "samples=2", cwd=there, module="lens")
    assert code == 2
    assert "data.root" in output
    code, output = run(
        f"run={folder}", "weights=raw", "samples=2", "times=[0.5]", f"data.root={tmp_path / 'moved'}",
        "hydra.run.dir=seen", cwd=there, module="lens",
    )  # fmt: skip
    assert code == 0, output

    # with other classes
    (tmp_path / "moved" / "cat").rename(tmp_path / "moved" / "zebra")
    before = content(folder)
    code, output = run(f"resume={folder}", f"data.root={tmp_path / 'moved'}", cwd=there)
    assert code == 2
    assert "label 0 means cat in the run, but dog in the data" in output
    assert content(folder) == before
