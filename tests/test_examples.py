"""The packages of `examples/`, used as an outsider would: by `--config-dir`, in processes of their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from tests import processes
from tests.helpers import ROOT

RULES, NETWORKS = ROOT / "examples" / "rules", ROOT / "examples" / "networks"
SMALL = [
    *("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2", "data.batch_size=8", "data.limit=64"),
    *("trainer.max_steps=3", "optimizer.schedule=constant", "~metric", "checkpoint.every_n_steps=2"),
    "log_every_n_steps=1",
]


def run(command: str, *arguments: str, folders: bool = True, package: Path = RULES) -> str:
    """What `python -m neural_rdm.COMMAND` prints; it has to end well."""
    options = ["--config-dir", str(package / "configs")] if folders else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    done = processes.run(
        [sys.executable, "-m", f"neural_rdm.{command}", *options, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.full
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


@pytest.mark.end_to_end
def test_a_network_of_ones_own_trains_samples_grows_and_leaves(tmp_path: Path) -> None:
    small = ["exp=digits_mixer", "backbone.depth=2", "backbone.width=16", *SMALL[3:]]
    folder = tmp_path / "run"
    small[small.index("~metric")] = "metric.per_class=2"
    trained = run("train", *small, f"hydra.run.dir={folder}", package=NETWORKS)
    assert "Mixer, " in trained
    assert (folder / "report" / "metrics.md").is_file()  # drawn and measured
    run("sample", f"run={folder}", "per_class=1", "sampler.steps=2", f"hydra.run.dir={tmp_path / 'samples'}",
        folders=False, package=NETWORKS)  # fmt: skip
    assert (tmp_path / "samples" / "grid.png").is_file()
    deep = tmp_path / "deep"
    grown = run("deepen", f"checkpoint={folder}", "depth=3", f"hydra.run.dir={deep}", folders=False, package=NETWORKS)
    assert "2 blocks -> 3; the output moved by at most 0\n" in grown
    assert "depth: 3" in (deep / "config.yaml").read_text()
    run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False, package=NETWORKS)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["network"] == "Mixer"


def test_its_blocks_compile_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(NETWORKS))
    from mixer import Mixer
    from neural_rdm.backbones.contract import blocks_of

    torch._dynamo.reset()
    net = Mixer(num_classes=3)
    nn.init.normal_(net.out.weight)
    shown = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 3])
    expected = net(*shown)
    for block in blocks_of(net, "compiled"):
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(net(*shown), expected)
