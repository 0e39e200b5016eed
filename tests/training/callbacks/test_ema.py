"""The moving average against its closed form, under accumulation, swapping and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from neural_rdm.core.errors import CheckpointError
from neural_rdm.training.callbacks.checkpoints import Checkpoints
from neural_rdm.training.callbacks.ema import EMA, averaged, choose
from tests.training.trainer import fit, tiny_module


class History(pl.Callback):
    """The weights after each optimizer step, from the start."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def _note(self, module: Any) -> None:
        self.weights.append(
            {n: p.detach().clone().double() for n, p in module.net.named_parameters() if p.requires_grad}
        )

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.weights):
            self._note(pl_module)


def closed_form(history: list[dict[str, torch.Tensor]], name: str, decays: list[float]) -> torch.Tensor:
    """`prod(d) w_0 + sum_k (1 - d_k) prod_{j>k} d_j w_k`, the recurrence written out."""
    total = history[0][name] * torch.tensor(decays, dtype=torch.float64).prod()
    for k, decay in enumerate(decays, start=1):
        total += (1 - decay) * torch.tensor(decays[k:], dtype=torch.float64).prod() * history[k][name]
    return total


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("warmup", [False, True])
def test_equals_its_closed_form(tmp_path: Path, accumulate: int, warmup: bool) -> None:
    ema, history = EMA(decay=0.8, warmup=warmup), History()
    fit(tiny_module(), tmp_path, ema, history, steps=6, accumulate=accumulate)
    assert len(history.weights) == 7
    assert ema.updates == 6
    decays = [min(0.8, (1 + n) / (10 + n)) if warmup else 0.8 for n in range(1, 7)]
    for name, average in ema.averages.items():
        torch.testing.assert_close(average.double(), closed_form(history.weights, name, decays), atol=1e-6, rtol=1e-6)


def test_the_warm_up_begins_as_in_ldm(tmp_path: Path) -> None:
    """LitEma counts the update before it takes the decay: 2/11, 3/12, 4/13."""
    ema, history = EMA(decay=0.9999, warmup=True), History()
    fit(tiny_module(), tmp_path, ema, history, steps=3)
    for name, average in ema.averages.items():
        expected = closed_form(history.weights, name, [2 / 11, 3 / 12, 4 / 13])
        torch.testing.assert_close(average.double(), expected, atol=1e-6, rtol=1e-6)


def test_swap_is_exact_and_in_place(tmp_path: Path) -> None:
    module, ema = tiny_module(), EMA(decay=0.5)
    trainer = fit(module, tmp_path, ema, steps=3)
    raw = {n: p.detach().clone() for n, p in module.net.named_parameters()}
    averages = {n: a.clone() for n, a in ema.averages.items()}
    addresses = [p.data_ptr() for p in module.net.parameters()]
    with averaged(trainer, module.net) as weights:
        assert weights == "ema"
        assert [p.data_ptr() for p in module.net.parameters()] == addresses
        for name, parameter in module.net.named_parameters():
            assert torch.equal(parameter, averages.get(name, raw[name]))
    for name, parameter in module.net.named_parameters():
        assert torch.equal(parameter, raw[name])
    assert all(torch.equal(ema.averages[n], averages[n]) for n in averages)


def test_swap_survives_an_error_inside(tmp_path: Path) -> None:
    module, ema = tiny_module(), EMA(decay=0.5)
    trainer = fit(module, tmp_path, ema, steps=2)
    raw = {n: p.detach().clone() for n, p in module.net.named_parameters()}
    with pytest.raises(RuntimeError, match="inside"), averaged(trainer, module.net):
        raise RuntimeError("inside")
    assert all(torch.equal(p, raw[n]) for n, p in module.net.named_parameters())


def test_without_ema_the_raw_weights_are_used(tmp_path: Path) -> None:
    module = tiny_module()
    trainer = fit(module, tmp_path, steps=1)
    with averaged(trainer, module.net) as weights:
        assert weights == "raw"


def test_checkpoint_holds_raw_and_averaged_weights_apart(tmp_path: Path) -> None:
    module, ema = tiny_module(), EMA(decay=0.9)
    fit(module, tmp_path, ema, Checkpoints(tmp_path / "checkpoints", 4, 2), steps=4)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, average in ema.averages.items():
        assert torch.equal(content["ema"]["weights"][name], average)
        assert torch.equal(content["state_dict"][f"net.{name}"], module.net.state_dict()[name])
        assert not torch.equal(average, module.net.state_dict()[name])
    assert "pos_embed" not in content["ema"]["weights"]


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(tiny_module("resnet"), tmp_path, EMA(), Checkpoints(tmp_path / "checkpoints", 2, 1), steps=2)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    ema, module = EMA(), tiny_module("gated")
    ema._loaded = content["ema"]
    with pytest.raises(CheckpointError, match="alpha"):
        fit(module, tmp_path, ema, steps=1)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        EMA().on_load_checkpoint(None, None, {})  # type: ignore[arg-type]


def test_further_averages_are_those_of_a_run_with_that_decay(tmp_path: Path) -> None:
    several, alone = EMA(decay=0.9, further=[0.5, 0.99]), EMA(decay=0.5)
    fit(tiny_module(), tmp_path, several, Checkpoints(tmp_path / "checkpoints", 4, 2), steps=4)
    fit(tiny_module(), tmp_path / "alone", alone, steps=4)
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert choose(content, "ema").keys() == alone.averages.keys()
    for name, average in alone.averages.items():
        assert torch.equal(choose(content, "ema-0.5")[name], average)
        assert not torch.equal(choose(content, "ema")[name], average)
    with pytest.raises(CheckpointError, match=r"weights=ema, ema-0.5, ema-0.99, raw"):
        choose(content, "ema-0.7")


def test_further_averages_go_on_after_a_resume(tmp_path: Path) -> None:
    whole, half, rest = (EMA(decay=0.9, further=[0.5]) for _ in range(3))
    fit(tiny_module(), tmp_path / "whole", whole, steps=4)
    fit(tiny_module(), tmp_path, half, Checkpoints(tmp_path / "checkpoints", 2, 1), steps=2)
    ckpt = tmp_path / "checkpoints" / "last.ckpt"
    fit(tiny_module(), tmp_path, rest, steps=4, ckpt=ckpt)
    for name, average in whole.others["0.5"].items():
        assert torch.equal(rest.others["0.5"][name], average)
    with pytest.raises(CheckpointError, match=r"callbacks.ema.further=\[0.5\]"):
        fit(tiny_module(), tmp_path, EMA(decay=0.9), steps=4, ckpt=ckpt)
    with pytest.raises(ValueError, match="different decays"):
        EMA(decay=0.9, further=[0.9])
