"""`neural-rdm` and `python -m neural_rdm`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neural_rdm import __main__ as entry
from tests.architecture import COMMANDS


def test_every_command_is_listed_with_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(entry.commands()) == COMMANDS
    monkeypatch.setattr(sys, "argv", ["neural-rdm"])
    entry.main()
    lines = capsys.readouterr().out.splitlines()
    assert "  lens      what a trained network would predict if it stopped at each of its units" in lines


def test_a_command_gets_its_own_arguments_and_an_unknown_one_is_answered_with_the_nearest() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "neural_rdm", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run("train", "exp=digits_gatet")
    assert done.returncode == 2
    assert "digits_gated" in done.stderr
    done = run("trian")
    assert done.returncode == 2
    assert "Did you mean train?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_shell_is_offered_commands_groups_and_choices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offered(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        monkeypatch.setattr(sys, "argv", ["neural-rdm", "--complete", "neural-rdm", "word", "before"])
        entry.main()
        return capsys.readouterr().out.split()

    assert offered("neural-rdm s") == ["sample", "stats", "sweep"]
    assert offered("neural-rdm train back") == ["backbone="]
    assert offered("neural-rdm sweep se") == ["seed=", "seeds="]
    assert offered("neural-rdm train seed=1 exp=small/fig") == ["small/fig5", "small/fig6", "small/fig7"]
    assert offered("neural-rdm nothing x") == []
