"""What a run prints, kept in its folder: as a terminal would have left it, and the error that ended it."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.output import LOG, kept, last_error, print_page
from neural_rdm.core.signals import Stopped


def test_lines_are_kept_without_colours_and_of_a_bar_its_last_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # of other tests, whose streams are closed
    before = sys.stdout, sys.stderr
    with kept(tmp_path):
        print("one ", end="")
        print("\x1b[1mbold\x1b[0m", file=sys.stderr)
        print("line")
        for step in range(3):
            sys.stderr.write(f"\r\x1b[2Kbar {step}/2")
        sys.stderr.write("\r\x1b[2Kan alarm\nbar 2/2\r\n")
        logging.getLogger("some.library").warning("logged")
        held = sys.stdout
    assert (sys.stdout, sys.stderr) == before
    held.write("too late\n")
    head, *lines = (tmp_path / LOG).read_text().splitlines()
    assert head.startswith("# 20")
    assert "python" in head
    assert lines == ["bold", "one line", "an alarm", "bar 2/2", "logged"]
    assert "one line" in capsys.readouterr().out


def test_the_error_of_the_newest_start_is_told(tmp_path: Path) -> None:
    assert last_error(tmp_path) is None
    with pytest.raises(ConfigError), kept(tmp_path):
        raise ConfigError("no such thing")
    assert last_error(tmp_path) == "no such thing"
    with pytest.raises(ValueError), kept(tmp_path):
        raise ValueError("deep inside")
    assert last_error(tmp_path) == "ValueError: deep inside"
    behind = ValueError("a library's, in the way of a signal")
    behind.__context__ = Stopped(signal.SIGTERM)
    with pytest.raises(ValueError), kept(tmp_path):
        raise behind
    assert (tmp_path / LOG).read_text().endswith("\nstopped by SIGTERM\n")
    with kept(tmp_path):
        print("all is well")
    assert last_error(tmp_path) is None
    assert (tmp_path / LOG).read_text().count("\n# 20") == 3  # all of it is there still


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / LOG).mkdir()
    with kept(tmp_path):
        print("on it goes")


def test_a_log_that_is_standard_output_already_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / LOG).open("a") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with kept(tmp_path) as forget:
            print("once")
        forget()
    assert (tmp_path / LOG).read_text() == "once\n"
    assert os.listdir(tmp_path) == [LOG]


def test_a_log_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "output.log").symlink_to(private)
    with kept(tmp_path / "run"):
        print("theirs")
    assert private.read_text() == "mine"


def test_a_page_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.md").write_text("| \x1b]0;title\x07 | \u202egnp |\n", encoding="utf-8")
    print_page(tmp_path / "metrics.md")
    assert capsys.readouterr().out == "| \\x1b]0;title\\x07 | \\u202egnp |\n\n"
