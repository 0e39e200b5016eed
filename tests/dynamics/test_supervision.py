"""The supervised gradient against autograd: of the local objective exactly, of the whole network by its direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from neural_rdm.backbones.dit import DiT
from neural_rdm.dynamics import check_supervision, probe, sensitivity_loss, stream_overlaps, supervise
from neural_rdm.residual import Residual, Unit, units
from tests.dynamics.test_probe import SIZE, inputs, loss, random_dit, watched
from tests.helpers import covering, is_gate

GAMMA = 0.35
RULES = {
    "gated": Residual("gated"),
    "linear": Residual("gated", beta_form="linear"),
    "skip": Residual("skip"),
    "rezero": Residual("rezero"),
    "gated-scalar": Residual("gated", granularity="scalar"),
    "skip-scalar": Residual("skip", granularity="scalar"),
    "gated-timed": Residual("gated", time_conditioned=True),
    "skip-timed": Residual("skip", granularity="scalar", time_conditioned=True),
}


def measured(net: nn.Module, dtype: torch.dtype = torch.float64, run: Callable[..., Tensor] | None = None) -> Tensor:
    """One backward pass: squared norms [units, 4]; gradients of the loss stay in the parameters."""
    net.zero_grad()
    with probe(net, branches=True) as rows:
        loss((net if run is None else run)(*inputs(dtype))).backward()
    assert rows.grad is not None
    return rows.grad


def added(net: nn.Module, *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """L_sens, and what `supervise` adds to the gradient of every parameter."""
    before = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    value = supervise(net, *arguments)
    return value, {n: p.grad - before[n] for n, p in net.named_parameters() if n in before and p.grad is not None}


def with_overlaps(
    net: nn.Module, dtype: torch.dtype = torch.float64, run: Callable[..., Tensor] | None = None
) -> tuple[Tensor, dict[Unit, tuple[Tensor | None, ...]]]:
    """The same backward pass, and what it says of gates on the stream."""
    with stream_overlaps(net) as leaves:
        squared = measured(net, dtype, run)
    return squared, {unit: tuple(leaf.grad for leaf in each) for unit, each in leaves.items()}


def local_gradients(net: nn.Module, gate: Any = "alpha") -> tuple[Tensor, list[Tensor]]:
    """Of every unit, autograd's gradient of gamma * L_sens in all of a gate, with z_i and s_{i+1} held fixed."""
    with watched(net) as seen, sdpa_kernel(SDPBackend.MATH):
        loss(net(*inputs(torch.float64))).backward(retain_graph=True)
        found, total, gradients = list(units(net)), torch.zeros((), dtype=torch.float64), []
        for (_, unit), (z, branch, *rest), after in zip(found, seen.arguments, seen.exits, strict=True):
            stream, s_next = z.detach().requires_grad_(), after.grad
            out = type(unit).forward(unit, stream, branch, *rest)
            (s,) = torch.autograd.grad(out, stream, s_next, create_graph=True)
            log_r = (s.norm() / s_next.norm()).log()
            value = GAMMA * 0.5 * log_r.square() / len(found)
            theta = unit.gate_parameters(gate)
            parts = torch.autograd.grad(value, theta, retain_graph=True, materialize_grads=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
            total += value.detach() / GAMMA
    return total, gradients


@pytest.mark.parametrize(
    "residual",
    [
        Residual("skip"),
        Residual("skip", granularity="scalar", time_conditioned=True),
        Residual("skip", time_conditioned=True),
        Residual("gated", beta_form="linear"),
        Residual("gated", beta_form="linear", time_conditioned=True),
    ],
    ids=["skip", "skip-scalar-timed", "skip-timed", "linear", "linear-timed"],
)
def test_gates_on_the_stream_get_the_whole_local_gradient(residual: Residual) -> None:
    """Every channel by itself, not a common factor; the branch's alpha beside a linear beta keeps its projection."""
    net = random_dit(residual, torch.float64)
    gate = next(units(net))[1].stream_gate
    value, expected = local_gradients(net, gate)
    squared, overlaps = with_overlaps(net)
    _, alone = added(net, squared, GAMMA)
    net.zero_grad()
    squared, overlaps = with_overlaps(net)
    found, changes = added(net, squared, GAMMA, "isometry", overlaps)
    torch.testing.assert_close(found, value, rtol=1e-9, atol=0)
    for (name, unit), full in zip(units(net), expected, strict=True):
        names = [n for n, p in unit.named_parameters() if any(p is q for q in unit.gate_parameters(gate))]
        change = torch.cat([changes[f"{name}.{n}"].flatten() for n in names])
        torch.testing.assert_close(change, full, rtol=1e-7, atol=1e-12)
        theta = torch.cat([getattr(unit, n).detach().flatten() for n in names])
        if len(theta) > 1:
            assert torch.cosine_similarity(full, theta, dim=0).abs() < 0.999
        if gate == "beta":
            torch.testing.assert_close(changes[f"{name}.alpha"], alone[f"{name}.alpha"])
            assert not alone[f"{name}.beta"].any()


def test_an_additive_beta_has_no_local_gradient() -> None:
    _, gradients = local_gradients(random_dit(dtype=torch.float64), "beta")
    assert all(not gradient.any() for gradient in gradients)


def test_overlaps_of_micro_batches_add_up() -> None:
    net = random_dit("skip", torch.float64)
    whole, parts = [], []
    for kept, splits in ((whole, [slice(0, 3)]), (parts, [slice(0, 1), slice(1, 3)])):
        net.zero_grad()
        with stream_overlaps(net) as leaves, probe(net, branches=True) as rows:
            for split in splits:
                out = net(*(part[split] for part in inputs(torch.float64)))
                (out.square().sum() + out.sin().sum()).backward()
        kept += [rows.grad, *(leaf.grad for each in leaves.values() for leaf in each)]
    assert len(whole) == 1 + len(list(units(net)))
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("granularity", ["channel", "scalar"])
def test_maps_sum_over_pixels_and_a_shortcut_keeps_the_projection(granularity: Any) -> None:
    torch.manual_seed(0)
    unit = Residual("skip", granularity=granularity).unit(3, channel_axis=1).double()
    branch = nn.Conv2d(3, 3, 3, padding=1).double()
    z, weight = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 3, 4, 4).double()
    nn.init.normal_(unit.alpha)
    stream = z.clone().requires_grad_()
    s = torch.autograd.grad(unit(stream, lambda x: branch(x).tanh()), stream, weight, create_graph=True)[0]
    (half,) = torch.autograd.grad(0.5 * s.square().sum(), unit.alpha)
    net = nn.ModuleList([unit])
    for shortcut in (None, lambda x: x.flip(-1)):
        with stream_overlaps(net) as leaves:
            (weight * unit(z.clone().requires_grad_(), lambda x: branch(x).tanh(), shortcut=shortcut)).sum().backward()
        ((leaf,),) = leaves.values()
        if shortcut is None:
            torch.testing.assert_close(leaf.grad, half)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("name", list(RULES))
def test_it_is_the_gradient_of_the_local_objective_along_the_gates(name: str) -> None:
    net = random_dit(RULES[name], torch.float64)
    expected_value, expected = local_gradients(net)
    value, changes = added(net, measured(net), GAMMA)
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=0)
    pairs = zip(units(net), expected, strict=True)
    assert any(full.norm() > 1e-4 for full in expected)
    for (unit_name, unit), full in pairs:
        names = ["alpha", "alpha_time"] if unit.time_conditioned else ["alpha"]
        theta = torch.cat([getattr(unit, n).detach().flatten() for n in names])
        change = torch.cat([changes[f"{unit_name}.{n}"].flatten() for n in names])
        torch.testing.assert_close(change, (full @ theta) / (theta @ theta) * theta, rtol=1e-7, atol=1e-12)
        if len(theta) == 1:
            torch.testing.assert_close(change, full, rtol=1e-7, atol=1e-12)
    assert all(not change.any() for n, change in changes.items() if n.rsplit(".", 1)[-1] not in ("alpha", "alpha_time"))


def test_floor_only_lifts_gains_below_one() -> None:
    net = random_dit(dtype=torch.float64)
    squared = measured(net)
    squared[:, 1] = squared[:, 0] * torch.tensor([0.5, 2.0, 0.5, 1.0])
    _, isometry = added(net, squared, GAMMA, "isometry")
    value, floor = added(net, squared, GAMMA, "floor")
    assert value.item() == pytest.approx(0.5 * (0.5 * math.log(2)) ** 2 / 4)
    assert [n for n, change in floor.items() if change.any()] == ["blocks.0.mlp_unit.alpha"]
    torch.testing.assert_close(floor["blocks.0.mlp_unit.alpha"], isometry["blocks.0.mlp_unit.alpha"])


def test_the_direction_beside_true_double_backward() -> None:
    """They are not the same (see the docstring of the module); for scalar gates they point the same way here."""
    cosines = {}
    for granularity in ("scalar", "channel"):
        net = random_dit(Residual("gated", granularity=granularity), torch.float64)
        alphas = [unit.alpha for _, unit in units(net)]
        exact = sensitivity_loss(net, lambda net=net: loss(net(*inputs(torch.float64))))
        slow = torch.cat(torch.autograd.grad(exact, alphas))
        value, changes = added(net, measured(net), 1.0)
        torch.testing.assert_close(value, exact.detach())
        fast = torch.cat([change for n, change in changes.items() if n.endswith(".alpha")])
        cosines[granularity] = torch.cosine_similarity(slow, fast, dim=0).item()
    assert cosines["scalar"] > 0.5


def test_l_sens_falls_on_a_deep_stack_that_is_too_loud() -> None:
    torch.manual_seed(0)
    net = DiT(**{**SIZE, "depth": 8})
    for name, parameter in net.named_parameters():
        if not is_gate(name) and parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    for _, unit in units(net):
        nn.init.constant_(unit.alpha, 2.0)  # every branch too loud
    gates = [unit.alpha for _, unit in units(net)]
    optimizer, values = torch.optim.SGD(gates, lr=20.0), []
    for _ in range(30):
        squared = measured(net, torch.float32)
        net.zero_grad()
        for gate in gates:
            gate.grad = torch.zeros_like(gate)
        values.append(supervise(net, squared, 1.0).item())
        optimizer.step()
    assert values[-1] < 0.3 * values[0], values


def gate_gradients(net: nn.Module, run: Callable[..., Tensor] | None = None) -> dict[str, Tensor]:
    squared, overlaps = with_overlaps(net, torch.float32, run)
    supervise(net, squared, GAMMA, overlaps=overlaps)
    return {n: p.grad.clone() for n, p in net.named_parameters() if is_gate(n) and p.grad is not None}


@pytest.mark.parametrize(
    ("mode", "residual"), covering(["checkpointed", "compiled", "blocks compiled"], ["skip", "gated", "rezero"])
)
def test_equal_numbers_however_the_network_runs(mode: str, residual: str) -> None:
    net = random_dit(residual)
    expected = gate_gradients(net)
    run: Callable[..., Tensor] = net
    torch._dynamo.reset()
    if mode == "compiled":
        run = torch.compile(net, backend="aot_eager", fullgraph=True)
    for block in net.blocks:
        if mode == "checkpointed":
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        elif mode == "blocks compiled":
            block.compile(backend="aot_eager", fullgraph=True)
    found = gate_gradients(net, run)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("rule", [*RULES])
def test_taps_leave_outputs_and_gradients_bit_equal(rule: str) -> None:
    net = random_dit(RULES[rule])
    plain = net(*inputs())
    loss(plain).backward()
    gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    with_overlaps(net, torch.float32)
    assert all(torch.equal(p.grad, gradients[n]) for n, p in net.named_parameters() if p.grad is not None)


def test_under_bf16_autocast_the_numbers_stay_close() -> None:
    net = random_dit()
    exact = supervise(net, measured(net, torch.float32), GAMMA)
    with probe(net, branches=True) as rows, torch.autocast("cpu", torch.bfloat16):
        loss(net(*inputs()).float()).backward()
    assert rows.grad is not None
    assert rows.grad.dtype == torch.float32
    torch.testing.assert_close(supervise(net, rows.grad, GAMMA), exact, rtol=0.1, atol=0)


def test_zero_and_not_nan_where_there_is_no_gain() -> None:
    torch.manual_seed(0)
    fresh = DiT(**SIZE)  # its last layer is zero: no gradient reaches any unit
    value, changes = added(fresh, measured(fresh, torch.float32), GAMMA)
    assert value == 0
    assert not any(change.any() for change in changes.values())

    net = random_dit("rezero", torch.float64)
    first = next(units(net))[1]
    with torch.no_grad():
        first.alpha.zero_()
    squared = measured(net)
    _, changes = added(net, squared, GAMMA)
    assert not changes["blocks.0.attn_unit.alpha"].any()
    assert all(change.isfinite().all() for change in changes.values())
    others = 0.5 * (squared[1:, 0] / squared[1:, 1]).log()
    torch.testing.assert_close(supervise(net, squared, GAMMA), 0.5 * others.square().mean())  # it does not count in N


def test_frozen_and_unused_gates_are_left_alone() -> None:
    net = random_dit()
    next(units(net))[1].alpha.requires_grad_(False)
    value, changes = added(net, measured(net, torch.float32), GAMMA)
    assert value > 0
    assert "blocks.0.attn_unit.alpha" not in changes


@pytest.mark.parametrize(
    ("rule", "gamma", "target", "words"),
    [
        ("adaln", 0.35, "isometry", "cancels the scale"),
        ("resnet", 0.35, "isometry", "no gates"),
        ("gated", -1.0, "isometry", "below 0"),
        ("gated", 0.35, "ceiling", "isometry, floor"),
    ],
)
def test_what_cannot_be_supervised_is_refused(rule: str, gamma: float, target: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_supervision(DiT(**SIZE, residual=rule), gamma, target)


@pytest.mark.parametrize(("network", "rule"), [("unet-context", "gated"), ("unet-2d", "skip"), ("dit", "rezero")])
def test_the_exact_value_is_that_of_the_local_one_also_for_units_inside_others(network: str, rule: str) -> None:
    from tests.dynamics.test_identities import NETWORKS, randomised

    build, arguments, _ = NETWORKS[network]
    net = build(Residual(rule), torch.float64) if build is random_dit else randomised(build, Residual(rule))
    with torch.no_grad():
        *_, (_, last) = units(net)
        last.alpha.zero_()  # a unit whose gates have no scale does not count
    with probe(net, branches=True) as rows:
        loss(net(*arguments)).backward()
    local = supervise(net, rows.grad, 0.0)
    exact = sensitivity_loss(net, lambda: loss(net(*arguments)))
    torch.testing.assert_close(exact.detach(), local, rtol=1e-9, atol=0)
