"""A sweep's folder: what may go on in it, and jobs that end with the process that started them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neural_rdm.cli.jobs import (
    PARENT,
    State,
    end_with_parent,
    environment,
    finished,
    open_record,
    save_record,
    state,
)
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.ranks import STARTED_BY
from neural_rdm.reports.sweeps import FILE, Record, read_record

SWEEP = ["exp=digits_gated", "residual=gated,resnet", "hydra.job.name=x", "seed=1"]
JOBS = [["residual=gated"], ["residual=resnet"]]


def test_the_same_sweep_may_go_on_and_another_may_not(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    record = open_record(folder, [*SWEEP, f"hydra.sweep.dir='{folder}'"], JOBS, "residual=resnet")
    assert record == Record([SWEEP[0], SWEEP[1], SWEEP[3], SWEEP[2]], {"0": JOBS[0], "1": JOBS[1]}, "residual=resnet")
    record.states["1"] = {"state": "failed", "error": "out of memory", "seconds": 2.5, "steps": 0}
    save_record(folder, record)
    assert read_record(folder) == record
    other_order = [*SWEEP[:2], SWEEP[3], SWEEP[2], "hydra.mode=MULTIRUN"]  # Hydra's own keys are kept apart
    for same in (other_order, [f"++hydra.sweep.dir={folder}", *SWEEP], [*SWEEP, "jobs=2", "launcher=joblib"]):
        assert open_record(folder, same, JOBS, None) == record
    assert open_record(folder, SWEEP, JOBS[::-1], None) == record  # shuffled, the numbers stay
    assert open_record(folder, SWEEP, [], None) == record  # jobs that are proposed one by one
    for other in (SWEEP[:3], [*SWEEP, "gamma=1"], [SWEEP[1], SWEEP[0], *SWEEP[2:]], []):
        with pytest.raises(ConfigError, match=r"holds the sweep exp=digits_gated residual=gated,resnet .*sweep\.dir"):
            open_record(folder, other, JOBS, None)
    with pytest.raises(ConfigError, match=r"other jobs than .*\(residual=resnet\): its experiment has changed"):
        open_record(folder, SWEEP, JOBS[:1], None)


def test_a_job_of_somebody_else_s_sweep_trains_in_no_folder_of_the_user_s(tmp_path: Path) -> None:
    folder, own = tmp_path / "sweep", tmp_path / "own"
    own.mkdir()
    record = open_record(folder, SWEEP, JOBS, None)
    folder.mkdir()
    save_record(folder, record)
    (folder / "1").symlink_to(own)
    with pytest.raises(ConfigError, match=r"1 is a link to .*own, where the sweep would train: remove it"):
        open_record(folder, SWEEP, JOBS, None)
    (own / "finished.json").write_text('{"global_step": 1}')  # it lies on another disk, and stays
    assert open_record(folder, SWEEP, JOBS, None) == record
    save_record(folder, Record(record.arguments, {"0": JOBS[0], str(own): JOBS[1]}))
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read \(its job '.*own' has no number\)"):
        open_record(folder, SWEEP, JOBS, None)


@pytest.mark.parametrize("name", ["config.yaml", "0/config.yaml", "a/config.yaml"])
def test_a_folder_with_runs_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"runs that are of no sweep .*{re.escape(name)}"):
        open_record(tmp_path, SWEEP, JOBS, None)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"arguments": 1, "jobs": {}}', '{"arguments": []}', "\x00"])
def test_a_damaged_record_is_a_refusal(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        open_record(tmp_path, SWEEP, JOBS, None)


def test_how_far_a_job_is(tmp_path: Path) -> None:
    train, evaluate = "neural_rdm.train", "neural_rdm.evaluate"
    assert state(tmp_path / "nowhere", train) is state(tmp_path, train) is state(tmp_path, evaluate) is State.NEW
    (tmp_path / "config.yaml").touch()
    assert (state(tmp_path, train), state(tmp_path, evaluate)) == (State.BEGUN, State.NEW)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").touch()
    assert (state(tmp_path, train), state(tmp_path, evaluate)) == (State.BEGUN, State.FINISHED)
    (tmp_path / "finished.json").write_text('{"objective": 0.5')
    assert (state(tmp_path, train), finished(tmp_path)) == (State.BEGUN, {})
    (tmp_path / "finished.json").write_text('{"global_step": 4, "objective": 0.5}')
    assert (state(tmp_path, train), finished(tmp_path)["objective"]) == (State.FINISHED, 0.5)


def test_a_child_knows_its_parent_and_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", STARTED_BY):
        monkeypatch.setenv(name, "1")
        assert name not in environment()
    assert environment()[PARENT] == str(os.getpid())
    monkeypatch.delenv(PARENT, raising=False)
    end_with_parent()  # nobody asked for it
    assert PARENT not in os.environ


CHILD = """
import pathlib, signal, subprocess, sys, time
from neural_rdm.cli.jobs import end_with_parent
end_with_parent()
name = sys.argv[1]
def stop(number, frame):
    pathlib.Path(name + ".stopped").write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if len(sys.argv) > 2:  # as Lightning starts a rank: with this process's own environment
    subprocess.Popen([sys.executable, "-c", pathlib.Path("child.py").read_text(), *sys.argv[2:]])
pathlib.Path(name + ".ready").touch()
time.sleep(60)
"""


def test_a_job_and_its_ranks_stop_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    parent = (
        "import pathlib, subprocess, sys\n"
        "from neural_rdm.cli.jobs import environment\n"
        "code = pathlib.Path('child.py').read_text()\n"
        "subprocess.run([sys.executable, '-c', code, 'job', 'rank'], env=environment())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path)
    try:
        for name in ("job.ready", "rank.ready"):
            appears(tmp_path / name)
        time.sleep(1.5)
        assert list(tmp_path.glob("*.stopped")) == []  # while the parents live, nothing stops
    finally:
        process.kill()
        process.wait()
    for name in ("job.stopped", "rank.stopped"):
        appears(tmp_path / name, text=str(int(signal.SIGTERM)))


def appears(path: Path, text: str = "", seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and path.read_text() == text):
        assert time.monotonic() < end, f"{path.name} was never written"
        time.sleep(0.05)
