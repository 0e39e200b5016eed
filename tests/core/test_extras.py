"""What a message tells somebody to type installs what is missing, or is read as it was meant."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.core import extras
from neural_rdm.core.extras import typed
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


VALUES = ["/runs/a b", "it's", r"a\\'b\\", "x,y=[1]", "$HOME", "", Path("outputs/train/x"), 3, 0.5, None, True, [1, 2]]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_typed_is_read_as_what_was_meant(value: object) -> None:
    """By a shell, and then by Hydra."""
    (argument,) = shlex.split(typed("key", value))
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == (str(value) if isinstance(value, Path) else value)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab '\"\\/,{"), max_size=8))
def test_text_is_quoted_as_hydra_does(text: str) -> None:
    (argument,) = shlex.split(typed("key", text))
    quoted = QuotedString(text, Quote.single).with_quotes()
    assert argument.partition("=")[2] in (quoted, text)
