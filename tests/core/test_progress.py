"""Progress without a terminal: lines with rate and time left, also while one piece takes long."""

from __future__ import annotations

import re
import time

import pytest

from neural_rdm.core import progress
from neural_rdm.core.progress import parts, progress_bar, span


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
        assert re.fullmatch(r"measuring: \d+/40 samples, [\d.e+]+/s, \d+ s so far, \d+ s left", line), line
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
    told = re.fullmatch(r"training: 101/110 steps, ([\d.e+]+)/s, loss 0.5, 0 s so far, (\d+) s left", line)
    assert told, line
    assert float(told[1]) < 10
    assert 0 < int(told[2]) < 9


def test_the_time_of_the_report_is_said_beside_that_of_the_training(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.1)
    with progress_bar("training", 20, after=1000) as advance:
        advance(10)
        time.sleep(0.15)
    line = capsys.readouterr().err.splitlines()[0]
    told = re.search(r"(\d+) s left$", line)
    assert told, line
    assert 9 <= int(told[1]) <= 60  # a hundred times what has passed
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar("training", 3, after=1e5) as advance:
        time.sleep(0.02)
        advance()
    assert "for the report" in " ".join(capsys.readouterr().err.split())


def test_a_line_of_a_long_training_fits_a_terminal(monkeypatch, capsys) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    with progress_bar("training", 400_000, before=10_000, after=1000) as advance:
        advance(110_000, note="loss 0.0312, 43% MFU")
        now[0] = 14_820.0
    line = capsys.readouterr().err.strip()
    told = "loss 0.0312, 43% MFU"
    assert line == f"training: 120000/400000 steps, 7.42/s, {told}, 4 h 7 min so far, 10 h 30 min left"
    assert len(line) <= 100


def test_on_a_terminal_it_is_a_bar(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress_bar("training", 3, before=1) as advance:
        advance(note="loss 0.5")
    assert "2/3" in (said := capsys.readouterr().err)
    assert "loss 0.5" in said


def test_of_several_parts_the_time_for_all_of_them_is_said(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.05)
    monkeypatch.setattr(progress, "_WORTH_TELLING", 0)
    seen = []
    for item in parts(["a", "b", "c"]):
        with progress_bar("sampling", 2) as advance:
            advance()
            seen.append(item)
            time.sleep(0.12)
            advance()
    lines = capsys.readouterr().err.splitlines()
    assert seen == ["a", "b", "c"]
    told = [re.search(r"; part (\d) of 3, all done in \d s$", line) for line in lines]
    assert all(told), lines
    assert {match[1] for match in told if match} == {"1", "2", "3"}
    with progress_bar("sampling", 2):
        time.sleep(0.06)
    assert "part" not in capsys.readouterr().err, "one piece of work is all there is"


def test_the_time_for_all_parts_is_that_of_the_parts_that_are_done(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    whole = progress._Whole(4)
    assert whole.told(0.0) == "; part 1 of 4"
    now[0] = 5.0
    assert whole.told(0.5) == "; part 1 of 4, all done in 35 s"  # 10 s a part
    whole.done, whole.since = 2, 24.0
    now[0] = 30.0
    assert whole.told(0.9) == "; part 3 of 4, all done in 18 s"  # 12 s a part
