"""The jobs of a sweep: each is started once, recorded and told; those that failed or were cut are gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from neural_rdm.cli import launcher, telling
from neural_rdm.cli.jobs import State
from neural_rdm.cli.launcher import launch
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.locks import held
from neural_rdm.reports.sweeps import read_record
from tests.cli.jobs import stub
from tests.cli.test_pools import wait_for


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def states() -> dict[str, str]:
    return {number: how["state"] for number, how in read_record(Path("sweep")).states.items()}


def test_jobs_that_fail_do_not_stop_the_others_and_are_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = ["how=fail seed=0", "how=crash seed=0", "how=finish seed=0", "how=kill seed=1"]
    assert launch(stub(jobs)) == 1
    assert states() == {"0": "failed", "1": "failed", "2": "finished", "3": "failed"}
    told = {n: how.get("error") for n, how in read_record(Path("sweep")).states.items()}
    assert told == {"0": "this cannot work", "1": "RuntimeError: out of memory", "2": None, "3": "ended by SIGKILL"}
    out = capsys.readouterr().out
    for line in (
        "sweep -> sweep",
        "  4 jobs (4 settings, 2 seeds), 0 finished; 1 at once",
        "  how: fail, crash, finish, kill",
        "[1 of 4] how=fail seed=0 begins -> sweep/0",
        "I am 0",  # a job alone shows what it prints
        "sweep: 1 of 4 jobs finished, 3 failed",
    ):
        assert line in out.splitlines(), out
    failed = r"\[1 of 4\] how=fail seed=0 failed after \d s: this cannot work \(all of it: sweep/0/output.log\)\n"
    assert re.search(failed, out)
    assert re.search(r"\[3 of 4\] how=finish seed=0 finished after \d s\n", out)
    again = stub(jobs)
    again.record = read_record(Path("sweep"))
    again.record.jobs["0"] = ["how=finish", "seed=0"]
    assert launch(again) == 1
    assert states() == {"0": "finished", "1": "failed", "2": "finished", "3": "failed"}
    out = capsys.readouterr().out
    assert "1 finished; 1 at once" in out
    assert "I am 2" not in out  # finished jobs stay as they are


def test_several_at_once_share_the_processors_and_keep_their_output_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(launcher, "EVERY", 0.2)
    plan = stub(["how=wait seed=0", "how=wait seed=1", "how=finish seed=2"], jobs=2)

    def release() -> None:
        for number in "01":
            wait_for(Path("sweep") / number / "metrics.csv", "3,")
        assert not Path("sweep/2").exists()
        time.sleep(1)
        Path("go").touch()

    helper = threading.Thread(target=release)
    helper.start()
    assert launch(plan) == 0
    helper.join()
    out = capsys.readouterr().out
    assert "3 jobs (2 settings, 3 seeds), 0 finished; 2 at once, 3 threads each" in out
    assert "I am" not in out
    assert "[1 of 3] how=wait seed=0: step 3 of 5\n" in out
    assert "sweep: 0 of 3 jobs finished, about " in out
    assert Path("sweep/1/output.log").read_text() == "I am 1\n"
    environment = json.loads(Path("sweep/0/environment.json").read_text())
    assert environment["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_every_job_and_the_rest_follows_later(number: signal.Signals) -> None:
    jobs = ["how=wait seed=0", "how=wait seed=1", "how=finish seed=2"]
    code = "import sys; from tests.cli.jobs import stub; from neural_rdm.cli.launcher import launch; "
    code += f"sys.exit(launch(stub({jobs}, jobs=2)))"
    root = str(Path(launcher.__file__).parents[3])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    try:
        for each in "01":
            wait_for(Path("sweep") / each / "metrics.csv", "3,")
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    finally:
        process.kill()
    assert states() == {"0": "stopped", "1": "stopped"}
    for each in "01":
        assert json.loads((Path("sweep") / each / "signals.json").read_text()) == [[number], True]
    Path("go").touch()
    plan = stub(jobs, jobs=2)
    plan.record = read_record(Path("sweep"))
    assert launch(plan) == 0
    assert states() == dict.fromkeys("012", "finished")
    assert sorted(p.name for p in Path("sweep").iterdir()) == ["0", "1", "2", "sweep.json"]


def test_what_a_killed_sweep_has_half_written_goes_with_the_next() -> None:
    """Found by `benchmarks soak`: it was killed while it drew the comparison."""
    left = Path("sweep", ".comparison_val_loss.png.4242.tmp")
    left.parent.mkdir()
    left.touch()
    assert launch(stub(["how=finish seed=0"])) == 0
    assert not left.exists()


def test_a_sweep_that_goes_on_already_is_refused() -> None:
    Path("sweep").mkdir()
    with held(Path("sweep"), "sweep"), pytest.raises(ConfigError, match="sweep is in use by process"):
        launch(stub(["how=finish"]))


def test_a_job_that_is_killed_when_all_is_written_is_finished() -> None:
    """Found by `benchmarks soak`: it was told as failed, and never gone on with, since it was finished."""
    assert launch(stub(["how=late"])) == 0
    assert states() == {"0": "finished"}


def test_a_worker_that_is_lost_is_a_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(line: object) -> int:
        raise OSError("the node is gone\nand more")

    monkeypatch.setattr("neural_rdm.cli.pools.Line.__call__", lost)
    assert launch(stub(["how=finish"])) == 1
    assert read_record(Path("sweep")).states["0"]["error"] == "the node is gone"


def test_the_time_that_is_left_follows_from_the_steps_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = stub([f"seed={seed}" for seed in range(4)], jobs=2)
    plan.steps = dict.fromkeys("0123", 100)
    tell = telling.Telling(plan, total=6)  # two more will be proposed
    assert tell.left([]) is None
    plan.record.states = {"0": {"state": "finished", "seconds": 50.0, "steps": 100}, "1": {"state": "pruned"}}
    monkeypatch.setattr(telling, "state", lambda folder, _: State.FINISHED if folder.name == "0" else State.NEW)
    monkeypatch.setattr(telling, "steps_done", lambda folder: 40 if folder.name == "2" else None)
    # 60 steps of the third job, 100 of the fourth and 200 of the two others, at half a second each, two at once
    assert tell.left([]) == pytest.approx((60 + 100 + 200) * 0.5 / 2)
