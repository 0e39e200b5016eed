"""What leaves for diffusers is loaded there and draws the same samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm import DiT
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import Sampler, sample
from neural_rdm.diffusion.scheduler_config import scheduler_config
from neural_rdm.surgery.export import to_diffusers
from tests.diffusion.respaced import spaced

diffusers = pytest.importorskip("diffusers", reason="the schedulers are diffusers'")
NOISE = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> DiT:
    torch.manual_seed(0)
    net = DiT(8, 4, 1, 16, 2, 2, num_classes=3, residual="resnet").eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return net


def ours(net: DiT, process: DDPM | Flow, sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.setattr("neural_rdm.diffusion.samplers.normal", lambda *_: NOISE)
    return sample(net, process, sampler, (1, 8, 8), 2, condition={"y": torch.tensor([1, 2])})


def theirs(scheduler: Any, network: Any, steps: int, halve: Callable[[Tensor], Tensor] = lambda v: v[:, :1]) -> Tensor:
    """The loop of any pipeline of diffusers."""
    flow = "FlowMatch" in type(scheduler).__name__
    scheduler.set_timesteps(**({"sigmas": [1 - i / steps for i in range(steps)]} if flow else
                               {"num_inference_steps": steps}))  # fmt: skip
    x, y = NOISE, torch.tensor([1, 2])
    for t in scheduler.timesteps:
        with torch.no_grad():
            output = network(x, t.expand(2), class_labels=y).sample
        x = scheduler.step(halve(output), t, x).prev_sample
    return x


PROCESSES = {
    "epsilon": DDPM(),
    "v": DDPM(prediction="v"),
    "x0": DDPM(prediction="x0"),
    "cosine": DDPM("cosine", prediction="v"),
    "sd": DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012),
    "500": DDPM(num_timesteps=500, beta_end=0.03),
}
CASES = [(kind, process, name) for kind, process in PROCESSES.items() for name in ("ddim", "dpm++")]


@pytest.mark.parametrize(("kind", "process", "name"), [*CASES, ("flow", Flow(), "euler")])
def test_stock_schedulers_draw_our_samples(
    kind: str, process: DDPM | Flow, name: str, net: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(name, 10, steps_offset=int(name == "ddim" and kind == "sd"))
    config = scheduler_config(process, sampler, learned_variance=True)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    assert "trained_betas" not in config
    scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path)
    expected = ours(net, process, sampler, monkeypatch)
    torch.testing.assert_close(
        theirs(scheduler, to_diffusers(net), 10), expected, atol=float(2e-6 * expected.abs().max()), rtol=0
    )


@pytest.mark.parametrize("process", [DDPM(), DDPM("cosine", prediction="v")], ids=["linear", "cosine"])
def test_a_file_for_one_scheduler_serves_the_others(
    process: DDPM, net: DiT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digits are sampled with DPM-Solver++, most people load DDIM."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler_config(process, Sampler("dpm++", 10))))
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    expected = ours(net, process, Sampler("ddim", 10), monkeypatch)
    torch.testing.assert_close(
        theirs(scheduler, to_diffusers(net), 10), expected, atol=float(2e-6 * expected.abs().max()), rtol=0
    )


def test_ancestral_steps_read_the_learned_variance(net: DiT, tmp_path: Path) -> None:
    """The same mean and variance as the process's own, step by step."""
    process, sampler = DDPM(), Sampler("ddpm", 7)
    (tmp_path / "scheduler_config.json").write_text(json.dumps(scheduler_config(process, sampler, True)))
    scheduler = diffusers.DDPMScheduler.from_pretrained(tmp_path)
    scheduler.set_timesteps(7)
    own = sampler.scheduler(process)
    assert scheduler.timesteps.tolist() == own.timesteps.tolist()
    output = torch.randn(2, 2, 8, 8)
    for t in scheduler.timesteps:
        steps = [s.step(output, t, NOISE, generator=torch.Generator().manual_seed(1)) for s in (scheduler, own)]
        torch.testing.assert_close(steps[0].prev_sample, steps[1].prev_sample, atol=1e-3, rtol=1e-3)


def test_betas_without_a_name_are_written_out(tmp_path: Path) -> None:
    process, _ = spaced(DDPM(), 100)
    config = scheduler_config(process, Sampler("ddim", 10))
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    loaded = diffusers.DDIMScheduler.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.alphas_cumprod.double(), process.alphas_cumprod, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("process", "name"), [(Flow(), "ddim"), (DDPM(), "euler")])
def test_a_sampler_of_another_process_is_refused(process: DDPM | Flow, name: str) -> None:
    with pytest.raises(ValueError, match="cannot run"):
        scheduler_config(process, Sampler(name, 4))
