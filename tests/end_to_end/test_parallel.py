"""Several processes on CPUs (gloo): DDP, FSDP2, and multiruns over them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from neural_rdm import load_run
from tests.end_to_end.commands import BARE, TINY, checkpoint, cut, differences, run, start, wait_for_step

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

RUN = (
    *TINY,
    "optimizer.schedule=constant",
    "trainer.max_steps=6",
    "log_every_n_steps=2",
    "callbacks.sensitivity.every_n_steps=2",
    "callbacks.validation.every_n_steps=3",
    "checkpoint.every_n_steps=2",
)


def rows(folder: Path, name: str = "metrics.csv") -> list[list[str]]:
    return [line.split(",") for line in (folder / name).read_text().splitlines()]


def assert_close(a: Path, b: Path, tolerance: float) -> None:
    """Equal but for the order of summation: the noise, timesteps and dropout of every sample are the same."""
    for name, floor in (
        ("metrics.csv", 1e-12),
        ("sensitivity/sensitivity.csv", 1e-12),
        ("sensitivity/units.csv", 1e-4),
    ):
        left, right = rows(a, name), rows(b, name)
        assert left[0] == right[0]
        assert len(left) == len(right)
        for x, y in zip(left[1:], right[1:], strict=True):
            for u, v in zip(x, y, strict=True):
                assert u == v or float(u) == pytest.approx(float(v), rel=tolerance, abs=floor), (name, x, y)
    one, two = checkpoint(a), checkpoint(b)
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert one["ema"]["weights"].keys() == two["ema"]["weights"].keys()
    for key, weight in one["ema"]["weights"].items():
        torch.testing.assert_close(two["ema"]["weights"][key], weight, atol=tolerance, rtol=tolerance)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    code, output = run(*RUN, "hydra.run.dir=run", cwd=folder)
    assert code == 0, output
    return folder / "run"


@pytest.fixture(scope="module")
def two_processes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    sharded = ("checkpoint.sharded=true", "checkpoint.async=true") if request.param == "fsdp2" else ()
    strategy = (f"strategy={request.param}", "trainer.devices=2", *sharded)
    code, output = run(*RUN, *strategy, "hydra.run.dir=run", cwd=folder)
    assert code == 0, output
    assert [p.name for p in folder.iterdir() if p.is_dir()] == ["run"]
    return folder / "run"


@pytest.mark.parametrize("two_processes", [pytest.param("ddp", marks=pytest.mark.full), "fsdp2"], indirect=True)
def test_two_processes_train_what_one_trains(two_processes: Path, one_process: Path) -> None:
    assert_close(one_process, two_processes, 2e-3)
    assert (two_processes / "samples" / "final.png").is_file()


@pytest.mark.parametrize("two_processes", [pytest.param("ddp", marks=pytest.mark.full), "fsdp2"], indirect=True)
def test_two_processes_resume_exactly(two_processes: Path, tmp_path: Path) -> None:
    cut(two_processes, tmp_path / "halves", 4)
    code, output = run("resume=halves", cwd=tmp_path)
    assert code == 0, output
    assert "continuing after step 4" in output
    whole, halves = checkpoint(two_processes), checkpoint(tmp_path / "halves")
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(whole[key], halves[key]) == []


@pytest.mark.parametrize("two_processes", ["fsdp2"], indirect=True)
def test_a_run_in_shards_becomes_one_file(two_processes: Path, tmp_path: Path) -> None:
    assert (two_processes / "checkpoints" / "step=000000006.ckpt").is_dir()
    run = load_run(two_processes)
    run.share(tmp_path / "shared")
    back = load_run(tmp_path / "shared").net.state_dict()
    averages = checkpoint(two_processes)["ema"]["weights"]
    assert all(torch.equal(back[name], average) for name, average in averages.items())
    assert all(torch.equal(back[name], weight) for name, weight in run.net.state_dict().items())


def test_a_run_may_be_resumed_on_another_number_of_processes(one_process: Path, tmp_path: Path) -> None:
    cut(one_process, tmp_path / "run", 4)
    code, output = run("resume=run", "strategy=ddp", "trainer.devices=2", cwd=tmp_path)
    assert code == 0, output
    assert_close(one_process, tmp_path / "run", 2e-3)


@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param("residual=gated,resnet trainer.devices=2", marks=pytest.mark.full),
        pytest.param("trainer.devices=1,2", marks=pytest.mark.full),
        pytest.param(
            "trainer.devices=2,1", marks=pytest.mark.full
        ),  # nothing of the first job's second rank is left in the second job
    ],
)
def test_multirun_makes_one_folder_a_job(sweep: str, tmp_path: Path) -> None:
    code, output = run(
        "-m", *BARE, "trainer.max_steps=2", "strategy=ddp", *sweep.split(), "hydra.sweep.dir=sweep", cwd=tmp_path
    )
    assert code == 0, output
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["sweep"]
    folders = sorted(p for p in (tmp_path / "sweep").iterdir() if p.is_dir())
    assert [p.name for p in folders] == ["0", "1"]
    asked = {"trainer.devices=1,2": [1, 2], "trainer.devices=2,1": [2, 1]}.get(sweep, [2, 2])
    assert [json.loads((p / "finished.json").read_text())["world_size"] for p in folders] == asked


def test_a_multirun_with_a_bad_value_is_refused_whole(tmp_path: Path) -> None:
    code, output = run(
        "-m", *TINY, "trainer.max_steps=2", "backbone.num_heads=4,3", "hydra.sweep.dir=sweep", cwd=tmp_path
    )
    assert code == 2  # refused before anything started
    assert "num_heads" in output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.full
def test_a_rank_without_validation_samples_does_not_hold_up_the_other(tmp_path: Path) -> None:
    small = (*BARE, "trainer.max_steps=3", "callbacks.validation.every_n_steps=3", "log_every_n_steps=1")
    code, output = run(
        *small, "strategy=ddp", "trainer.devices=2", "data.limit=1", "hydra.run.dir=run", cwd=tmp_path, timeout=100
    )
    assert code == 0, output
    assert "val/loss" in (tmp_path / "run" / "metrics.csv").read_text()


@pytest.mark.full
def test_sigterm_stops_both_processes_after_the_same_step(tmp_path: Path) -> None:
    options = (*RUN, "strategy=ddp", "trainer.devices=2", "trainer.max_steps=400", "hydra.run.dir=run")
    process = start(*options, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 4, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143, (tmp_path / "output.txt").read_text()
    step = checkpoint(tmp_path / "run")["global_step"]
    assert 4 <= step < 400
    assert f"after step {step}" in (tmp_path / "output.txt").read_text()


def children(pid: int) -> list[int]:
    """The ranks that a process has started."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(child) for child, parent, args in rows if int(parent) == pid and "neural_rdm.train" in args]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("dies", [1, pytest.param(0, marks=pytest.mark.full)])
def test_a_rank_that_dies_is_named_and_no_other_stays_behind(dies: int, tmp_path: Path) -> None:
    options = (*RUN, "strategy=ddp", "trainer.devices=2", "trainer.max_steps=4000", "hydra.run.dir=run")
    process = start(*options, cwd=tmp_path)
    wait_for_step(tmp_path / "run", 4, process, timeout=200)
    (other,) = children(process.pid)
    os.kill(other if dies else process.pid, signal.SIGKILL)
    code = process.wait(60)
    end = time.monotonic() + 60
    while alive(other) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(other)
    said = (tmp_path / "output.txt").read_text()
    assert code == (1 if dies else -signal.SIGKILL), said
    named = f"rank 1 (process {other}) was killed by SIGKILL" if dies else f"process {process.pid}, which started it"
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert named in line
    said_last = re.search(r"Saved last was step (\d+); continue with resume=(.*)", line)
    assert said_last is not None, line
    # the newest file: the kill may have come before `last.ckpt` became its second name
    assert (tmp_path / "run" / "checkpoints" / f"step={int(said_last[1]):09d}.ckpt").is_file()
    assert said_last[2] == str(tmp_path / "run")
    assert "Traceback" not in said
