"""The Makefile: what its targets would run. Nothing is built or trained here."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

TARGETS = ["help", "setup", "prepare", "preview", "encode", "stats", "plan"]
TARGETS += ["train", "sweep", "sample", "evaluate", "lens", "inspect", "demo", "report", "deepen", "convert"]
TARGETS += ["test", "test-full", "lint", "docs", "bench", "clean"]


@pytest.fixture(autouse=True)
def _outermost(monkeypatch):
    """These tests may themselves be run by make, which hands its variables down."""
    for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS"):
        monkeypatch.delenv(name, raising=False)


def make(*args: str) -> str:
    done = subprocess.run(["make", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(*args: str) -> list[str]:
    """The command lines of a target that use the environment, without those that would make it."""
    return [line.rstrip() for line in make("-n", *args).splitlines() if line.startswith(".venv/bin/")][-3:]


def test_help_is_the_default_and_lists_every_target():
    text = make("help")
    assert re.findall(r"(?m)^  make (\S+) +\S", text) == TARGETS
    assert make() == text
    for variable in ("exp=", "args=", "run=", "runs=", "seeds=", "jobs=", "PYTHON=", "TORCH="):
        assert variable in text


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_can_be_made(target):
    make("-n", target)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["train"], "train exp=digits_gated"),
        (["plan", "exp=x", "args=devices=1,8"], "plan exp=x devices=1,8"),
        (["train", "exp=x", "args=a=1 b='[1,2]'"], "train exp=x a=1 b='[1,2]'"),
        (
            ["train", "args=data.root=\"my $HOME\"  x='${y}' z=a#b"],
            "train exp=digits_gated data.root=\"my $HOME\"  x='${y}' z=a#b",
        ),
        (["sweep", "exp=x", "args=residual=gated,resnet"], "sweep exp=x residual=gated,resnet"),
        (["sweep", "exp=small/fig6", "seeds=[0,3]", "jobs=2"], "sweep exp=small/fig6 seeds='[0,3]' jobs='2'"),
        (["sample", "run=out/a b"], "sample run='out/a b'"),
        (["sample"], "sample"),
        (["encode", "exp=x", "args=data.root=d"], "encode exp=x data.root=d"),
        (["encode", "args=exp=x data.root=d"], "encode exp=x data.root=d"),
        (["train", "report", "exp=x", "runs=d"], "report runs='d'"),
        (["evaluate", "run=last", "args=weights=raw"], "evaluate run='last' weights=raw"),
        (["deepen", "run=last", "args=depth=8"], "deepen checkpoint='last' depth=8"),
        (["report", "runs=outputs/*/{a,b}"], "report runs='outputs/*/{a,b}'"),
    ],
)
def test_command_lines_keep_what_was_typed(args, line):
    assert commands(*args)[-1] == f".venv/bin/python -m neural_rdm.{line}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["preview", "exp=x"], 'preview takes no exp=: .*args="data=NAME"'),
        (["sample", "exp=x"], "sample takes no exp=: .*a run knows its experiment"),
        (["train", "run=d"], 'train takes no run=: .*args="resume=DIR"'),
        (["report", "run=d"], "report takes no run=: .*runs=DIR"),
        (["evaluate", "runs=d"], "evaluate takes no runs=: .*run=DIR"),
        (["test", "exp=x"], "test takes no exp="),
        (["lint", "args=x"], "lint takes no args="),
        (["exp=x"], "help takes no exp="),
        (["train", "seeds=3"], 'train takes no seeds=: .*args="seed=N"'),
        (["report", "jobs=2"], "report takes no jobs="),
        (["train", "peer=../DiT"], "train takes no peer="),
        (["train", "data.root=my pictures"], 'knows no data.root=: .*args="data.root=my pictures"'),
        (["train", "+a=1"], r"knows no \+a="),
    ],
)
def test_a_variable_that_would_be_ignored_is_refused(line: list[str], message: str) -> None:
    done = subprocess.run(["make", "-n", *line], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(message, done.stderr)


def test_environment_variables_are_no_arguments(monkeypatch):
    monkeypatch.setenv("exp", "from_the_environment")
    monkeypatch.setenv("args", "from=environment")
    monkeypatch.setenv("residual", "environment")
    assert commands("train")[-1] == ".venv/bin/python -m neural_rdm.train exp=digits_gated"


def test_checks_run_what_the_project_says():
    shared_out = ".venv/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 1"
    assert commands("test")[-1] == f'{shared_out} -m "not full"'
    assert commands("test-full")[-1] == f"{shared_out} -o faulthandler_timeout=3600"
    assert commands("bench")[-1] == ".venv/bin/python -m benchmarks"
    assert commands("bench", "peer=../my DiT")[-1] == ".venv/bin/python -m benchmarks peer='../my DiT'"
    assert commands("lint") == [
        ".venv/bin/ruff check src tests benchmarks examples",
        ".venv/bin/ruff format --check src tests benchmarks examples",
        ".venv/bin/mypy",
    ]


def test_a_fresh_checkout_gets_its_environment_once(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()

    def planned() -> str:
        line = ["make", "-n", "train", "PYTHON=python9", "TORCH=torch==1"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    text = planned()
    assert "python9 -m venv .venv" in text
    assert 'pip install --disable-pip-version-check "torch==1" -e ".[dev]"' in text
    assert text.rstrip().endswith("-m neural_rdm.train exp=digits_gated")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").touch()
    assert "pip" not in planned()


def test_a_failed_installation_leaves_no_stamp(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    pip = tmp_path / ".venv" / "bin" / "python"
    pip.parent.mkdir(parents=True)
    pip.write_text('#!/bin/sh\n[ "$3" = --version ] || { echo "Collecting torch"; echo noise; exit 1; }\n')
    pip.chmod(0o755)
    done = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Collecting torch" in done.stdout
    assert "noise" not in done.stdout
    assert not (tmp_path / ".venv" / ".stamp").exists()
    counted = "Downloading torch\\nProgress 1 of 900000000\\nProgress 90000000 of 900000000\\nProgress 9 of 10\\n"
    pip.write_text(f'#!/bin/sh\ncase "$*" in *--help) echo "[auto, on, off, raw]";; *=raw) printf "{counted}";; esac\n')
    done = subprocess.run(["make", "setup"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert told[1:3] == ["Downloading torch", "    10 % of 900 MB"]
    assert told[-2].endswith("A first run, two minutes on a CPU: make train")
    assert (tmp_path / ".venv" / ".stamp").exists()
