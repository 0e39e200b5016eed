"""The packages of `examples/`, used as an outsider would: by `--config-dir`, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from tests.helpers import ROOT

RULES = ROOT / "examples" / "rules"
SMALL = [
    *("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2", "data.batch_size=8", "data.limit=64"),
    *("trainer.max_steps=3", "optimizer.schedule=constant", "~metric", "checkpoint.every_n_steps=2"),
    "log_every_n_steps=1",
]


def run(command: str, *arguments: str, folders: bool = True) -> str:
    """What `python -m neural_rdm.COMMAND` prints; it has to end well."""
    options = ["--config-dir", str(RULES / "configs")] if folders else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(RULES), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", f"neural_rdm.{command}", *options, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.end_to_end
def test_a_rule_of_two_streams_trains_resumes_samples_and_grows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained = run("train", "residual=pair", *SMALL, f"hydra.run.dir={folder}")
    assert "residual=pair" in trained
    assert "128 of them gates" in trained  # 4 units x 2 copies x 16 channels
    run("train", f"resume={folder}", "trainer.max_steps=4")
    sampled = tmp_path / "samples"
    run("sample", f"run={folder}", "per_class=1", "sampler.steps=2", f"hydra.run.dir={sampled}", folders=False)
    assert (sampled / "grid.png").is_file()
    run("deepen", f"checkpoint={folder}", "depth=3", f"hydra.run.dir={tmp_path / 'deep'}", folders=False)
    with pytest.raises(AssertionError, match="stream is several tensors"):
        run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False)


@pytest.mark.full
@pytest.mark.end_to_end
def test_a_rule_with_an_option_refuses_others_and_folds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", "residual=damped", "residual.power=0.25", *SMALL, f"hydra.run.dir={folder}")
    run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False)
    with pytest.raises(AssertionError, match=r"residual\.powers\. Did you mean residual\.power\?"):
        run("train", "residual=damped", "residual.powers=1", *SMALL, f"hydra.run.dir={tmp_path / 'wrong'}")


def test_options_of_a_rule_of_ones_own_are_read_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RULES)

    def check(*overrides: str) -> Any:
        composed = compose_config("train", list(overrides), [str(RULES / "configs")])
        validate(composed.cfg, "train", composed.sources)
        return composed.cfg.residual

    assert check("residual=damped").power == 0.5
    assert check("residual=pair") == {"_target_": "neural_rdm.residual.Residual", "rule": "pair.Pair", "gamma": 0.0}
    for overrides, said in (
        (["residual=damped", "residual.power=-1"], r"residual\.power=-1 must be at least 0"),
        (["residual=damped", "residual.rule=damped_.Damped"], "The package has to be importable"),
        (["residual=damped", "residual.rule=damped.Dampd"], r"Did you mean damped\.Damped\?"),
        (["residual=pair", "gamma=0.35"], "how B scales its gain is not known"),
        (["exp=digits_unet_gated", "residual=pair"], "stream is several tensors"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(*overrides)
