"""A training step asks the device for no value: its own code on tensors that hold none, which refuse to be asked."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.uvit import UViT
from neural_rdm.core import seeding
from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.latents.first_stage import Identity
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.guards import FiniteSteps
from neural_rdm.training.callbacks.logging import Metrics
from neural_rdm.training.callbacks.supervision import Supervision
from neural_rdm.training.module import module_class
from neural_rdm.training.optim import Optimizer

DIT = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}


def empty(seed: int, purpose: str, positions: Any, shape: tuple[int, ...], device: Any = "meta") -> Tensor:
    return torch.empty(len(positions), *shape, device="meta")


@pytest.mark.parametrize(
    ("kind", "arguments", "objective"),
    [
        (DiT, DIT, DDPMObjective(DDPM(), min_snr_gamma=5.0)),
        (Latte, {**DIT, "num_frames": 2, "extras": 2}, FlowObjective(Flow())),
        (UViT, {"img_size": 4, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}, DDPMObjective(DDPM())),
    ],
)
def test_a_whole_step_runs_without_a_value(
    kind: Any, arguments: dict[str, Any], objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeding, "normal", empty)
    # autocast knows no such device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    with torch.device("meta"):
        net = kind(**arguments, residual="gated")
    module = module_class(net)(net, objective, Optimizer(clip=1.0), Identity()).to("meta")
    metrics, finite, average, supervision = Metrics(10), FiniteSteps(10), EMA(), Supervision(0.35)
    trainer: Any = SimpleNamespace(
        global_step=0, max_steps=100, world_size=1, accumulate_grad_batches=1, callbacks=[metrics, finite, average],
        precision_plugin=None, strategy=None,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters())  # the fused one has no kernel for such tensors
    batch: Any = {
        "x": torch.empty(2, *net.input_shape, device="meta"), "y": torch.empty(2, dtype=torch.long, device="meta"),
        "position": torch.arange(2),
    }  # fmt: skip
    average._prepare(net)
    supervision.on_train_batch_start(trainer, module, batch, 0)
    losses = module.training_step(batch, 0)
    finite.on_before_backward(trainer, module, losses["loss"])
    losses["loss"].backward()
    supervision.on_before_optimizer_step(trainer, module, optimizer)
    metrics.on_before_optimizer_step(trainer, module, optimizer)
    finite.on_before_optimizer_step(trainer, module, SimpleNamespace(param_groups=optimizer.param_groups))
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    trainer.global_step = 1
    for callback in (metrics, average, finite):
        callback.on_train_batch_end(trainer, module, {**losses, "loss": losses["loss"].detach()}, batch, 0)
    assert average.updates == 1
    assert finite.kept is not None
    assert set(metrics.sums) >= {"loss", "mse"}
    for ask in (metrics.sums["loss"].item, finite.kept.cpu, lambda: bool(losses["loss"] > 0)):
        with pytest.raises((RuntimeError, NotImplementedError)):  # so a step that asked would have failed
            ask()
