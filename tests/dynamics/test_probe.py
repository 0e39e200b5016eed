"""The probe against autograd's own gradients, and Eq. 12 and 14 through real DiT blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from neural_rdm.backbones.dit import DiT
from neural_rdm.dynamics.probe import probe, sensitivities
from neural_rdm.residual import Residual, units
from tests.helpers import FIVE, covering

SIZE = {"input_size": 8, "in_channels": 2, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 5}


def random_dit(residual: str | Residual = "gated", dtype: torch.dtype = torch.float32) -> DiT:
    """A small DiT whose every parameter matters."""
    torch.manual_seed(0)
    net = DiT(**SIZE, residual=residual)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net.to(dtype)


def inputs(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 8, 8, generator=generator).to(dtype), torch.tensor([0, 400, 999]), torch.tensor([0, 5, 2])


def gradient(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad


@dataclass
class Passages:
    """What went into and came out of every unit of one forward pass, in run order."""

    entries: list[Tensor] = field(default_factory=list)
    exits: list[Tensor] = field(default_factory=list)
    arguments: list[tuple] = field(default_factory=list)

    def norms(self) -> Tensor:
        columns = [[gradient(z).double().square().sum() for z in side] for side in (self.entries, self.exits)]
        return torch.stack([torch.stack(c) for c in columns], dim=1)


@contextmanager
def watched(net: nn.Module) -> Iterator[Passages]:
    """Keep the gradients of every unit's entry and exit by autograd's own means."""
    seen = Passages()

    def keep(unit: nn.Module, arguments: tuple, out: Tensor) -> None:
        arguments[0].retain_grad()
        out.retain_grad()
        seen.entries.append(arguments[0])
        seen.exits.append(out)
        seen.arguments.append(arguments)

    hooks = [unit.register_forward_hook(keep) for _, unit in units(net)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def loss(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() + out.square().mean()


@pytest.mark.parametrize(("rule", "dtype"), covering(FIVE, [torch.float64, torch.float32], whole=[("gated", ...)]))
def test_rows_are_the_squared_norms_of_entry_and_exit(rule: str, dtype: torch.dtype) -> None:
    net = random_dit(rule, dtype)
    with watched(net) as seen:
        loss(net(*inputs(dtype))).backward()
    with probe(net) as rows:
        loss(net(*inputs(dtype))).backward()
    assert rows.grad.dtype == dtype
    assert (seen.norms() > 0).all()
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(rows.grad.double(), seen.norms(), rtol=tolerance, atol=0)
    torch.testing.assert_close(
        rows.grad[1:, 0], rows.grad[:-1, 1], rtol=1e-6, atol=0
    )  # one stream: exit i is entry i+1


@pytest.mark.parametrize("rule", FIVE)
def test_outputs_and_gradients_are_bit_equal_with_the_probe(rule: str) -> None:
    net = random_dit(rule)
    plain = net(*inputs())
    loss(plain).backward()
    gradients = [p.grad.clone() if p.grad is not None else None for p in net.parameters()]
    net.zero_grad()
    with probe(net):
        measured = net(*inputs())
    loss(measured).backward()  # after the context has closed
    assert torch.equal(measured, plain)
    for before, parameter in zip(gradients, net.parameters(), strict=True):
        assert (before is None) == (parameter.grad is None)
        assert before is None or torch.equal(before, parameter.grad)
    assert all(unit.probe is None for _, unit in units(net))


def test_micro_batches_add_up() -> None:
    net, parts = random_dit(), []
    for seed in (1, 2):
        with probe(net) as rows:
            loss(net(*inputs(seed=seed))).backward()
        parts.append(rows.grad)
    with probe(net) as rows:
        for seed in (1, 2):
            loss(net(*inputs(seed=seed))).backward()
    torch.testing.assert_close(rows.grad, parts[0] + parts[1])


def test_the_taps_are_off_again_after_an_error() -> None:
    net = random_dit()
    with pytest.raises(RuntimeError, match="stop"), probe(net):
        raise RuntimeError("stop")
    assert all(unit.probe is None for _, unit in units(net))


@pytest.mark.parametrize("inside", [True, False], ids=["backward-inside", "backward-outside"])
def test_under_activation_checkpointing(inside: bool) -> None:
    net = random_dit()
    with probe(net) as expected:
        loss(net(*inputs())).backward()
    for block in net.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    with probe(net) as rows:
        total = loss(net(*inputs()))
        if inside:
            total.backward()
    if not inside:
        total.backward()
    assert torch.equal(rows.grad, expected.grad)


def test_compiled_without_a_graph_break() -> None:
    net = random_dit()
    with probe(net) as expected:
        loss(net(*inputs())).backward()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    plain = compiled(*inputs())
    with probe(net) as rows:
        measured = compiled(*inputs())
        loss(measured).backward()
    torch.testing.assert_close(measured, plain)
    torch.testing.assert_close(rows.grad, expected.grad, rtol=1e-5, atol=0)


def test_blocks_that_compile_in_place_measure_too() -> None:
    net = random_dit()
    with probe(net) as expected:
        loss(net(*inputs())).backward()
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for block in net.blocks:
        block.compile(backend=counter, fullgraph=True)
    for _ in range(3):
        net(*inputs())
        with probe(net) as rows:
            loss(net(*inputs())).backward()
        torch.testing.assert_close(rows.grad, expected.grad, rtol=1e-5, atol=0)
    assert counter.frame_count == 2  # once with the taps and once without, for all blocks together


def test_under_bf16_autocast_rows_stay_float32() -> None:
    net = random_dit()
    with probe(net) as exact:
        loss(net(*inputs())).backward()
    with probe(net) as rows, torch.autocast("cpu", torch.bfloat16):
        loss(net(*inputs()).float()).backward()
    assert rows.grad.dtype == torch.float32
    torch.testing.assert_close(rows.grad, exact.grad, rtol=0.1, atol=0)
    assert not torch.equal(rows.grad, exact.grad)


@pytest.mark.parametrize("beta_form", ["additive", "linear"])
def test_equations_12_and_14_hold_through_real_blocks(beta_form: str) -> None:
    net = random_dit(Residual("gated", beta_form=beta_form), torch.float64)
    with watched(net) as seen:
        out = net(*inputs(torch.float64))
        loss(out).backward(retain_graph=True)  # the branches below use the graph of their modulation
    for (_, unit), (z, branch, g, _), after in zip(units(net), seen.arguments, seen.exits, strict=True):
        stream, s_next = z.detach().requires_grad_(), gradient(after)
        f = g.unsqueeze(1) * branch(stream)  # F_i: the block's own gate belongs to the branch
        (pulled,) = torch.autograd.grad(f, stream, unit.alpha * s_next)
        drift = unit.beta * s_next if beta_form == "linear" else 0
        torch.testing.assert_close(z.grad, s_next + pulled + drift, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(unit.alpha.grad, (s_next * f).sum((0, 1)), rtol=1e-10, atol=1e-12)
        by_beta = s_next * stream if beta_form == "linear" else s_next
        torch.testing.assert_close(unit.beta.grad, by_beta.sum((0, 1)), rtol=1e-10, atol=1e-12)


def test_sensitivities_of_a_fresh_dit_are_zero_and_have_no_ratio() -> None:
    torch.manual_seed(0)
    net = DiT(**SIZE)
    with probe(net) as rows:
        (net(*inputs()) - 1).square().mean().backward()
    found = sensitivities(net, rows.grad)
    assert [(s.unit, s.name) for s in found] == [
        (i, f"blocks.{i // 2}.{'attn' if i % 2 == 0 else 'mlp'}_unit") for i in range(4)
    ]
    assert all((s.norm, s.normalized, s.gain) == (0.0, None, None) for s in found)


def test_sensitivities_take_roots_and_ratios() -> None:
    net = random_dit()
    squared = torch.tensor([[16.0, 4.0], [4.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = sensitivities(net, squared)
    assert [s.norm for s in found] == [4.0, 2.0, 0.0, 1.0]
    assert [s.normalized for s in found] == [1.0, 0.5, 0.0, 0.25]
    assert [s.gain for s in found] == [2.0, None, None, 1.0]
    assert found == sensitivities(net, torch.cat([squared, torch.ones(4, 2)], dim=1))  # a probe of branches


@pytest.mark.parametrize("rule", FIVE)
def test_sensitivities_tell_the_gates(rule: str) -> None:
    net = random_dit(rule)
    for found, (_, unit) in zip(sensitivities(net, torch.ones(4, 2)), units(net), strict=True):
        if not unit.has_alpha:
            assert (found.alpha_mean, found.alpha_std) == (None, None)
        else:
            assert found.alpha_mean == pytest.approx(unit.alpha.mean().item(), rel=1e-5)
            assert found.alpha_std == pytest.approx(unit.alpha.std(correction=0).item(), rel=1e-5)
        assert found.beta_norm == (pytest.approx(unit.beta.norm().item(), rel=1e-5) if unit.has_beta else None)
