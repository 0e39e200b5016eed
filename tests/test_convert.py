"""The convert command: a run leaves in the layouts of others and comes back unchanged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neural_rdm import DiT, load_official
from neural_rdm.core.weights import read_weights
from tests.end_to_end.commands import TINY, run

pytestmark = pytest.mark.end_to_end


@pytest.mark.parametrize(("rule", "to"), [("rezero", "official"), ("resnet", "diffusers")])
def test_a_run_is_exported_and_read_again(tmp_path: Path, rule: str, to: str) -> None:
    code, output = run(*TINY, f"residual={rule}", "trainer.max_steps=2", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("run=run", f"to={to}", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 0, output
    if to == "official":
        arguments = json.loads((tmp_path / "out/config.json").read_text())
        assert arguments.pop("network") == "DiT"
        net = load_official(DiT(**arguments, residual="resnet"), tmp_path / "out/weights.safetensors")
    else:
        net = load_official(DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual="resnet"), tmp_path / "out")
    source = DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual=rule)
    source.load_state_dict(read_weights(tmp_path / "run"))
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([1, 10])
    torch.testing.assert_close(net(x, t, y), source(x, t, y), atol=1e-5, rtol=1e-4)


def test_gates_that_do_not_fit_are_named(tmp_path: Path) -> None:
    code, output = run(*TINY, "trainer.max_steps=3", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("run=run", "hydra.run.dir=out", cwd=tmp_path, module="convert")
    assert code == 2
    assert "cannot fold: its beta" in output
    assert "Traceback" not in output
