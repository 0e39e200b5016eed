"""The training step: its random draws, its resume, its gradient under accumulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from neural_rdm.residual import units
from neural_rdm.training.callbacks.checkpoints import Checkpoints
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.guards import FiniteSteps
from neural_rdm.training.optim import freeze
from tests.end_to_end.commands import differences
from tests.helpers import FIVE, covering, is_gate
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
    dropped = module.condition(content, drop=True)["y"]
    assert ((dropped == 10).float().mean() - 0.1).abs() < 0.01
    assert torch.equal(dropped[dropped != 10], content["y"][dropped != 10])
    assert torch.equal(module.condition(content, drop=False)["y"], content["y"])
    several = {**content, "y": torch.stack([positions % 10, positions % 7], dim=1)}  # a clip's label and an image's
    rows = module.condition(several, drop=True)["y"]
    assert torch.equal((rows == 10).all(dim=1), dropped == 10)
    assert torch.equal((rows == 10).any(dim=1), dropped == 10)


class Letters:
    """A text encoder: one token a letter, its number as the embedding."""

    dim = 1

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = [[float(ord(letter)) for letter in f"{caption:<4}"] for caption in captions]
        mask = torch.tensor([[i < max(1, len(caption)) for i in range(4)] for caption in captions])
        return torch.tensor(rows)[..., None], mask


def test_a_text_is_dropped_as_a_whole_and_for_the_same_samples_as_a_label() -> None:
    module = tiny_module()
    module.text = Letters()
    positions = torch.arange(2000)
    content = {"x": torch.empty(0), "y": positions % 10, "position": positions, "caption": ["seven"[:4]] * 2000}
    shown = module.condition(content, drop=True)
    nothing, mask = Letters().encode([""])
    dropped = (shown["context"] == nothing).all(dim=2).all(dim=1)
    assert torch.equal(dropped, shown["y"] == 10)
    assert 0.05 < dropped.float().mean() < 0.15
    assert torch.equal(shown["context_mask"][dropped], mask.expand(int(dropped.sum()), -1))
    null = module.null_condition()
    assert torch.equal(null["context"], nothing)
    assert torch.equal(null["y"], torch.tensor([10]))
    assert not (module.condition(content, drop=False)["context"] == nothing).all(dim=2).all(dim=1).any()


def test_clipping_begins_after_its_steps(tmp_path: Path) -> None:
    norms: list[float] = []

    class Watch(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            found = [p.grad for p in pl_module.net.parameters() if p.grad is not None]
            if found:
                norms.append(torch.nn.utils.get_total_norm(found).item())

    module = tiny_module(clip=1e-3, clip_after=2)
    fit(module, tmp_path, Watch(), steps=4, gradient_clip_val=1e-3)
    assert [norm > 2e-3 for norm in norms] == [True, True, False], (
        norms
    )  # a step's gradient is seen when the next begins


def test_clipping_uses_the_norms_that_were_found_already_and_does_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, read = [], []
    norm = torch._foreach_norm
    monkeypatch.setattr(torch, "_foreach_norm", lambda *args: read.append(len(args[0])) or norm(*args))
    for callbacks in ((), (FiniteSteps(10),)):
        read.clear()
        module = tiny_module()
        fit(module, tmp_path / str(len(callbacks)), *callbacks, steps=3, gradient_clip_val=1e-2)
        weights.append(module.net.state_dict())
        assert len(read) == 3  # the gradients are read once a step
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("residual", sorted(set(FIVE) - {"resnet"}))
def test_gates_alone_train_a_frozen_network(tmp_path: Path, residual: str) -> None:
    module = tiny_module(residual, max_steps=40)
    for unit in (u for _, u in units(module.net)):
        torch.nn.init.ones_(unit.alpha)  # as after loading weights
    freeze(module.net, "gates")
    before = {n: p.clone() for n, p in module.net.named_parameters()}
    same = [batch(range(64))]
    first = torch.cat([module.losses(b, "val", drop=False)["loss"] for b in same]).mean()
    fit(module, tmp_path, EMA(decay=0.9), steps=40)
    last = torch.cat([module.losses(b, "val", drop=False)["loss"] for b in same]).mean()
    assert last < 0.99 * first
    moved = {n for n, p in module.net.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if is_gate(n)}


def test_accumulation_trains_the_same_network(tmp_path: Path) -> None:
    ends = []
    for accumulate in (1, 4):
        module = tiny_module()
        fit(module, tmp_path / str(accumulate), steps=5, accumulate=accumulate)
        ends.append(module.net.state_dict())
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize(("residual", "accumulate"), covering(sorted(FIVE), [1, 2]))
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


@pytest.mark.parametrize("residual", sorted(FIVE))
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


def test_u_shaped_networks_get_their_own_module_and_channels_last() -> None:
    from neural_rdm import DiT, UNet, UViT
    from neural_rdm.training.module import NeuralRDMF, NeuralRDMU, module_class

    unet = UNet(8, 1, 1, 8, [2], 1, [1, 2], num_head_channels=8, norm_num_groups=4)
    uvit = UViT(8, 4, 1, 16, 2, 2)
    assert module_class(unet) is module_class(uvit) is NeuralRDMU
    assert module_class(DiT(8, 4, 1, 16, 1, 2)) is NeuralRDMF
    module = NeuralRDMU(unet, None, None, None)  # type: ignore[arg-type]
    module.configure_model()
    assert unet.net.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
