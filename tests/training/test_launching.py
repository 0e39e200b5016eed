"""What a process says when another one of its run is gone, and that none stays behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from neural_rdm.core.errors import RankError
from neural_rdm.core.ranks import STARTED_BY
from neural_rdm.core.signals import Stopped
from neural_rdm.training import launching
from neural_rdm.training.launching import Launcher, watched
from tests import processes

LOST = RuntimeError("[third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43424.")


def launcher_of(*started: subprocess.Popen[bytes]) -> Launcher:
    """That of a trainer; under Lightning every rank has one, and only the first one has used it."""
    launcher = Launcher.__new__(Launcher)
    launcher.ranks = list(started)
    return launcher


def watching(number: int, *started: subprocess.Popen[bytes], how: Callable[[], str] = str) -> Any:
    """The work of one rank of three."""
    return watched(number, 3, how, launcher_of(*started))


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])


def test_the_rank_that_was_killed_is_named_and_the_others_are_stopped() -> None:
    one, two = sleeping(), sleeping()
    two.send_signal(signal.SIGKILL)
    named = rf"rank 2 \(process {two.pid}\) was killed by SIGKILL.*Saved last"
    with pytest.raises(RankError, match=named), watching(0, one, two, how=lambda: "Saved last was step 4"):
        raise LOST
    assert one.returncode == -signal.SIGKILL
    assert RankError.exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_rank_that_was_asked_to_stop_stops_the_run_by_that_signal(number: signal.Signals) -> None:
    """Found by `benchmarks soak`: a terminal closed while the ranks looked for one another was told as a lost rank."""
    one, two = sleeping(), subprocess.Popen([sys.executable, "-c", f"raise SystemExit({128 + number})"])
    with pytest.raises(Stopped) as stopped, watching(0, one, two):
        raise LOST
    assert stopped.value.exit_code == 128 + number
    assert one.returncode == -signal.SIGKILL


def test_a_rank_that_dies_of_the_signal_that_is_passed_on_stops_the_run_by_the_first_one() -> None:
    """Found by `benchmarks soak`: Ctrl-C reached a rank before it trained, and what was passed on then killed it."""
    other = sleeping()
    launcher = launcher_of(other)
    launcher.asked = signal.SIGINT
    launcher.kill(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, watched(0, 2, str, launcher):
        raise LOST
    assert other.returncode == -signal.SIGTERM
    assert stopped.value.signal is signal.SIGINT


def test_an_error_of_its_own_stays_what_it_is_and_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.2)
    for error in (ValueError("mine"), RuntimeError("mine"), LOST, KeyboardInterrupt()):
        other = sleeping()
        with pytest.raises(type(error)), watching(0, other):
            raise error
        assert other.returncode == -signal.SIGKILL


def test_a_rank_knows_that_the_first_one_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.2)
    with pytest.raises(RankError, match="rank 1 has lost another process of this run"), watching(1):
        raise LOST
    monkeypatch.setattr(launching, "PARENT", 123)
    monkeypatch.setattr(launching, "_EVERY", 60.0)
    named = r"rank 1 was stopped: process 123, which started it, has ended\. Saved last"
    with pytest.raises(RankError, match=named), watching(1, how=lambda: "Saved last was step 4"):
        raise LOST


def test_a_process_that_waits_for_a_dead_one_is_ended_with_a_message() -> None:
    script = (
        "import time; from tests.training.test_launching import *\n"
        "launching.GRACE = 0.1; other = sleeping(); other.kill()\n"
        "with watching(0, other, how=lambda: 'Saved last was step 4'): time.sleep(100)"
    )
    done = processes.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.strip().startswith("error: rank 1 (process ")
    assert done.stderr.strip().endswith("Saved last was step 4")


def test_a_rank_whose_parent_was_gone_before_it_could_ask_ends_as_well() -> None:
    """Found by `benchmarks soak`: rank 0 was killed as its ranks began, and one waited for it in the store for ever."""
    script = (
        "import time; from tests.training.test_launching import *\n"
        "launching.GRACE = 0.1\n"
        "with watching(1, how=lambda: 'Saved last was step 4'): time.sleep(100)"
    )
    gone = sleeping()
    gone.kill()
    gone.wait()
    environment = os.environ | {STARTED_BY: str(gone.pid)}
    line = [sys.executable, "-c", script]
    done = processes.run(line, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert f"rank 1 was stopped: process {gone.pid}, which started it, has ended. Saved last" in done.stderr


def test_the_first_rank_of_torchrun_too_ends_when_that_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `benchmarks soak`: it looked for the others half an hour where torchrun was gone."""
    monkeypatch.setattr(launching, "GRACE", 0.2)
    monkeypatch.setattr(launching, "_EVERY", 60.0)
    monkeypatch.setattr(launching, "PARENT", 123)
    with pytest.raises(RankError, match="rank 0 has lost another"), watched(0, 2, str):
        raise LOST  # the shell that has started it may go, as under nohup
    monkeypatch.setattr(launching, "BY_TORCHRUN", True)
    with pytest.raises(RankError, match="rank 0 was stopped: process 123"), watched(0, 2, str):
        raise LOST


def test_a_rank_of_a_torchrun_that_was_gone_before_it_could_ask_ends_as_well() -> None:
    script = (
        "import time; from tests.training.test_launching import *\n"
        "launching.GRACE = 0.1\n"
        "with watching(0, how=lambda: 'Saved last was step 4'): time.sleep(100)"
    )
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    of_torchrun = {"TORCHELASTIC_RUN_ID": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | of_torchrun | {"MASTER_PORT": port}
    line = [sys.executable, "-c", script]
    done = processes.run(line, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert "rank 0 was stopped: torchrun, which started it, has ended. Saved last" in done.stderr


def test_ranks_are_told_who_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(
        _SubprocessScriptLauncher, "_call_children_scripts", lambda self: told.append(os.environ[STARTED_BY])
    )
    launcher = Launcher.__new__(Launcher)
    launcher.procs = []
    launcher._call_children_scripts()
    assert told == [str(os.getpid())]
    assert STARTED_BY not in os.environ
