"""Steps whose loss or gradient is not finite: left out, told, never saved."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from neural_rdm.core.errors import CheckpointError, UserError
from neural_rdm.core.files import save_tensors
from neural_rdm.core.records import read_rows
from neural_rdm.training.callbacks import guards
from neural_rdm.training.callbacks.checkpoints import Checkpoints, StreamedCheckpointIO, newest_readable, path_of
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.guards import FiniteSteps
from neural_rdm.training.callbacks.logging import CSVLogger, Metrics
from tests.end_to_end.commands import differences
from tests.helpers import two_processes
from tests.training.ranks import two_ranks_one_sick
from tests.training.trainer import fit, tiny_module

BAD = "blocks.0.mlp.fc1.weight"


class Poison(pl.Callback):
    """Makes the gradient of one parameter `value` in the backward pass of one optimizer step, the loss being finite."""

    def __init__(self, step: int, value: float = math.nan, micro_step: int = 0, rank: int | None = None) -> None:
        self.step, self.value, self.micro_step, self.rank = step, value, micro_step, rank

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        micro_step = trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches
        here = self.rank is None or self.rank == trainer.global_rank
        if trainer.global_step + 1 == self.step and micro_step == self.micro_step and here:
            weight = pl_module.net.get_parameter(BAD).grad
            getattr(weight, "_local_tensor", weight).view(-1)[:1].fill_(self.value)


class States(pl.Callback):
    """A copy of weights, averages and optimizer state after every optimizer step."""

    def __init__(self, ema: EMA) -> None:
        self.ema, self.kept = ema, [{}]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step == len(self.kept):
            optimizer = trainer.optimizers[0].state_dict()["state"]
            state = {"weights": pl_module.state_dict(), "averages": self.ema.averages, "optimizer": optimizer}
            self.kept.append({k: {n: _copy(v) for n, v in values.items()} for k, values in state.items()})


def _copy(value: Any) -> Any:
    return {k: v.clone() for k, v in value.items()} if isinstance(value, dict) else value.clone()


@pytest.fixture(params=["at once", "later"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a CPU, and as on a GPU, where the host looks with logged rows and before saving only."""
    if request.param == "later":
        monkeypatch.setattr(guards, "_reads_at_once", lambda device: False)
    return request.param


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])  # 1e30: finite, but its square, Adam's moment, is not
def test_a_step_that_is_left_out_changes_nothing_at_all(device: str, value: float, tmp_path: Path) -> None:
    ema = EMA(0.5)
    states, steps = States(ema), FiniteSteps(every_n_steps=2, allowed=1)
    options = {"steps": 6, "accumulate": 2, "gradient_clip_val": 1.0}
    fit(tiny_module(weight_decay=0.1), tmp_path, ema, Poison(3, value, micro_step=1), states, steps, **options)
    assert steps.left_out == 1
    assert differences(states.kept[3], states.kept[2]) == []
    assert len(differences(states.kept[4], states.kept[3])) > 50
    assert ema.updates == 6
    assert all(torch.isfinite(v).all() for v in states.kept[6]["averages"].values())


def test_no_healthy_step_is_changed(device: str, tmp_path: Path) -> None:
    """To the bit, with and without the guard."""
    found = []
    for callbacks in ([], [FiniteSteps(2)]):
        ema = EMA(0.9)
        states = States(ema)
        fit(tiny_module(weight_decay=0.1), tmp_path, ema, states, *callbacks, steps=4)
        found.append(states.kept[1:])
    assert differences(*found) == []


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_gradient_that_is_not_finite_stops_the_run_and_is_never_saved(device: str, step: int, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        fit(
            tiny_module(), tmp_path, EMA(0.5), Poison(step), FiniteSteps(100), Checkpoints(tmp_path, 4, keep=1), steps=8
        )
    told = str(error.value)
    assert (
        f"optimizer step {step} was left out: its loss is finite, but its gradient is not finite (in net.{BAD})" in told
    )
    assert "The weights are still those before that step." in told
    saved = 4 * ((step - 1) // 4)
    if saved:
        assert f"checkpoint is that of step {saved}: resume={tmp_path} optimizer.skip_nonfinite=1 goes on" in told
        assert [p.name for p in tmp_path.glob("step=*.ckpt")] == [path_of(tmp_path, saved).name]
        assert newest_readable(tmp_path) == path_of(tmp_path, saved)
    else:
        assert "No checkpoint has been saved yet: pass optimizer.skip_nonfinite=1" in told
        assert not list(tmp_path.glob("*.ckpt"))


def test_a_resumed_run_leaves_the_step_out_and_counts_on(tmp_path: Path) -> None:
    def run(folder: Path, allowed: int, steps: int = 8, ckpt: Path | None = None) -> pl.Trainer:
        callbacks = [EMA(0.5), Poison(3), Poison(6), FiniteSteps(1, allowed), Checkpoints(folder, 2, keep=1)]
        return fit(tiny_module(), folder, *callbacks, steps=steps, ckpt=ckpt)

    run(tmp_path / "whole", allowed=2)
    with pytest.raises(UserError, match=r"step 3 .*optimizer\.skip_nonfinite=1 goes on"):
        run(tmp_path / "halves", allowed=0)
    with pytest.raises(UserError, match=r"step 6 .*step 4: .*optimizer\.skip_nonfinite=2 goes on"):
        run(tmp_path / "halves", allowed=1, ckpt=path_of(tmp_path / "halves", 2))
    run(tmp_path / "halves", allowed=2, ckpt=path_of(tmp_path / "halves", 4))
    whole, halves = (torch.load(tmp_path / n / "last.ckpt", weights_only=True) for n in ("whole", "halves"))
    for key in ("state_dict", "ema", "optimizer_states"):
        assert differences(whole[key], halves[key]) == []


def test_a_loss_that_is_not_finite_stops_with_one_message(device: str, tmp_path: Path) -> None:
    message = r"loss and gradient are not finite \(in \d+ parameters, .*The weights are not finite any more \(first net"
    callbacks = (EMA(0.5), FiniteSteps(2), Checkpoints(tmp_path, 4, 2))
    with pytest.raises(UserError, match=message):
        fit(tiny_module(lr=1e39), tmp_path, *callbacks, steps=8)
    assert not list(tmp_path.glob("*.ckpt"))


def test_the_parameters_are_named_in_the_order_of_the_run() -> None:
    net: Any = torch.nn.Module()
    for name in ("first", "up", "down", "last"):  # as diffusers' U-Nets register their halves
        setattr(net, name, torch.nn.Linear(1, 1))
    net.unit_order = lambda: iter([("down.unit", None), ("up.unit", None)])
    names = ["net.last.bias", "net.up.weight", "net.down.bias", "net.down.weight", "net.first.weight"]
    ordered = ["net.first.weight", "net.down.bias", "net.down.weight", "net.up.weight", "net.last.bias"]
    assert guards._in_run_order(net, names) == ordered
    told = guards._told(7, False, ordered)
    assert "in 5 parameters, the first of them net.first.weight, the one nearest to the loss net.last.bias" in told


@pytest.mark.parametrize("where", ["weights", "averages", "moments"])
def test_a_sick_state_is_not_saved_whatever_made_it(where: str, tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                weight = pl_module.net.get_parameter(BAD)
                moment = trainer.optimizers[0].state[weight]["exp_avg_sq"]
                tensor = {"weights": weight, "averages": ema.averages[BAD], "moments": moment}[where]
                tensor.data.view(-1)[7] = math.inf

    ema = EMA(0.5)
    key = {"weights": f"state_dict.net.{BAD}", "averages": f"ema.weights.{BAD}", "moments": "optimizer_states.0.state"}
    with pytest.raises(
        CheckpointError, match=rf"step 3 is not saved.*\(first {key[where]}.*checkpoint is that of step 2"
    ):
        fit(tiny_module(), tmp_path, ema, Spoil(), FiniteSteps(1), Checkpoints(tmp_path, 1, keep=1), steps=8)
    assert newest_readable(tmp_path) == path_of(tmp_path, 2)


def test_sick_checkpoints_of_earlier_versions_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = torch.zeros(4), torch.tensor([0.0, math.nan])
    save_tensors(path_of(tmp_path, 1), {"state_dict": {"net.w": good}, "ema": {"weights": {"w": good}}})
    save_tensors(path_of(tmp_path, 2), {"state_dict": {"net.w": good}, "ema": {"weights": {"w": bad}}})
    save_tensors(path_of(tmp_path, 3), {"state_dict": {"net.w": bad}})
    save_tensors(tmp_path / "last.ckpt", {"state_dict": {"net.w": bad}})
    with caplog.at_level(logging.WARNING):
        assert newest_readable(tmp_path) == path_of(tmp_path, 1)
    assert [("step=000000003" in m, "step=000000002" in m) for m in caplog.messages] == [(True, False), (False, True)]
    assert "not finite (first ema.weights.w)" in caplog.messages[1]
    path_of(tmp_path, 1).unlink()
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        newest_readable(tmp_path)


def scaled(tmp_path: Path, scale: float, **options: Any) -> dict[str, Any]:
    plugins = [StreamedCheckpointIO(), MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", scale))]
    return {"plugins": plugins, "logger": CSVLogger(tmp_path), **options}


class Clipped(pl.Callback):
    """The norms of the gradients that the optimizer has seen."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
        self.norms += [torch.nn.utils.get_total_norm(gradients).item()] if gradients else []


def test_the_logged_norm_and_the_clipping_do_not_depend_on_the_loss_scale(tmp_path: Path) -> None:
    found = []
    for scale in (1.0, 1024.0):
        folder, clipped = tmp_path / f"{scale:g}", Clipped()
        options = scaled(folder, scale, gradient_clip_val=0.1)
        fit(tiny_module(), folder, Metrics(1), FiniteSteps(1), clipped, steps=2, accumulate=2, **options)
        assert clipped.norms == pytest.approx([0.1] * len(clipped.norms), rel=1e-3)
        found.append([float(row["train/grad_norm"]) for row in read_rows(folder / "metrics.csv")])
    assert found[1] == pytest.approx(found[0], rel=2e-2)
    assert min(found[0]) > 0.1


def test_an_overflow_under_a_loss_scale_is_the_scalers_own_business(tmp_path: Path) -> None:
    ema = EMA(0.5)
    states, steps = States(ema), FiniteSteps(1)
    options = scaled(tmp_path, 1024.0)
    fit(tiny_module(), tmp_path, ema, Poison(3, math.inf), states, Metrics(1), steps, steps=5, **options)
    assert steps.left_out == 0
    assert differences(states.kept[3], states.kept[2]) == []
    assert len(differences(states.kept[4], states.kept[3])) > 50
    assert options["plugins"][1].scaler.get_scale() == 512.0


def test_overflows_without_end_stop_the_run(tmp_path: Path) -> None:
    poison = [Poison(step, math.nan) for step in range(4, 60)]
    with pytest.raises(UserError, match=rf"optimizer step {3 + guards.OVERFLOWS} was left out"):
        fit(tiny_module(), tmp_path, *poison, FiniteSteps(1), steps=60, **scaled(tmp_path, 1024.0))


@pytest.mark.timeout(300)
def test_all_ranks_leave_out_and_stop_after_the_same_step_and_resume_to_the_byte(tmp_path: Path) -> None:
    two_processes(two_ranks_one_sick, tmp_path)
    for name in ("ddp", "fsdp2"):
        assert sorted(p.name for p in (tmp_path / name).glob("step=*")) == [
            path_of(tmp_path, s).name for s in (1, 2, 3)
        ]
        one, two, three = (torch.load(path_of(tmp_path / name, step), weights_only=True) for step in (1, 2, 3))
        assert differences(one["state_dict"], two["state_dict"]) == []
        assert differences(one["ema"]["weights"], two["ema"]["weights"]) == []
        assert differences(one["optimizer_states"][0]["state"], two["optimizer_states"][0]["state"]) == []
        assert len(differences(two["state_dict"], three["state_dict"])) > 30
        resumed = torch.load(path_of(tmp_path / f"{name}-resumed", 3), weights_only=True)
        assert differences(resumed, three) == []
