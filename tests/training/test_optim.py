"""Parameter groups and schedules."""

from __future__ import annotations

import math

import pytest
import torch

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.unet import UNet
from neural_rdm.training.optim import Optimizer, freeze
from tests.helpers import FIVE, is_gate
from tests.training.trainer import tiny_module


@pytest.mark.parametrize("residual", sorted(FIVE))
def test_gates_have_no_weight_decay_and_their_own_rate(residual: str) -> None:
    net = tiny_module(residual).net
    groups = {g["name"]: g for g in Optimizer(lr=0.1, weight_decay=0.3, gate_lr_scale=0.5).build(net).param_groups}
    gates = [p for n, p in net.named_parameters() if is_gate(n)]
    assert bool(gates) is (residual != "resnet")
    assert groups["net"]["weight_decay"] == 0.3
    if gates:
        assert groups["gates"]["weight_decay"] == 0.0
        assert groups["gates"]["lr"] == 0.05
        assert {id(p) for p in groups["gates"]["params"]} == {id(p) for p in gates}
    held = [p for g in groups.values() for p in g["params"]]
    assert len({id(p) for p in held}) == len(held) == sum(p.requires_grad for p in net.parameters())


def test_decay_does_not_pull_alpha_to_zero() -> None:
    net = tiny_module().net
    optimizer = Optimizer(lr=0.1, weight_decay=1.0).build(net)
    torch.nn.init.ones_(net.blocks[0].attn_unit.alpha)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = net.blocks[0].attn.proj.weight.detach().clone()
    optimizer.step()
    assert torch.equal(net.blocks[0].attn_unit.alpha, torch.ones_like(net.blocks[0].attn_unit.alpha))
    torch.testing.assert_close(net.blocks[0].attn.proj.weight, before * 0.9)


def test_constant_with_warmup() -> None:
    optimizer = Optimizer(warmup_steps=4)
    assert [optimizer.factor(s, 100) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert Optimizer().factor(0, 1) == 1.0


def test_cosine_ends_at_zero() -> None:
    optimizer = Optimizer(warmup_steps=10, schedule="cosine")
    assert optimizer.factor(10, 110) == 1.0
    assert optimizer.factor(60, 110) == pytest.approx(0.5)
    assert optimizer.factor(110, 110) == pytest.approx(0.0)
    assert optimizer.factor(35, 110) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


def test_gates_and_norms_train_what_norms_scale_and_shift_by() -> None:
    net = DiT(8, 4, 1, 32, 2, 4, num_classes=10, qk_norm=True)
    freeze(net, "gates+norms")
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert "blocks.0.adaLN_modulation.1.bias" in trained
    assert "blocks.1.attn.q_norm.weight" in trained
    assert "final_layer.adaLN_modulation.1.bias" in trained
    assert {n for n in trained if n.endswith((".alpha", ".beta"))} == {
        n for n, _ in net.named_parameters() if is_gate(n)
    }
    assert not any(n.endswith(("adaLN_modulation.1.weight", "qkv.weight", "fc1.bias")) for n in trained)


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="has no gates"):
        freeze(DiT(8, 4, 1, 32, 2, 4, residual="resnet"), "gates")
    with pytest.raises(ValueError, match="not one of all, gates"):
        freeze(DiT(8, 4, 1, 32, 2, 4), "gate")


def test_norms_before_any_gate_train_in_every_layout() -> None:
    """Found by `benchmarks fuzz`: torch's backward pass of GroupNorm ended the process where its input is channels last
    and needs no gradient.
    """
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        net = UNet(8, 1, 1, 8, [2], 1, [1, 2], num_head_channels=8, norm_num_groups=4, num_classes=3)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        net.to(memory_format=layout)
        freeze(net, "gates+norms")
        x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        net(x.contiguous(memory_format=layout), torch.tensor([1, 5]), torch.tensor([0, 2])).square().mean().backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    one, other = found
    assert one.keys() == other.keys()
    assert "net.down_blocks.0.resnets.0.norm1.weight" in one
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], atol=1e-6, rtol=1e-4)
