"""What each precision computes and keeps in how many bits, and that a network learns under each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.backbones.uvit import UViT
from neural_rdm.config.compose import compose_config
from neural_rdm.config.environment import check_packages
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import load_tensors
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.latents.first_stage import Identity
from neural_rdm.training import precision
from neural_rdm.training.callbacks.checkpoints import Checkpoints, StreamedCheckpointIO, path_of
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.guards import FiniteSteps
from neural_rdm.training.module import NeuralRDMF
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.sharding import matrices
from tests.training.trainer import fit, tiny_module

NETS = {
    "dit": lambda: DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual="gated"),
    "single": lambda: DiT(8, 4, 1, 32, 2, 4, num_classes=10, adaln="single"),
    "latte": lambda: Latte(8, 4, 1, 32, 2, 4, num_frames=3, num_classes=10, extras=2),
    "uvit": lambda: UViT(8, 4, 1, 32, 2, 4, num_classes=11, mlp_time_embed=True),
}


def plugged(name: Any) -> dict[str, Any]:
    """Arguments of a Trainer of this precision on a CPU."""
    plugin = precision.plugin(name, "cpu")
    return {"plugins": [StreamedCheckpointIO(), *([] if plugin is None else [plugin])]}


@pytest.mark.parametrize("name", NETS)
def test_islands_are_float32_under_autocast(name: str) -> None:
    """Timestep, modulation, the stream and what norms read: float32, and the first two to the bit as without."""
    torch.manual_seed(0)
    net = NETS[name]()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, y = torch.randn(2, *net.input_shape), torch.tensor([3.0, 700.0]), torch.tensor([1, 2])
    seen: dict[str, list[torch.Tensor]] = {}

    def watch(kind: str, before: bool) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            seen.setdefault(kind, []).append((args[0] if before else out).detach())

        return hook

    for module in net.modules():
        if isinstance(module, Float32Linear):
            module.register_forward_hook(watch("island", False))
        elif isinstance(module, nn.LayerNorm) and module.normalized_shape == (32,):
            module.register_forward_hook(watch("norm", True))
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(watch("product", False))
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t, y)
    rounded, seen_whole = dict(seen), seen.clear()
    net(x, t, y)
    assert seen_whole is None
    assert {part.dtype for kind in ("island", "norm") for part in rounded[kind]} == {torch.float32}
    assert {part.dtype for part in rounded["product"]} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(rounded["island"], seen["island"], strict=True))
    loss = DDPMObjective(DDPM()).loss(out, x, x, t.long(), torch.randn_like(x))
    assert loss["loss"].dtype == torch.float32


def test_schedule_and_time_conditioned_gates_are_float32_under_autocast() -> None:
    torch.manual_seed(0)
    process, x, noise = DDPM(), torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    t = torch.tensor([3, 700])
    whole = process.q_sample(x, t, noise)
    unit = next(m for m in DiT(8, 4, 1, 32, 1, 4, residual="gated").modules() if type(m).__name__ == "Gated")
    unit.time_conditioned, unit.alpha_time = True, nn.Parameter(torch.randn(32, 32))
    e = torch.randn(2, 32)
    gate = unit.effective("alpha", e)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.q_sample(x, t, noise), whole)
        assert torch.equal(unit.effective("alpha", e), gate)


def test_bf16_true_keeps_the_matrices_of_blocks_in_16_bits_and_their_averages_in_32(tmp_path: Path) -> None:
    class Look(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
            """What validation does: the averages are as they were afterwards, and so are the weights."""
            before = [copy.deepcopy(ema.averages), {n: w.detach().clone() for n, w in net.named_parameters()}]
            with ema.applied(net):
                changed = next(w for n, w in net.named_parameters() if n in narrow)
                assert not torch.equal(changed, before[1][narrow[0]])
            after = [ema.averages, dict(net.named_parameters())]
            for old, new in zip(before, after, strict=True):
                assert all(torch.equal(old[name], new[name]) for name in old)

    module, ema = tiny_module(lr=1e-3), EMA(0.5)
    net = module.net
    names = {id(p): n for n, p in net.named_parameters()}
    narrow = [names[id(p)] for p in net.parameters() if p in precision.narrow(net)]
    assert "blocks.0.attn.qkv.weight" in narrow
    assert "blocks.0.adaLN_modulation.1.weight" not in narrow
    fit(module, tmp_path, ema, Look(), FiniteSteps(1), Checkpoints(tmp_path, 2, keep=9), steps=4,
        gradient_clip_val=1.0, **plugged("bf16-true"))  # fmt: skip
    kept = {name: w.dtype for name, w in net.named_parameters()}
    assert {n for n, kind in kept.items() if kind == torch.bfloat16} == set(narrow)
    assert {a.dtype for a in ema.averages.values()} == {torch.float32}
    moments = load_tensors(path_of(tmp_path, 4))["optimizer_states"][0]["state"].values()
    assert {m["exp_avg"].dtype for m in moments} == {torch.float32}
    again = tiny_module(lr=1e-3)
    fit(again, tmp_path / "again", EMA(0.5), Checkpoints(tmp_path / "again", 2, keep=9), FiniteSteps(1), steps=4,
        ckpt=path_of(tmp_path, 2), gradient_clip_val=1.0, **plugged("bf16-true"))  # fmt: skip
    one, two = (load_tensors(path_of(folder, 4)) for folder in (tmp_path, tmp_path / "again"))
    assert all(torch.equal(w, two["state_dict"][n]) for n, w in one["state_dict"].items())
    assert all(torch.equal(w, two["ema"]["weights"][n]) for n, w in one["ema"]["weights"].items())


def test_float8_without_torchao_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    composed = compose_config("train", ["trainer.precision=float8-mixed"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trainer\.precision=float8-mixed needs the package torchao.*\[float8\]"):
        check_packages(composed.cfg, composed.sources)


def test_tf32_is_switched_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        precision.tf32(True, "cuda")
        assert torch.get_float32_matmul_precision() == "high"
        precision.tf32(False, "cuda")
        assert torch.get_float32_matmul_precision() == "highest"
        precision.tf32(True, "cpu")  # the switch is that of CPUs with TF32 too, whose runs would not say so
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)
    assert precision.told("auto", "cpu", True) == "precision 32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    said = precision.told("auto", "gpu", True)
    assert said == "precision bf16-mixed; float32 products with TF32, 10 bits of mantissa (trainer.tf32=true)"


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.rows.append(float(outputs["loss"]))


def learned(folder: Path, name: str, steps: int) -> tuple[float, float]:
    """The mean losses of the first 20 and of the last quarter of the steps of a small DiT on the digits."""
    torch.manual_seed(0)
    net = DiT(8, 2, 1, 64, 4, 4, num_classes=10, learn_sigma=False, residual="gated")
    module = NeuralRDMF(net, DDPMObjective(DDPM()), Optimizer(lr=1e-3, clip=1.0), Identity(), seed=0, max_steps=steps)
    losses = Losses()
    options = {"gradient_clip_val": 1.0, **plugged(name)}
    fit(module, folder, EMA(0.99), FiniteSteps(50), losses, steps=steps, batch_size=64, **options)
    assert len(losses.rows) == steps
    tail = losses.rows[-steps // 4 :]
    return sum(losses.rows[:20]) / 20, sum(tail) / len(tail)


HALVES = ["bf16-mixed", "bf16-true", "16-mixed", "float8-mixed"]


@pytest.mark.parametrize("name", HALVES)
def test_a_few_steps_of_every_precision(name: str, tmp_path: Path) -> None:
    if name == "float8-mixed":
        pytest.importorskip("torchao", reason="float8 needs the extra `float8`")
    first, last = learned(tmp_path, name, 40)
    assert last < first


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", HALVES)
def test_the_digits_are_learned_in_every_precision(name: str, tmp_path: Path) -> None:
    """800 steps end within 2 % of the loss of float32 on the same samples, noise and timesteps."""
    if name == "float8-mixed":
        pytest.importorskip("torchao", reason="float8 needs the extra `float8`")
    whole, half = learned(tmp_path / "a", "32-true", 800)[1], learned(tmp_path / "b", name, 800)[1]
    assert abs(half / whole - 1) < 0.02, (whole, half)


def test_all_blocks_of_a_network_have_matrices_to_round() -> None:
    net = NETS["latte"]()
    assert precision.narrow(net) < matrices(net)
