"""Work that processes share: what is said while one waits for the others."""

from __future__ import annotations

import pytest

from neural_rdm.cli import sharing
from neural_rdm.cli.sharing import wait_for


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
