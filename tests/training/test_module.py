"""The training step: its random draws, its resume, its gradient under accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from neural_rdm.residual import RULES
from neural_rdm.training.checkpoints import Checkpoints
from neural_rdm.training.ema import EMA
from tests.end_to_end.commands import differences
from tests.training.trainer import fit, tiny_module


def batch(positions: range) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    x, y = torch.rand(64, 1, 8, 8, generator=generator) * 2 - 1, torch.randint(0, 10, (64,), generator=generator)
    rows = torch.tensor(list(positions))
    return {"x": x[rows], "y": y[rows], "position": rows}


def test_draws_do_not_depend_on_how_a_batch_is_split() -> None:
    module = tiny_module()
    whole = module.losses(batch(range(12)), "train", drop=True)
    parts = [module.losses(batch(r), "train", drop=True) for r in (range(5), range(5, 6), range(6, 12))]
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), value, rtol=1e-5, atol=1e-6)


def test_draws_differ_between_positions_seeds_and_stages() -> None:
    module, one = tiny_module(), batch(range(4))
    again = {**one, "position": one["position"] + 4}
    train = module.losses(one, "train", drop=False)["mse"]
    assert torch.equal(train, module.losses(one, "train", drop=False)["mse"])
    assert not torch.equal(train, module.losses(again, "train", drop=False)["mse"])
    assert not torch.equal(train, module.losses(one, "val", drop=False)["mse"])
    module.seed = 4
    assert not torch.equal(train, module.losses(one, "train", drop=False)["mse"])


def test_labels_are_dropped_at_the_network_s_rate_and_never_in_validation() -> None:
    module = tiny_module()
    positions = torch.arange(20_000)
    content = {"x": torch.empty(0), "y": positions % 10, "position": positions}
    dropped = module.labels(content, drop=True)
    assert dropped is not None
    assert ((dropped == 10).float().mean() - 0.1).abs() < 0.01
    assert torch.equal(dropped[dropped != 10], content["y"][dropped != 10])
    assert module.labels(content, drop=False) is content["y"]


def test_accumulation_trains_the_same_network(tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 4):
        module = tiny_module()
        fit(module, tmp_path / str(accumulate), steps=5, accumulate=accumulate)
        ends.append(module.net.state_dict())
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("residual", sorted(RULES))
def test_eight_steps_equal_four_and_resumed_four(tmp_path: Path, residual: str, accumulate: int) -> None:
    def callbacks(folder: str) -> list[pl.Callback]:
        return [EMA(decay=0.9), Checkpoints(tmp_path / folder, 4, 3)]

    fit(tiny_module(residual), tmp_path, *callbacks("whole"), steps=8, accumulate=accumulate)
    fit(tiny_module(residual), tmp_path, *callbacks("half"), steps=4, accumulate=accumulate)
    fit(
        tiny_module(residual),
        tmp_path,
        *callbacks("half"),
        steps=8,
        accumulate=accumulate,
        ckpt=tmp_path / "half" / "last.ckpt",
    )
    whole, half = (torch.load(tmp_path / f / "last.ckpt", weights_only=True) for f in ("whole", "half"))
    assert whole["global_step"] == half["global_step"] == 8
    for key in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert differences(whole[key], half[key]) == []


@pytest.mark.parametrize("residual", sorted(RULES))
def test_every_trainable_parameter_learns(tmp_path: Path, residual: str) -> None:
    """An unused parameter would break DDP."""
    module = tiny_module(residual)
    before = {n: p.detach().clone() for n, p in module.net.named_parameters()}
    fit(module, tmp_path, steps=2)
    for name, parameter in module.net.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name


def test_blocks_compile_in_place(tmp_path: Path) -> None:
    module, plain = tiny_module(), tiny_module()
    for block in module.net.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    assert module.state_dict().keys() == plain.state_dict().keys()
    fit(module, tmp_path, steps=2)
    fit(plain, tmp_path, steps=2)
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], weight, atol=1e-4, rtol=1e-4)
