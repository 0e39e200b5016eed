"""Jobs as command lines: what they are given, what is kept of them, how they stop; and every pool that runs them."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from neural_rdm.cli.jobs import PARENT
from neural_rdm.cli.pools import Joblib, Line, Local, Ray, Submitit
from neural_rdm.core.errors import ConfigError
from tests.cli.jobs import COMMAND


@pytest.fixture(autouse=True)
def _command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(COMMAND, encoding="utf-8")


def line(*overrides: str, **further: Any) -> Line:
    return Line(Path("sweep/0"), "job", list(overrides), [], **further)


def wait_for(path: Path, text: str = "", seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and text in path.read_text()):
        assert time.monotonic() < end, f"{path} was never written"
        time.sleep(0.02)


def test_a_new_run_begins_and_one_that_has_begun_goes_on() -> None:
    train = Line(Path("sweep/it's"), "neural_rdm.train", ["seed=1"], ["sweep=null"])
    python = [sys.executable, "-m", "neural_rdm.train"]
    assert train.command() == [*python, "seed=1", r"hydra.run.dir='sweep/it\'s'", "sweep=null", "hydra.mode=RUN"]
    Path("sweep/it's").mkdir(parents=True)
    Path("sweep/it's/config.yaml").touch()
    assert train.command() == [*python, r"resume='sweep/it\'s'", "sweep=null", "hydra.mode=RUN"]


def test_the_log_of_a_job_that_is_a_link_or_a_pipe_is_not_written_to(tmp_path: Path) -> None:
    log = tmp_path / "sweep" / "0" / "output.log"
    log.parent.mkdir(parents=True)
    (tmp_path / "own").write_text("mine\n")
    log.symlink_to(tmp_path / "own")
    with pytest.raises(OSError, match=r"output\.log"):
        line()()
    assert (tmp_path / "own").read_text() == "mine\n"
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(OSError, match=r"output\.log"):
        line()()


def test_a_job_keeps_what_it_printed_and_is_no_rank_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    job = line(threads=3)
    assert (job(), job()) == (0, 0)
    assert Path("sweep/0/output.log").read_text() == "I am 0\nI am 0\n"
    environment = json.loads(Path("sweep/0/environment.json").read_text())
    assert "LOCAL_RANK" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"
    assert line("how=fail")() == 2
    assert Path("sweep/0/output.log").read_text().endswith("error: this cannot work\n")
    assert line("how=kill")() == 128 + signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_it_is_asked_reaches_a_job_once(number: signal.Signals) -> None:
    """Also where the signal was sent to the whole group, as a terminal sends Ctrl-C: a job has a group of its own."""
    job = line("how=wait")
    running = Local().start(1, Path("sweep"))(job)
    wait_for(Path("sweep/0/metrics.csv"), "3,")
    job.ask_to_stop(number)
    assert running.result() == 128 + number
    assert json.loads(Path("sweep/0/signals.json").read_text()) == [[number], True]
    job.forget()
    assert sorted(os.listdir("sweep")) == ["0"]


def test_a_signal_to_the_process_that_runs_a_line_is_handed_on() -> None:
    """As of a cluster, whose job runs a line in the main thread of a process of its own."""
    code = "from pathlib import Path; from neural_rdm.cli.pools import Line; import sys; "
    code += "sys.exit(Line(Path('sweep/0'), 'job', ['how=wait'], [])())"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(Path("sweep/0/metrics.csv"), "3,")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM


def test_a_job_stops_where_its_sweep_has_died_on_this_machine_and_stays_where_it_was_elsewhere() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert line("how=wait", owner=(socket.gethostname(), dead.pid))() == 128 + signal.SIGTERM
    Path("go").touch()
    assert line("how=wait", owner=("elsewhere", dead.pid))() == 0


def test_before_a_time_limit_a_job_saves_its_step_and_is_queued_again_to_go_on() -> None:
    pytest.importorskip("submitit")
    Path("sweep").mkdir()
    running: Any = Submitit("local").start(1, Path("sweep"))(line("how=wait"))
    wait_for(Path("sweep/0/metrics.csv"), "3,")
    worker = int(json.loads(Path("sweep/0/environment.json").read_text())[PARENT])
    os.kill(worker, signal.SIGUSR2)  # what SLURM does
    wait_for(Path("sweep/0/signals.json"))
    assert json.loads(Path("sweep/0/signals.json").read_text()) == [[signal.SIGTERM], True]
    Path("go").touch()
    assert running.result() == 0
    assert Path("sweep/0/output.log").read_text().split("\n")[::2] == ["I am 0", "I am 0"]


def ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What of Ray is used, on threads: Ray itself is hundreds of megabytes."""
    asked: dict[str, Any] = {}
    threads = concurrent.futures.ThreadPoolExecutor()

    def remote(**needs: Any) -> Any:
        asked.update(needs)

        def task(function: Any) -> Any:
            start = lambda *a: SimpleNamespace(future=lambda: threads.submit(function, *a))  # noqa: E731
            return SimpleNamespace(remote=start)

        return task

    module = ModuleType("ray")
    module.init, module.remote = lambda **how: asked.update(how), remote  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", module)
    return asked


@pytest.mark.parametrize("name", ["local", "joblib", "submitit", "ray"])
def test_every_pool_runs_lines_and_stops_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("joblib", "submitit"):
        pytest.importorskip(name)
    asked = ray(monkeypatch) if name == "ray" else {}
    pools = {"local": Local(), "joblib": Joblib(), "submitit": Submitit(cluster="local"), "ray": Ray(num_gpus=1)}
    Path("sweep").mkdir()
    submit = pools[name].start(2, Path("sweep"))
    jobs = [Line(Path(f"sweep/{n}"), "job", [how], []) for n, how in enumerate(["how=wait", "how=fail"])]
    running = [submit(job) for job in jobs]
    assert running[1].result() == 2
    wait_for(Path("sweep/0/metrics.csv"), "3,")
    assert not running[0].done()
    jobs[0].ask_to_stop(signal.SIGTERM)
    assert running[0].result() == 128 + signal.SIGTERM
    assert running[0].done()
    assert json.loads(Path("sweep/0/signals.json").read_text()) == [[signal.SIGTERM], True]
    if asked:
        assert (asked["num_gpus"], asked["max_retries"], asked["address"]) == (1, 0, None)


def test_a_library_that_is_missing_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pool, extra in (("submitit", Submitit(), "launchers"), ("ray", Ray(), "ray")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ConfigError, match=rf"launcher={name} needs {name}: .*\[{extra}\]"):
            pool.start(1, Path())


def test_parameters_that_submitit_does_not_have_are_refused() -> None:
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match=r"launcher=submitit .*nonsense"):
        Submitit("local", {"nonsense": 1}).start(1, Path())
