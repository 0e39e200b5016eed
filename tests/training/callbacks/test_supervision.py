"""The supervised gradient in real runs: the same however a global batch is split over micro-steps and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.records import read_rows
from neural_rdm.dynamics import sensitivity_loss
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.checkpoints import StreamedCheckpointIO
from neural_rdm.training.callbacks.logging import CSVLogger, Metrics
from neural_rdm.training.callbacks.sensitivity import SensitivityLog
from neural_rdm.training.callbacks.supervision import Supervision
from neural_rdm.training.module import NeuralRDMF
from tests.helpers import is_gate, two_processes
from tests.training.ranks import two_ranks
from tests.training.trainer import fit, tiny_module


class Gradients(pl.Callback):
    """Keeps the gradients of the gates as the clipping would see them, by name, one dictionary a step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        gates = {n: p.grad for n, p in pl_module.net.named_parameters() if is_gate(n) and p.grad is not None}
        self.steps.append({n: parallel.full(g).clone() for n, g in gates.items()})


def loud_module(**options: Any) -> NeuralRDMF:
    """Gains well above 1."""
    module = tiny_module(**options)
    with torch.no_grad():
        for parameter in module.net.parameters():
            parameter.mul_(3.0)
    return module


def gradients(
    folder: Path, gamma: float | None = 35.0, steps: int = 2, residual: str = "gated", **options: Any
) -> list[dict[str, torch.Tensor]]:
    kept = Gradients()
    callbacks = [] if gamma is None else [Supervision(gamma)]
    fit(loud_module(residual=residual), folder, *callbacks, kept, SensitivityLog(1), steps=steps, **options)
    return kept.steps


def assert_same(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name, gradient in b.items():
            assert (a[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


@pytest.fixture(scope="module")
def whole_skip(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """The same for a rule whose alpha is on the stream."""
    return gradients(tmp_path_factory.mktemp("whole-skip"), residual="skip")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    """One process, one micro-step."""
    return gradients(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("accumulate", [4, 8])
def test_equal_however_the_batch_is_accumulated(
    accumulate: int, whole: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    assert_same(gradients(tmp_path, accumulate=accumulate), whole)
    plain = gradients(tmp_path / "plain", gamma=None, steps=1)
    alphas = [n for n in plain[0] if n.endswith("alpha")]
    assert all((whole[0][n] - plain[0][n]).norm() > 1e-3 * plain[0][n].norm() for n in alphas)
    assert all(torch.equal(whole[0][n], plain[0][n]) for n in plain[0] if n not in alphas)


def test_a_gate_on_the_stream_learns_channel_by_channel_however_the_batch_is_accumulated(
    whole_skip: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    assert_same(gradients(tmp_path, residual="skip", accumulate=4), whole_skip)
    plain = gradients(tmp_path / "plain", gamma=None, steps=1, residual="skip")
    for name in (n for n in plain[0] if n.endswith("alpha")):
        change = whole_skip[0][name] - plain[0][name]
        assert change.norm() > 1e-3 * plain[0][name].norm()
        alpha = loud_module(residual="skip").net.get_parameter(name).detach()
        assert torch.cosine_similarity(change, alpha, dim=0).abs() < 0.99  # no common factor


@pytest.mark.timeout(300)
def test_equal_on_two_ranks_copied_or_sharded(
    whole: list[dict[str, torch.Tensor]], whole_skip: list[dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    two_processes(two_ranks, tmp_path)
    for name in ("ddp", "fsdp2"):
        for residual, expected in (("gated", whole), ("skip", whole_skip)):
            assert_same(torch.load(tmp_path / f"{name}-{residual}.pt", weights_only=True), expected)


def test_equal_under_a_loss_scale(tmp_path: Path) -> None:
    def first(scale: float) -> dict[str, torch.Tensor]:
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        plugins = [StreamedCheckpointIO(), MixedPrecision("16-mixed", "cpu", scaler)]
        return gradients(tmp_path / f"{scale:g}", steps=1, plugins=plugins, accumulate=2)[0]

    plain, scaled = first(1.0), first(64.0)
    for name, gradient in plain.items():
        assert (scaled[name] - gradient).norm() <= 5e-3 * gradient.norm(), name


def test_l_sens_is_logged_and_agrees_with_the_logged_gains(tmp_path: Path) -> None:
    for folder, order in (("a", slice(None)), ("b", slice(None, None, -1))):  # whichever callback comes first
        callbacks = [Supervision(0.35), SensitivityLog(1), Metrics(1)][order]
        fit(tiny_module(), tmp_path / folder, *callbacks, steps=3, accumulate=2, logger=CSVLogger(tmp_path / folder))
        logged = [float(row["train/sens_loss"]) for row in read_rows(tmp_path / folder / "metrics.csv")]
        gains: dict[str, list[float]] = {}
        for row in read_rows(tmp_path / folder / "sensitivity" / "sensitivity.csv"):
            gains.setdefault(row["step"], []).append(float(row["gain"]))
            assert float(row["alpha_std"]) > 0
            assert float(row["beta_norm"]) > 0
        logs = [torch.tensor(values).log() for values in gains.values()]
        assert logged == pytest.approx([0.5 * log.square().mean().item() for log in logs], rel=1e-4)


def test_the_gradient_is_added_before_clipping(tmp_path: Path) -> None:
    norms = []

    class AfterClipping(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            found = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
            if found:
                norms.append(torch.nn.utils.get_total_norm(found).item())

    fit(tiny_module(), tmp_path, Supervision(100.0), AfterClipping(), steps=3, gradient_clip_val=0.1)
    assert norms
    assert max(norms) <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("rule", ["adaln", "resnet"])
def test_rules_that_are_measured_only_are_refused(rule: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="measured only"):
        fit(tiny_module(rule), tmp_path, Supervision(0.35), steps=1)


def test_supervision_brings_the_gains_together(tmp_path: Path) -> None:
    values = {}
    for gamma in (0.0, 100.0):
        module = loud_module(max_steps=40)
        log = SensitivityLog(40)
        folder = tmp_path / str(gamma)
        fit(module, folder, Supervision(gamma), log, Metrics(1), steps=40, logger=CSVLogger(folder))
        values[gamma] = [float(row["train/sens_loss"]) for row in read_rows(folder / "metrics.csv")]
    assert values[100.0][-1] < 0.5 * values[0.0][-1]


@pytest.mark.parametrize("target", ["isometry", "floor"])
def test_exact_supervision_is_the_gradient_of_the_sum_of_both_losses(target: Any, tmp_path: Path) -> None:
    """Against autograd of L + gamma L_sens in the same batch, in every parameter; the log's taps change nothing."""

    class Kept(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batch, self.before = batch, [p.detach().clone() for p in pl_module.net.parameters()]

        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            self.found = {n: p.grad.clone() for n, p in pl_module.net.named_parameters() if p.grad is not None}

    kept, module = Kept(), loud_module(residual="gated" if target == "isometry" else "skip")  # skip: gains below 1
    log = SensitivityLog(1)
    logger = CSVLogger(tmp_path)
    fit(module, tmp_path, log, Supervision(2.0, target, "exact"), Metrics(1), kept, steps=1, logger=logger)
    with torch.no_grad():
        for parameter, value in zip(module.net.parameters(), kept.before, strict=True):
            parameter.copy_(value)
    module.net.zero_grad()

    def run() -> torch.Tensor:
        return module.losses(kept.batch, "train", drop=True)["loss"].mean()

    own = sensitivity_loss(module.net, run, target)
    (run() + 2.0 * own).backward()
    assert own > 1e-3
    for name, parameter in module.net.named_parameters():
        if parameter.grad is not None:
            assert (kept.found[name] - parameter.grad).norm() <= 2e-4 * parameter.grad.norm(), name
    row = read_rows(tmp_path / "metrics.csv")[0]
    assert float(row["train/sens_loss"]) == pytest.approx(own.item(), rel=1e-4)
    rows = read_rows(tmp_path / "sensitivity" / "units.csv")
    assert sum(int(r["samples"]) for r in rows) == 4 * 16  # counted once
