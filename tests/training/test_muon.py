"""Muon: its matrices against the formula, parts of fused tensors by themselves, everything else AdamW's to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import DiT, UViT
from neural_rdm.residual import gate_names
from neural_rdm.training.muon import FUSED, Muon, matrices, newton_schulz
from neural_rdm.training.optim import Optimizer


def network() -> DiT:
    torch.manual_seed(0)
    net = DiT(4, 2, 2, 16, 2, 2, num_classes=3, context_dim=5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape))
    return net


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_the_iteration_ends_near_the_polar_factor(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = newton_schulz(matrix)
    singular = torch.linalg.svdvals(found)
    assert 0.6 < singular.min() < singular.max() < 1.3
    assert nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_what_is_a_matrix_and_what_is_not() -> None:
    net = network()
    found = matrices(net)
    assert found["blocks.0.attn.qkv.weight"] == 3
    assert found["blocks.1.adaLN_modulation.1.weight"] == 6
    assert found["blocks.0.cross_attn.kv.weight"] == 2
    assert found["blocks.0.mlp.fc1.weight"] == 1  # 4 D rows, and one matrix
    assert not any(name.split(".")[0] in ("x_embedder", "t_embedder", "y_embedder", "final_layer") for name in found)
    assert not set(found) & gate_names(net)
    assert all(net.get_parameter(name).shape[0] % parts == 0 for name, parts in found.items())
    uvit = matrices(UViT(img_size=4, patch_size=2, in_chans=2, embed_dim=16, depth=2, num_heads=2))
    assert uvit["out_blocks.0.skip_linear.weight"] == 1
    assert "decoder_pred.weight" not in uvit
    assert set(FUSED.values()) == {2, 3, 6}


def test_two_steps_are_the_formula_part_by_part() -> None:
    net = network()
    twin = copy.deepcopy(net)
    lr, decay = 1e-2, 0.1
    optimizer = Optimizer(name="muon", lr=lr, weight_decay=decay).build(net)
    adamw = Optimizer(lr=lr, weight_decay=decay).build(twin)
    assert isinstance(optimizer, Muon)
    parts, weights = matrices(net), {n: p.detach().clone() for n, p in net.named_parameters()}
    buffers = {n: torch.zeros_like(weights[n]) for n in parts}
    for step in range(2):
        for each in (net, twin):
            give_gradients(each, step)
        for name, count in parts.items():
            grad = net.get_parameter(name).grad
            buffers[name] = 0.95 * buffers[name] + grad
            ahead = grad + 0.95 * buffers[name]
            pieces = []
            for piece in ahead.chunk(count):
                pieces.append(0.2 * max(piece.shape) ** 0.5 * newton_schulz(piece))
            weights[name] = (1 - lr * decay) * weights[name] - lr * torch.cat(pieces)
        optimizer.step()
        adamw.step()
    for name, parameter in net.named_parameters():
        if name in parts:
            torch.testing.assert_close(parameter.detach(), weights[name], rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(parameter, twin.get_parameter(name)), name


def test_gates_keep_their_own_group_and_every_parameter_is_in_one() -> None:
    net = network()
    optimizer = Optimizer(name="muon", lr=1e-3, weight_decay=0.1, gate_lr_scale=3.0).build(net)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == sum(p.requires_grad for p in net.parameters())
    gates = [group for group in optimizer.param_groups if group["name"] == "gates"]
    assert [(group["weight_decay"], group["lr"], group["parts"]) for group in gates] == [(0.0, 3e-3, None)]
    names = Optimizer(name="muon").names(net)
    parameters = dict(net.named_parameters())
    assert [p is parameters[n] for p, n in zip(held, [n for group in names for n in group], strict=True)] == [
        True
    ] * len(held)


def test_a_bad_step_changes_nothing_and_a_saved_state_goes_on_to_the_bit() -> None:
    net = network()
    optimizer = Optimizer(name="muon", lr=1e-2).build(net)
    give_gradients(net, 0)
    optimizer.step()
    before: dict[str, Tensor] = {n: p.detach().clone() for n, p in net.named_parameters()}
    give_gradients(net, 1)
    for parameter in net.parameters():
        if parameter.grad is not None:
            parameter.grad[..., 0] = torch.nan
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    optimizer.found_inf = torch.tensor(0.0)
    again = copy.deepcopy(net)
    resumed = Optimizer(name="muon", lr=1e-2).build(again)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.found_inf = torch.tensor(0.0)
    for each, steps in ((net, optimizer), (again, resumed)):
        give_gradients(each, 2)
        steps.step()
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in net.named_parameters())
    assert any(not torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_it_learns_faster_than_it_started() -> None:
    net = network()
    optimizer = Optimizer(name="muon", lr=3e-3).build(net)
    x, t, y = torch.randn(8, 2, 4, 4), torch.arange(8) * 100, torch.arange(8) % 4
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (net(x, t, y, torch.ones(8, 3, 5))[:, :2] - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
