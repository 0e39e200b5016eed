"""metrics.csv, validation, sensitivity, samples and guards, in real runs of a few steps."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image

from neural_rdm.backbones.counting import flops
from neural_rdm.conditioning.conditions import condition_of
from neural_rdm.core.records import read_rows
from neural_rdm.core.signals import Stopped
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.reports.tiles import read_tiles
from neural_rdm.residual import units
from neural_rdm.training.callbacks.checkpoints import Checkpoints
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.guards import StopOnSignal
from neural_rdm.training.callbacks.logging import CSVLogger, Metrics, Throughput
from neural_rdm.training.callbacks.pages import Pages
from neural_rdm.training.callbacks.sampling import SampleGrid
from neural_rdm.training.callbacks.sensitivity import COLUMNS, UNIT_COLUMNS, Largest, SensitivityLog
from neural_rdm.training.callbacks.validation import Validation
from neural_rdm.training.drawing import draw
from neural_rdm.training.launching import Launcher
from tests.training.trainer import fit, tiny_module


class Losses(pl.Callback):
    """The mean loss of every optimizer step, kept the plain way."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.parts: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.parts.append(outputs["mse"].item() + outputs["vb"].item())
        if len(self.parts) == trainer.accumulate_grad_batches:
            self.values.append(sum(self.parts) / len(self.parts))
            self.parts = []


@pytest.mark.parametrize("accumulate", [1, 2])
def test_logged_losses_are_means_over_the_interval(tmp_path: Path, accumulate: int) -> None:
    losses, metrics = Losses(), Metrics(3)
    fit(tiny_module(), tmp_path, metrics, losses, steps=7, accumulate=accumulate, logger=CSVLogger(tmp_path))
    rows = read_rows(tmp_path / "metrics.csv")
    assert [int(r["step"]) for r in rows] == [3, 6, 7]
    for row, part in zip(rows, (losses.values[:3], losses.values[3:6], losses.values[6:]), strict=True):
        assert float(row["train/loss"]) == pytest.approx(sum(part) / len(part), rel=1e-5)
        assert float(row["train/mse"]) + float(row["train/vb"]) == pytest.approx(float(row["train/loss"]), rel=1e-5)
        assert float(row["train/grad_norm"]) > 0
        assert float(row["lr"]) == 0.01


def test_no_wall_clock_in_metrics_and_all_of_it_in_throughput(tmp_path: Path) -> None:
    fit(tiny_module(), tmp_path, Metrics(2), Throughput(2), steps=4, logger=CSVLogger(tmp_path))
    assert set(read_rows(tmp_path / "metrics.csv")[0]) == {
        "step",
        "train/loss",
        "train/mse",
        "train/vb",
        "train/grad_norm",
        "lr",
    }
    rows = read_rows(tmp_path / "throughput.csv")
    assert [r["step"] for r in rows] == ["2", "4"]
    assert float(rows[0]["samples_per_second"]) * float(rows[0]["seconds_per_step"]) == pytest.approx(16)
    assert (rows[0]["mfu"], rows[0]["peak_memory_gib"]) == ("", "")  # of a CPU


def test_throughput_tells_what_is_computed_and_what_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            time.sleep(0.05)

    module = tiny_module()
    fit(module, tmp_path, Throughput(2), Slow(), steps=6)
    rows = read_rows(tmp_path / "throughput.csv")
    a_sample = 3 * flops(module.net, backward=False)
    for row in rows:
        assert float(row["tflops"]) == pytest.approx(a_sample * float(row["samples_per_second"]) / 1e12)
        assert float(row["waiting"]) < 1
    for row in rows[1:]:  # nobody waits for the first step
        assert float(row["waiting"]) * float(row["seconds_per_step"]) >= 0.05
    assert "TFLOP/s a device" in (said := capsys.readouterr().out)
    assert "of the time between steps" in said

    def broken(*_: Any, **__: Any) -> int:
        raise ValueError("a value is asked for")

    monkeypatch.setattr("neural_rdm.backbones.counting.flops", broken)
    fit(tiny_module(), tmp_path / "other", Throughput(2), steps=2)
    assert read_rows(tmp_path / "other" / "throughput.csv")[0]["tflops"] == ""
    assert "FLOPs are not counted: a value is asked for" in capsys.readouterr().out


def test_validation_uses_every_sample_once_the_averaged_weights_and_the_same_noise(tmp_path: Path) -> None:
    module, ema = tiny_module(), EMA(decay=0.5)
    fit(module, tmp_path, ema, Metrics(4), Validation(4), steps=4, logger=CSVLogger(tmp_path))
    logged = float(read_rows(tmp_path / "metrics.csv")[-1]["val/loss"])
    data = Digits(batch_size=100)
    data.setup()
    with ema.applied(module.net), torch.no_grad():
        values = torch.cat([module.validation_step(b)["loss"] for b in data.val_dataloader()])
    assert len(values) == len(data.val_set)
    assert logged == pytest.approx(values.mean().item(), rel=1e-5)
    assert module.training


@pytest.mark.parametrize("accumulate", [1, 2])
def test_sensitivity_is_the_gradient_of_the_batch_mean_loss(tmp_path: Path, accumulate: int) -> None:
    """The recorded norms equal those of `retain_grad` tensors, micro-batches together making up the global batch."""
    module = tiny_module()
    entries: dict[str, list[torch.Tensor]] = {}
    for name, unit in ((n, m) for n, m in module.net.named_modules() if n.endswith("_unit")):

        def keep(unit: Any, arguments: Any, name: str = name) -> Any:
            z = arguments[0].clone()
            z.retain_grad()
            entries.setdefault(name, []).append(z)
            return (z, *arguments[1:])

        unit.register_forward_pre_hook(keep)
    fit(module, tmp_path, SensitivityLog(1), steps=1, accumulate=accumulate)
    rows = read_rows(tmp_path / "sensitivity" / "sensitivity.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [r["name"] for r in rows] == [
        "blocks.0.attn_unit",
        "blocks.0.mlp_unit",
        "blocks.1.attn_unit",
        "blocks.1.mlp_unit",
    ]
    norms = [math.sqrt(sum(z.grad.double().square().sum().item() for z in entries[r["name"]])) for r in rows]
    for row, norm in zip(rows, norms, strict=True):
        assert len(entries[row["name"]]) == accumulate
        assert float(row["norm"]) == pytest.approx(norm, rel=1e-5)
        assert float(row["normalized"]) == pytest.approx(norm / max(norms), rel=1e-5)
    for row, norm, after in zip(rows, norms, norms[1:], strict=False):
        assert float(row["gain"]) == pytest.approx(norm / after, rel=1e-5)


def test_sensitivity_does_not_disturb_training_and_can_be_plotted(tmp_path: Path) -> None:
    plain, probed, log = tiny_module(), tiny_module(), SensitivityLog(2)
    fit(plain, tmp_path, steps=5)
    fit(probed, tmp_path, log, steps=5)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), probed.state_dict().values(), strict=True)
    )
    for name in ("sensitivity", "units"):
        assert sorted({int(r["step"]) for r in read_rows(tmp_path / "sensitivity" / f"{name}.csv")}) == [2, 4, 5]
    plots = log.finish()
    assert [p.name for p in plots] == ["sensitivity.png", "heatmap.png", "gates.png", "units.png"]
    assert all(Image.open(plot).width > 300 for plot in plots)


def test_units_are_the_same_from_micro_batches_and_from_one_batch(tmp_path: Path) -> None:
    tables = []
    for accumulate in (1, 4):
        folder = tmp_path / str(accumulate)
        fit(tiny_module(), folder, SensitivityLog(1, time_bins=3), steps=1, accumulate=accumulate)
        rows = read_rows(folder / "sensitivity" / "units.csv")
        assert list(rows[0]) == list(UNIT_COLUMNS)
        assert {r["unit"] for r in rows} == {"0", "1", "2", "3"}
        assert sum(int(r["samples"]) for r in rows) == 4 * 16
        tables.append([[float(r[c]) for c in UNIT_COLUMNS if c != "name"] for r in rows])
    torch.testing.assert_close(torch.tensor(tables[0]), torch.tensor(tables[1]), rtol=1e-4, atol=1e-6)


def test_units_are_not_measured_where_nobody_asks(tmp_path: Path) -> None:
    module = tiny_module()
    fit(module, tmp_path, SensitivityLog(1, time_bins=0), steps=1)
    assert (tmp_path / "sensitivity" / "sensitivity.csv").is_file()
    assert not (tmp_path / "sensitivity" / "units.csv").exists()
    assert module.on_timesteps is None


class Kick(pl.Callback):
    """Makes one unit's write a hundred times as large, before step 5."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            with torch.no_grad():
                pl_module.net.blocks[1].mlp_unit.alpha.mul_(100)


def test_a_jump_is_told_once_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tiny_module(lr=1e-5), tmp_path, Kick(), SensitivityLog(1), steps=6)
    told = [line for line in capsys.readouterr().out.splitlines() if "largest recorded before" in line]
    rows = read_rows(tmp_path / "sensitivity" / "alarms.csv")
    assert len(told) == len(rows) > 0
    assert {r["step"] for r in rows} == {"5"}  # at step 6 it is no news any more
    write = next(r for r in rows if r["quantity"] == "write_ratio")
    assert (write["unit"], write["name"]) == ("3", "blocks.1.mlp_unit")
    assert float(write["now"]) > 4 * float(write["largest_before"])
    assert f"write_ratio of unit 3 (blocks.1.mlp_unit) is {float(write['now']):.3g}" in "\n".join(told)


def test_alarms_are_quiet_at_first_and_know_what_an_earlier_process_saw() -> None:
    rows = [{"step": str(i), "unit": "0", "norm": str(norm)} for i, norm in enumerate([1e-9, 1e-3, 1.0, math.nan])]
    assert Largest(rows[:2]).jumps({(0, "norm"): 5.0}, 4) == []
    resumed = Largest(rows)
    assert resumed.jumps({(0, "norm"): 3.9}, 4) == []
    assert resumed.jumps({(0, "norm"): 4.1, (1, "norm"): 9.0}, 4) == [((0, "norm"), 1.0)]
    resumed.add({(0, "norm"): 4.1})
    assert resumed.jumps({(0, "norm"): 5.0}, 4) == []


def test_a_jump_while_the_learning_rate_warms_up_is_no_news(tmp_path: Path) -> None:
    fit(tiny_module(lr=1e-5, warmup_steps=5), tmp_path, Kick(), SensitivityLog(1), steps=6)
    assert not (tmp_path / "sensitivity" / "alarms.csv").exists()


def test_pages_take_no_more_than_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = [0.0], []

    def tell(folder: Path) -> None:
        written.append(clock[0])
        clock[0] += 2.0

    monkeypatch.setattr("neural_rdm.training.callbacks.pages.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("neural_rdm.training.callbacks.pages.tell", tell)
    pages, trainer = Pages(), SimpleNamespace(is_global_zero=True, default_root_dir=str(tmp_path), global_step=0)
    pages.on_train_start(trainer, None)
    for _ in range(500):
        pages.on_step_end(trainer, None)
        clock[0] += 1.0
    assert written == [0.0, 202.0, 404.0]  # two seconds in two hundred


def test_the_loggers_are_told_what_the_sensitivities_are(tmp_path: Path) -> None:
    class Other(pl.loggers.logger.DummyLogger):
        told: dict[int, dict[str, float]] = {}

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.told[step] = metrics

    log, other = SensitivityLog(2), Other()
    fit(tiny_module(), tmp_path, log, steps=4, logger=[CSVLogger(tmp_path), other])
    assert list(other.told) == [2, 4]
    rows = [r for r in read_rows(tmp_path / "sensitivity" / "sensitivity.csv") if r["step"] == "4"]
    assert other.told[4]["sensitivity/norm/blocks.0.attn_unit"] == pytest.approx(float(rows[0]["norm"]))
    assert other.told[4]["sensitivity/gain/blocks.1.mlp_unit"] == pytest.approx(float(rows[3]["gain"]))
    assert not (tmp_path / "metrics.csv").exists()
    assert [path.name for path in log.finish()] == ["sensitivity.png", "heatmap.png", "gates.png", "units.png"]


def test_sample_grid_shows_the_averaged_network_one_row_a_class(tmp_path: Path) -> None:
    grid, ema = SampleGrid(every_n_steps=3, per_class=2, max_classes=4), EMA(decay=0.5)
    grid.sampler = Sampler(steps=2)
    module = tiny_module()
    trainer = fit(module, tmp_path, ema, grid, steps=3)
    picture = Image.open(tmp_path / "samples" / "step=000000003.png")
    assert picture.width > 2 * 48
    assert picture.height > 4 * 48
    condition = condition_of([0, 0, 1, 1, 2, 2, 3, 3])
    assert condition["y"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with ema.applied(module.net):
        all_of_them = draw(module, grid.sampler, (1, 8, 8), condition, range(8), progress=False)
        first = draw(module, grid.sampler, (1, 8, 8), {"y": condition["y"][:3]}, range(3), progress=False)
    torch.testing.assert_close(all_of_them[:3], first, atol=1e-5, rtol=1e-5)
    grid.save(trainer, module, tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "samples" / "step=000000003.png").read_bytes()
    (final,) = grid.save(trainer, module, tmp_path / "final.png", real=True)
    np.testing.assert_array_equal(read_tiles(final).pixels, read_tiles(tmp_path / "again.png").pixels)
    assert Image.open(final).width > 4 * 48


def test_validation_of_a_run_longer_than_its_interval_ends_with_the_last_step(tmp_path: Path) -> None:
    for steps, wanted in ((3, []), (5, ["4", "5"]), (4, ["4"])):
        folder = tmp_path / str(steps)
        fit(tiny_module(), folder, Metrics(1), Validation(4), steps=steps, logger=CSVLogger(folder))
        assert [row["step"] for row in read_rows(folder / "metrics.csv") if row.get("val/loss")] == wanted


class Interrupt(pl.Callback):
    """Sends a signal to this process in the middle of an optimizer step."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 4:  # the first micro-step of optimizer step 3
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_finishes_the_optimizer_step_and_saves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    stop, before = StopOnSignal(), signal.getsignal(number)
    trainer = fit(
        tiny_module(), tmp_path, stop, Interrupt(number), Checkpoints(tmp_path, 100, 2), steps=8, accumulate=2
    )
    assert stop.received
    assert stop.exit_code == code
    assert trainer.global_step == 3
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(
    tmp_path: Path, number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before, stop = signal.getsignal(number), StopOnSignal()
    stop.together = 0.0
    callbacks = (stop, Interrupt(number), Interrupt(number), Checkpoints(tmp_path, 1, 2))
    with pytest.raises(Stopped) as stopped:
        fit(tiny_module(), tmp_path, *callbacks, steps=8)
    assert stopped.value.exit_code == code
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
    said = f"{number.name}: waiting for this step, which is then saved; again to stop at once"
    assert capfd.readouterr().err.count(said) == 1
    signal.signal(number, before)  # as the command does


def test_two_sigterms_of_one_shutdown_are_one(tmp_path: Path) -> None:
    """The processes of a job may be sent it as a group and again by the first rank."""
    stop, number = StopOnSignal(), signal.SIGTERM
    trainer = fit(
        tiny_module(), tmp_path, stop, Interrupt(number), Interrupt(number), Checkpoints(tmp_path, 100, 2), steps=8
    )
    assert trainer.global_step == 5
    assert (stop.received, stop.exit_code) == (True, 143)


def test_the_signal_is_passed_on_to_the_ranks_and_remembered(tmp_path: Path) -> None:
    class Launched(pl.Callback):
        launcher = Launcher.__new__(Launcher)
        sent: ClassVar[list[int]] = []

        def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
            rank: Any = SimpleNamespace(send_signal=self.sent.append, poll=lambda: -signal.SIGTERM)
            self.launcher.ranks = [rank]
            trainer.strategy._launcher = self.launcher

    fit(tiny_module(), tmp_path, StopOnSignal(), Launched(), Interrupt(signal.SIGINT), steps=8)
    assert Launched.sent == [signal.SIGTERM]
    assert Launched.launcher.stopped() is signal.SIGINT


def test_an_interrupted_step_leaves_nothing_behind(tmp_path: Path) -> None:
    class Interrupt(pl.Callback):
        def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
            raise RuntimeError("stop")

    module, log = tiny_module(), SensitivityLog(1)
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, tmp_path / "a", log, Interrupt(), steps=2)
    assert module.on_timesteps is None
    assert all(unit.watched is None and unit.probe is None for _, unit in units(module.net))
    fit(module, tmp_path / "b", log, steps=2)
    rows = read_rows(tmp_path / "b" / "sensitivity" / "units.csv")
    assert {s: sum(int(r["samples"]) for r in rows if r["step"] == s and r["unit"] == "0") for s in "12"} == {
        "1": 16,
        "2": 16,
    }


def test_a_quantity_that_is_no_number_any_more_is_told() -> None:
    largest = Largest([{"step": str(i), "unit": "0", "norm": "1.0"} for i in range(4)])
    assert largest.jumps({(0, "norm"): math.nan}, 4) == [((0, "norm"), 1.0)]


def test_gradients_are_clipped_in_bf16_too(tmp_path: Path) -> None:
    module = tiny_module()
    kept: list[float] = []

    class Norm(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            grads = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
            kept.extend([torch.nn.utils.get_total_norm(grads).item()] if grads else [])

    fit(module, tmp_path, Norm(), steps=2, precision="bf16-mixed", gradient_clip_val=1e-3)
    assert kept
    assert max(kept) <= 1.01e-3
