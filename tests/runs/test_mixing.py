"""The depth-mixing matrix of a trained run, as the report takes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from neural_rdm.dynamics.mixing import depth_mixing
from neural_rdm.runs.load import load_run
from neural_rdm.runs.mixing import mixing
from tests.end_to_end.commands import TINY, run


@pytest.mark.end_to_end
def test_a_run_whose_rule_mixes_depths_has_its_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("residual=denseformer", "~callbacks", "~metric", "trainer.max_steps=4", "hydra.run.dir=run")
    code, output = run("exp=digits_gated", *TINY, *few, cwd=tmp_path)
    assert code == 0, output
    found = mixing(tmp_path / "run")
    assert found is not None
    net = load_run(tmp_path / "run", "raw", accelerator="cpu").net
    x, t, y = torch.randn(2, *net.input_shape), torch.tensor([3.0, 700.0]), torch.tensor([1, 2])
    expected = depth_mixing(net, lambda: net(x, t, y))  # the weights of this rule know nothing of their input
    assert torch.tensor(found.matrix).double().allclose(expected, atol=1e-5)
    assert len(found.names) + 1 == len(found.matrix)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert mixing(tmp_path / "run") is None
    assert "no depth-mixing matrix of" in capsys.readouterr().out
