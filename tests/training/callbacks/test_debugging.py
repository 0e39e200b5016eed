"""The callbacks of the group `debug`: one batch is learned, a profile is written, the module that broke is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from neural_rdm.core.errors import UserError
from neural_rdm.training.callbacks.debugging import FindNonfinite, OneBatch, Profile
from tests.training.trainer import fit, tiny_module


def test_one_batch_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = OneBatch()
    fit(tiny_module(), tmp_path, one, steps=120, accumulate=2)
    first, last = one.losses
    assert last < 0.1 * first
    assert "in 120 steps on one batch: it learns" in capsys.readouterr().out
    assert len(one._kept) == 2


def test_a_profile_is_a_table_and_a_time_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny_module(), tmp_path, Profile(skip=1, steps=2, rows=3), steps=4)
    table = (tmp_path / "profile" / "table.txt").read_text(encoding="utf-8")
    assert "aten::addmm" in table
    said = capsys.readouterr().out
    assert "Self CPU" in said
    assert f"2 steps; all operators: {tmp_path}/profile/table.txt" in said
    events = json.loads((tmp_path / "profile" / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert any("addmm" in event.get("name", "") for event in events)


class _Breaks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("nan")


@pytest.mark.parametrize("way", ["output", "gradient"])
def test_the_first_module_that_is_not_finite_is_named(way: str, tmp_path: Path) -> None:
    module = tiny_module()
    block = module.net.blocks[1]

    def broken(layer: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("inf") if way == "output" else _Breaks.apply(output)

    block.mlp.fc1.register_forward_hook(broken)
    told = r"the output of net\.blocks\.1\.mlp\.fc1 \(Linear\) is the first that is not finite"
    if way == "gradient":
        told = r"at the output of net\.blocks\.1\.mlp_norm \(LayerNorm\) \(it still was behind net\.blocks\.1\.mlp\.fc1"
    with pytest.raises(UserError, match=told):
        fit(module, tmp_path, FindNonfinite(), steps=1)
    module = tiny_module()
    fit(module, tmp_path / "well", FindNonfinite(), steps=2)
    assert not any(m._forward_hooks for m in module.net.modules())
