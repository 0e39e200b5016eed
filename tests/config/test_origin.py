"""What a run says of where it comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neural_rdm.config.origin import code_version, origin
from neural_rdm.config.provenance import read_provenance, write_config
from neural_rdm.runs.folders import opened

CFG = OmegaConf.create({"seed": 1})


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    done = subprocess.run(["git", "-C", str(root), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert code_version(tmp_path) == (None, None)
    (tmp_path / "src" / "neural_rdm").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    file = tmp_path / "src" / "neural_rdm" / "a.py"
    file.write_text("one = 1\n")
    git(tmp_path, "init", "-q")
    assert code_version(tmp_path) == (None, None)  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").touch()  # nothing that the numbers depend on
    assert code_version(tmp_path) == (commit, False)
    file.write_text("one = 2\n")
    assert code_version(tmp_path) == (commit, True)
    git(tmp_path, "checkout", "-q", str(file))
    (file.parent / "b.py").touch()
    assert code_version(tmp_path) == (commit, True)


def test_every_start_of_a_run_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "residual=gated", "seed=1", "hydra.run.dir=x", "hydra.mode=RUN"])
    with opened(tmp_path, "train", CFG):
        write_config(tmp_path, CFG)
    monkeypatch.setattr(sys, "argv", ["train.py", "resume=x", "trainer.max_steps=9"])
    with opened(tmp_path, "train", CFG, resumes=True):
        pass
    starts = read_provenance(tmp_path)["starts"]
    assert [start["arguments"] for start in starts] == [["residual=gated", "seed=1"], ["trainer.max_steps=9"]]
    assert starts[0].keys() == origin().keys()
    assert starts[0]["versions"]["torch"].startswith("2.")
    assert starts[0]["machine"]["cores"] >= 1
