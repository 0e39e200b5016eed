"""A sweep's folder: what may go on in it, and jobs that end with the process that started them."""

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

from neural_rdm.cli.jobs import PARENT, State, end_with_parent, enter, environment, objective, record_sweep, state
from neural_rdm.cli.launcher import _wait, started
from neural_rdm.core.errors import ConfigError
from neural_rdm.reports.sweeps import FILE

SWEEP = ["exp=digits_gated", "residual=gated,resnet", "hydra.job.name=x", "seed=1"]


def test_the_same_sweep_may_go_on_and_another_may_not(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    record_sweep(folder, [*SWEEP, f"hydra.sweep.dir='{folder}'"])
    first = (folder / FILE).read_bytes()
    record_sweep(folder, [*SWEEP[:2], SWEEP[3], SWEEP[2], "hydra.mode=MULTIRUN"])  # Hydra keeps its own keys apart
    record_sweep(folder, [f"++hydra.sweep.dir={folder}", *SWEEP])
    assert (folder / FILE).read_bytes() == first
    for other in (SWEEP[:3], [*SWEEP, "gamma=1"], [SWEEP[1], SWEEP[0], *SWEEP[2:]], []):
        with pytest.raises(ConfigError, match=r"holds the sweep exp=digits_gated residual=gated,resnet .*sweep\.dir"):
            record_sweep(folder, other)
    assert (folder / FILE).read_bytes() == first


@pytest.mark.parametrize("name", ["config.yaml", "0/config.yaml", "a/config.yaml"])
def test_a_folder_with_runs_of_something_else_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=f"runs that are of no sweep .*{re.escape(name)}"):
        record_sweep(tmp_path, SWEEP)
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize("text", ["", "[]", '{"arguments": 1, "jobs": {}}', '{"arguments": []}', "\x00"])
def test_a_damaged_record_is_a_refusal(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"sweep\.json cannot be read"):
        record_sweep(tmp_path, SWEEP)


def test_a_job_stays_what_it_was(tmp_path: Path) -> None:
    record_sweep(tmp_path, SWEEP)
    enter(tmp_path, 0, ["seed=1"])
    enter(tmp_path, 1, ["seed=2"])
    enter(tmp_path, 0, ["seed=1"])
    with pytest.raises(ConfigError, match=r"job 1 of .* was seed=2 and would now be seed=1"):
        enter(tmp_path, 1, ["seed=1"])
    assert json.loads((tmp_path / FILE).read_text())["jobs"] == {"0": ["seed=1"], "1": ["seed=2"]}


def test_how_far_a_job_is(tmp_path: Path) -> None:
    train, evaluate = "neural_rdm.train", "neural_rdm.evaluate"
    assert state(tmp_path / "nowhere", train) is state(tmp_path, train) is state(tmp_path, evaluate) is State.NEW
    (tmp_path / "config.yaml").touch()
    assert (state(tmp_path, train), state(tmp_path, evaluate)) == (State.BEGUN, State.NEW)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").touch()
    assert (state(tmp_path, train), state(tmp_path, evaluate)) == (State.BEGUN, State.FINISHED)
    (tmp_path / "finished.json").write_text('{"objective": 0.5')
    assert (state(tmp_path, train), objective(tmp_path)) == (State.BEGUN, None)
    (tmp_path / "finished.json").write_text('{"global_step": 4, "objective": 0.5}')
    assert (state(tmp_path, train), objective(tmp_path)) == (State.FINISHED, 0.5)


def test_a_child_knows_its_parent_and_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "LOCAL_RANK" not in environment()
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_launcher_reaches_its_job_once(number: signal.Signals, tmp_path: Path) -> None:
    """Also where it was sent to the launcher alone, and to all of its group, as a terminal sends Ctrl-C."""
    script = (
        "import os, pathlib, signal, sys, time\n"
        "got = []\n"
        "for n in (1, 2, 15): signal.signal(n, lambda n, _: got.append(n))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "while not got: time.sleep(0.01)\n"
        "time.sleep(0.3)\n"
        "sys.exit(100 + got[0] if len(got) == 1 and os.getpgid(0) != os.getpgid(os.getppid()) else 1)"
    )

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    job = started([sys.executable, "-c", script, str(tmp_path / "ready")])
    threading.Thread(target=send, daemon=True).start()
    assert _wait(job) == (100 + number, number)
