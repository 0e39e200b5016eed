"""Progress without a terminal: lines with rate and time left, also while one piece takes long."""

from __future__ import annotations

import re
import time

import pytest

from neural_rdm.core import progress
from neural_rdm.core.progress import progress_bar, span


def test_lines_come_by_the_clock_without_a_terminal(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with progress_bar("measuring", 40, "samples") as advance:
        for _ in range(4):
            advance(5)
            time.sleep(0.03)
        time.sleep(0.3)  # one piece that takes long
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert re.fullmatch(r"measuring: \d+/40 samples, [\d.e+]+ samples/s, \d+ s so far, \d+ s left", line), line
    assert "20/40" in lines[-1]


def test_an_unknown_number_and_quick_work(monkeypatch, capsys) -> None:
    with progress_bar("reading", None, "files") as advance:
        advance()
    assert capsys.readouterr().err == "", "quick work needs no line"
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with progress_bar("reading", None, "files") as advance:
        advance(3)
        time.sleep(0.12)
    assert capsys.readouterr().err.startswith("reading: 3 files, ")
    with progress_bar("computing", None):
        time.sleep(0.12)
    assert capsys.readouterr().err.startswith("computing: 0 s so far\n")


def test_the_watch_ends_with_an_error(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    with pytest.raises(ValueError, match="stop"), progress_bar("reading", 3):
        raise ValueError("stop")
    capsys.readouterr()
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_spans_are_said_as_a_person_says_them() -> None:
    assert [span(s) for s in (0.4, 59.6, 303, 7620)] == ["0 s", "1 min 0 s", "5 min 3 s", "2 h 7 min"]


def test_what_was_done_before_counts_in_no_rate(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with progress_bar("training", 110, before=100) as advance:
        advance(note="loss 0.5")
        time.sleep(0.15)
    line = capsys.readouterr().err.splitlines()[0]
    told = re.fullmatch(r"training: 101/110 steps, ([\d.e+]+) steps/s, loss 0.5, 0 s so far, (\d+) s left", line)
    assert told, line
    assert float(told[1]) < 10
    assert 0 < int(told[2]) < 9


def test_on_a_terminal_it_is_a_bar(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar("training", 3, before=1) as advance:
        advance(note="loss 0.5")
    assert "2/3" in (said := capsys.readouterr().err)
    assert "loss 0.5" in said
