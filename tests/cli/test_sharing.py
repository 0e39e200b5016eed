"""Work that processes share: what is said while one waits for the others, and how a signal ends it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from neural_rdm.cli import sharing
from neural_rdm.cli.sharing import stoppable, wait_for


def test_what_is_missing_is_said_every_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(sharing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sharing.time, "sleep", lambda pause: now.__setitem__(0, now[0] + pause))
    wait_for(lambda: range(3 - int(now[0] // 50)), "shards")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(";")[0] for line in lines] == [
        f"waiting for the other processes: {n} shards are missing" for n in (3, 2, 1)
    ]
    assert "if no other process is running, stop this and give the same command to one process" in lines[0]
    wait_for(list, "shards")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_work_with_one_line(
    number: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def work() -> int:
        if (child := os.fork()) == 0:  # a process that was forked leaves it to its parent
            os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    assert stoppable(work) == code
    assert capsys.readouterr().out.strip().startswith("stopped; give the same command again")
    assert signal.getsignal(number) is before
    assert stoppable(lambda: 5) == 5
