"""The race against an official repository, run on a stand-in that this test writes: a DiT checkout of four files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import __main__ as command
from benchmarks import official, peers

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.diffusion.samplers import Sampler

TINY = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
MODELS = """
import torch
from neural_rdm.backbones.dit import DiT as Own

class DiT(Own):
    def __init__(self, **arguments):
        super().__init__(**arguments, residual="resnet")

    def forward_with_cfg(self, x, t, y, cfg_scale):
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        eps, rest = out[:, :3], out[:, 3:]
        cond, null = eps.chunk(2)
        eps = null + cfg_scale * (cond - null)
        return torch.cat([torch.cat([eps, eps]), rest], dim=1)
"""
DIFFUSION = """
import torch
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.diffusion.samplers import Sampler, denoise

class Diffusion:
    def __init__(self, steps):
        self.steps, self.process = steps, DDPM()

    def training_losses(self, net, x, t, shown, noise):
        xt = self.process.q_sample(x, t, noise)
        return DDPMObjective(self.process).loss(net(xt, t, **shown), x, xt, t, noise)

    def ddim_sample_loop(self, net, shape, noise, clip_denoised, device, model_kwargs):
        return denoise(lambda x, t: net(x, t, **model_kwargs), self.process, Sampler("ddim", self.steps), noise)

def create_diffusion(timestep_respacing):
    return Diffusion(int(timestep_respacing.removeprefix("ddim") or 1000))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "__init__.py").write_text(DIFFUSION)
    (tmp_path / "diffusion" / "gaussian_diffusion.py").touch()
    monkeypatch.setattr(sys, "path", [*sys.path])
    race = official.Race(TINY, TINY, 2, {"eager": 0.9}, samples=2)
    monkeypatch.setattr(official.OfDiT, "races", {"DiT-tiny": race})
    monkeypatch.setattr(official.OfDiT, "sampler", Sampler("ddim", 3, cfg_scale=4.0, channels=3))
    monkeypatch.setattr(peers, "ROUNDS", 3)
    monkeypatch.setattr(peers, "SAMPLING_ROUNDS", 2)
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    yield tmp_path
    for name in ("models", "diffusion"):
        sys.modules.pop(name, None)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    command.main()


def test_both_are_compared_and_timed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, f"peer={checkout}")
    found = json.loads((checkout / "peer_DiT.json").read_text())
    assert found["peer"] == "DiT"
    assert found["races"][0]["machine"]["threads"] == 1
    (race,) = found["races"]
    assert race["differences"].keys() == {"output", "loss", "samples"}
    assert all(value < 1e-5 for value in race["differences"].values())
    assert [row["case"] for row in race["step"]] == ["official", "ours, eager"]
    assert race["step"][0]["ratio"] == 1
    ours = race["step"][1]
    assert ours["goal"] == 0.9
    assert 0 < ours["low"] <= ours["ratio"] <= ours["high"]
    assert ours["total"] > 0
    assert race["sampling"][1]["official over it"] == pytest.approx(1 / race["sampling"][1]["ratio"])


def test_what_computes_something_else_is_not_timed(checkout: Path) -> None:
    text = (checkout / "models.py").read_text().replace("eps = null", "eps = 1.1 * null")
    (checkout / "models.py").write_text(text)
    with pytest.raises(DataError, match=r"DiT-tiny: ours is not what DiT computes: \{'samples'"):
        peers.run(checkout, [])


def test_what_is_no_repository_or_lacks_a_package_is_said(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        typed(monkeypatch, f"peer={checkout / 'diffusion'}")
    assert "no checkout of an official repository" in capsys.readouterr().err
    (checkout / "transport").mkdir()
    (checkout / "transport" / "transport.py").touch()
    (checkout / "transport" / "__init__.py").write_text("import a_package_that_nobody_has")
    (checkout / "diffusion" / "gaussian_diffusion.py").unlink()
    with pytest.raises(ConfigError, match="pip install torchdiffeq"):
        official.peer_at(checkout)


def test_the_interval_holds_the_ratio_of_what_differs_by_a_factor() -> None:
    noise = np.random.default_rng(1).lognormal(sigma=0.05, size=(2, 40))
    ratio, low, high = peers.interval(0.8 * noise[0], noise[1])
    assert low < 0.8 < high
    assert low < ratio < high
    assert high - low < 0.1
