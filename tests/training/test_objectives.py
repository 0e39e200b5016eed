"""Every objective, trained on the digits: for a moment here, to a bound in the full tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.times import LearnedTimes
from neural_rdm.latents.first_stage import Identity
from neural_rdm.training.module import NeuralRDMF
from neural_rdm.training.optim import Optimizer
from tests.end_to_end import commands
from tests.training.trainer import fit

OBJECTIVES: dict[str, Any] = {
    "epsilon": lambda: DDPMObjective(DDPM()),
    "v": lambda: DDPMObjective(DDPM(prediction="v")),
    "x0": lambda: DDPMObjective(DDPM(prediction="x0")),
    "min-snr": lambda: DDPMObjective(DDPM(), min_snr_gamma=5.0),
    "cosine": lambda: DDPMObjective(DDPM("cosine", prediction="v")),
    "learned": lambda: DDPMObjective(DDPM(), learned_times=LearnedTimes(8)),
    "flow": lambda: FlowObjective(Flow()),
}


def module(objective: nn.Module, steps: int) -> NeuralRDMF:
    torch.manual_seed(0)
    net = DiT(8, 4, 1, 48, 3, 4, num_classes=10)
    return NeuralRDMF(net, objective, Optimizer(lr=5e-3, betas=(0.9, 0.99)), Identity(), seed=0, max_steps=steps)


def validation(trained: NeuralRDMF) -> float:
    data = Digits(batch_size=359)
    data.setup()
    trained.eval()
    with torch.no_grad():
        (batch,) = data.val_dataloader()
        found = trained.validation_step(batch)["mse"].mean().item()
    trained.train()
    return found


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_every_objective_learns(name: str, tmp_path: Path) -> None:
    trained = module(OBJECTIVES[name](), 80)
    before = validation(trained)
    fit(trained, tmp_path, steps=80, batch_size=64)
    assert validation(trained) < (0.7 if name in ("x0", "cosine") else 0.55) * before


def test_a_learned_schedule_is_trained_saved_and_moves_to_where_the_loss_is_largest(tmp_path: Path) -> None:
    trained = module(OBJECTIVES["learned"](), 120)
    fit(trained, tmp_path, steps=120, batch_size=64)
    density = trained.objective.learned_times.density()
    assert density[0] > 1.5  # little noise: epsilon is hardest to see there
    assert density[-1] < 0.9
    state = trained.state_dict()
    assert torch.equal(state["objective.learned_times.logits"], trained.objective.learned_times.logits)
    assert [g["name"] for g in trained.configure_optimizers()["optimizer"].param_groups] == ["net", "gates", "schedule"]


@pytest.mark.full
@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("overrides", "frechet"),
    [
        (("diffusion=v",), 1.0),
        (("diffusion=x0",), 1.2),
        (("diffusion=min_snr",), 1.1),
        (("diffusion=cosine",), 1.2),
        (("diffusion=learned",), 1.0),
        (("diffusion=flow", "sampler=heun", "sampler.steps=10"), 0.8),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, tuple) else str(value),
)
def test_every_objective_draws_digits(overrides: tuple[str, ...], frechet: float, tmp_path: Path) -> None:
    import json

    code, output = commands.run(*overrides, "hydra.run.dir=run", cwd=tmp_path, timeout=900)
    assert code == 0, output
    generated = json.loads((tmp_path / "run" / "report" / "metrics.json").read_text())["rows"][0]
    assert generated["accuracy"] > 0.985
    assert generated["frechet_pixels"] < frechet
