"""Runs that are killed, stopped, damaged and resumed."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests import processes
from tests.end_to_end.commands import BARE, TINY, checkpoint, differences, run, start, wait_for_step

pytestmark = pytest.mark.end_to_end

#: two micro-steps a step, two workers, everything that writes at its own interval
RUN = (
    *TINY,
    "trainer.max_steps=60",
    "trainer.accumulate_grad_batches=2",
    "data.num_workers=2",
    "checkpoint.every_n_steps=5",
    "log_every_n_steps=3",
    "callbacks.validation.every_n_steps=10",
    "callbacks.samples.every_n_steps=20",
    "callbacks.sensitivity.every_n_steps=5",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    folder = tmp_path_factory.mktemp("reference")
    code, output = run(*RUN, "hydra.run.dir=run", cwd=folder)
    assert code == 0, output
    return folder / "run"


def assert_same_end(a: Path, b: Path) -> None:
    assert differences(checkpoint(a), checkpoint(b)) == []
    tables = "metrics.csv", "sensitivity/sensitivity.csv", "sensitivity/units.csv", "report/metrics.json"
    for name in (*tables, "samples/final.png"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_killed_twice_and_resumed_is_bit_identical(reference: Path, tmp_path: Path) -> None:
    """Once between two checkpoints, and once while it wrote one."""
    folder = tmp_path / "run"
    process = start(*RUN, "hydra.run.dir=run", cwd=tmp_path)
    for step in (12, 33):
        wait_for_step(folder, step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert int(checkpoint(folder)["global_step"]) < 60
        newest = sorted((folder / "checkpoints").glob("step=*.ckpt"))[-1]
        if step == 33:
            content = newest.read_bytes()
            newest.write_bytes(content[: len(content) // 2])
        process = start("resume=run", cwd=tmp_path)
    assert process.wait(200) == 0, (tmp_path / "output.txt").read_text()
    output = (tmp_path / "output.txt").read_text()
    assert "Falling back" in output
    assert newest.name in output
    assert_same_end(reference, folder)

    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}
    code, output = run("resume=run", cwd=tmp_path)
    assert code == 0
    assert "finished" in output
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()} == before


@pytest.mark.full
def test_killed_while_it_wrote_its_report(reference: Path, tmp_path: Path) -> None:
    """All steps are done and saved; only the samples, numbers and plots are missing."""
    shutil.copytree(reference, tmp_path / "run")
    (tmp_path / "run" / "finished.json").unlink()
    shutil.rmtree(tmp_path / "run" / "report")
    (tmp_path / "run" / "samples" / "final.png").unlink()
    (tmp_path / "run" / "sensitivity" / "sensitivity.png").unlink()
    code, output = run("resume=run", cwd=tmp_path)
    assert code == 0, output
    assert_same_end(reference, tmp_path / "run")
    assert (tmp_path / "run" / "sensitivity" / "sensitivity.png").is_file()
    assert (tmp_path / "run" / "finished.json").read_text() == (reference / "finished.json").read_text()


def test_a_sigterm_that_is_swallowed_as_training_begins_is_no_success(tmp_path: Path) -> None:
    """Found by `benchmarks soak`: it came as a worker was forked, where Python drops what a handler raises; Lightning
    had heard of it, and ended the run with exit code 0 and nothing saved.
    """
    script = """
import os, signal, sys
from neural_rdm import train

def as_it_forks():
    if type(signal.getsignal(signal.SIGTERM)).__name__ == "_HandlersCompose":  # Lightning's, until training has begun
        os.kill(os.getpid(), signal.SIGTERM)

os.register_at_fork(after_in_parent=as_it_forks)
train.main("train", train.train, train.complete)
"""
    line = [sys.executable, "-c", script, *BARE, "trainer.max_steps=4", "data.num_workers=1", "hydra.run.dir=run"]
    done = processes.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert "Exception ignored in" in done.stderr
    assert done.returncode == 143, done.stderr
    assert "stopped by SIGTERM. No step is saved yet; continue with resume=run" in done.stdout


@pytest.mark.full
def test_a_folder_without_config_starts_from_the_overrides(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code, output = run(*BARE, "trainer.max_steps=2", "resume=run", cwd=tmp_path)
    assert code == 0, output
    assert checkpoint(tmp_path / "run")["global_step"] == 2


def test_killed_before_the_first_checkpoint_starts_again_and_sigterm_saves_the_step(
    reference: Path, tmp_path: Path
) -> None:
    process = start(*RUN, "hydra.run.dir=run", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "run" / "checkpoints").glob("*"):
        path.unlink()  # as if the kill had come before the checkpoint, whenever it came
    (tmp_path / "run" / "metrics.csv").unlink()  # the steps that are waited for are new ones
    process = start("resume=run", "data.num_workers=2", "trainer.max_steps=60", cwd=tmp_path)
    wait_for_step(tmp_path / "run", 9, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert "resume=" in (tmp_path / "output.txt").read_text()
    step = checkpoint(tmp_path / "run")["global_step"]
    assert 9 <= step < 60
    code, output = run("resume=run", cwd=tmp_path)
    assert code == 0, output
    assert f"after step {step}" in output
    assert_same_end(reference, tmp_path / "run")


def test_a_folder_that_holds_a_run_is_not_used_for_another(reference: Path) -> None:
    before = (reference / "config.yaml").read_bytes()
    code, output = run(*RUN, "seed=1", "hydra.run.dir=run", cwd=reference.parent)
    assert code == 2
    assert "resume=" in output
    assert (reference / "config.yaml").read_bytes() == before
    code, output = run("resume=run", "hydra.run.dir=elsewhere", cwd=reference.parent)
    assert code == 2
    assert "elsewhere" in output


def test_overrides_that_change_the_trajectory_are_refused(reference: Path) -> None:
    for override in ("optimizer.lr=1e-4", "data.batch_size=32", "residual=resnet", "trainer.max_steps=80", "seed=1"):
        code, output = run(f"resume={reference}", override, cwd=reference.parent)
        assert code == 2
        assert override.split("=")[0] in output
        assert "Traceback" not in output


@pytest.mark.full
def test_more_steps_continue_a_constant_schedule(tmp_path: Path) -> None:
    constant = (*BARE, "optimizer.schedule=constant")
    assert run(*constant, "trainer.max_steps=8", "hydra.run.dir=whole", cwd=tmp_path)[0] == 0
    assert run(*constant, "trainer.max_steps=4", "hydra.run.dir=halves", cwd=tmp_path)[0] == 0
    code, output = run("resume=halves", "trainer.max_steps=8", cwd=tmp_path)
    assert code == 0, output
    whole, halves = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "halves")
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(whole[key], halves[key]) == []
