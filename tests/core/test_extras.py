"""What a message tells somebody to type installs what is missing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from neural_rdm.core import extras
from tests.helpers import ROOT


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with an environment that has pip."""
    pip = tmp_path / ".venv" / "bin" / "pip"
    pip.parent.mkdir(parents=True)
    pip.touch()
    monkeypatch.setattr(sys, "executable", str(pip.with_name("python")))
    monkeypatch.setattr(extras, "ROOT", tmp_path)
    (tmp_path / "src" / "neural_rdm").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    return tmp_path


def test_a_checkout_installs_itself_with_the_extra(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(environment)
    assert extras.install("mp4") == '.venv/bin/pip install -e ".[mp4]"'
    monkeypatch.chdir(environment / "src")
    assert extras.install("mp4") == f'{environment}/.venv/bin/pip install -e "{environment}[mp4]"'


def test_a_wheel_names_the_requirements(environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (environment / "pyproject.toml").unlink()
    lines = ["torch>=2.6", "av>=15; extra == 'mp4'", 'decord; (platform_machine == "x") and extra == "other"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    monkeypatch.chdir(environment)
    assert extras.install("mp4") == '.venv/bin/pip install "av>=15"'


def test_every_extra_that_a_message_names_exists_and_none_is_named_otherwise() -> None:
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r"""\binstall\(["'](\w+)["']\)""", text)}
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    assert {"mp4", "text", "offline", "deepspeed"} <= named <= set(re.findall(r"(?m)^(\w+) = \[", table))
    assert not [text for text in sources if "neural-rdm[" in text]
