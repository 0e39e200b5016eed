"""The five rules against a plain re-statement: their starts, their parameters, what they keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neural_rdm.residual import RULES, Residual, Unit, is_gate, units

PLAIN_START = ("gated", "adaln", "skip")
B, N, D, E = 2, 7, 12, 6


def branch_of(w: np.ndarray) -> tuple[Callable, Callable]:
    """A nonlinear branch over the last axis, for numpy arrays and for tensors; it may change the width."""
    return lambda h: np.tanh(h @ w), lambda h: torch.tanh(h @ torch.from_numpy(w))


def restated(rule: str, z, skip, f, alpha, beta, g, beta_form) -> np.ndarray:
    """The formula of `rule` with the channels last; alpha and beta [B, 1.., D], g [B, 1.., D] or 1."""
    if rule == "gated":
        return skip + alpha * (g * f(z)) + (beta if beta_form == "additive" else beta * skip)
    if rule == "adaln":
        return skip + g * f(alpha * z + beta)
    if rule == "skip":
        return alpha * skip + g * f(z) + beta
    return skip + (alpha * (g * f(z)) if rule == "rezero" else g * f(z))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rule=st.sampled_from(list(RULES)),
    seed=st.integers(0, 2**16),
    inner=st.lists(st.integers(1, 4), max_size=3),
    widths=st.tuples(st.integers(1, 5), st.sampled_from([None, 1, 3])),
    channel_axis=st.sampled_from([-1, 1]),
    granularity=st.sampled_from(["channel", "scalar"]),
    timed=st.booleans(),
    gated_block=st.booleans(),
    linear=st.booleans(),
)
def test_every_rule_is_its_formula(
    rule, seed, inner, widths, channel_axis, granularity, timed, gated_block, linear
) -> None:
    rng = np.random.default_rng(seed)
    dim, dim_out = widths[0], widths[1] or widths[0]
    beta_form = "linear" if linear and rule == "gated" else "additive"
    unit = RULES[rule](dim, widths[1], channel_axis, granularity, E if timed else None, beta_form).double()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    z, e = rng.normal(size=(B, *inner, dim)), rng.normal(size=(B, E))
    g = rng.normal(size=(B, dim_out)) if gated_block else None
    shortcut = rng.normal(size=(dim, dim_out)) if widths[1] else np.eye(dim)
    in_numpy, in_torch = branch_of(rng.normal(size=(dim, dim_out)))

    def gate(name: str) -> np.ndarray | float:
        if not hasattr(unit, name):
            return 0.0
        value = getattr(unit, name).detach().numpy()[None]
        if timed:
            value = value + e @ getattr(unit, f"{name}_time").detach().numpy().T
        return value.reshape(value.shape[0], *[1] * len(inner), -1)

    spread_g = 1.0 if g is None else g.reshape(B, *[1] * len(inner), dim_out)
    expected = restated(rule, z, z @ shortcut, in_numpy, gate("alpha"), gate("beta"), spread_g, beta_form)

    def last(x: Tensor) -> Tensor:
        return x.movedim(channel_axis, -1)

    def there(x: Tensor) -> Tensor:
        return x.movedim(-1, channel_axis)

    result = unit(
        there(torch.from_numpy(z)),
        lambda h: there(in_torch(last(h))),
        None if g is None else torch.from_numpy(g),
        torch.from_numpy(e) if timed else None,
        (lambda h: there(last(h) @ torch.from_numpy(shortcut))) if widths[1] else None,
    )
    np.testing.assert_allclose(last(result).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16-autocast"])
@pytest.mark.parametrize("form", [{}, {"granularity": "scalar"}, {"time_dim": E}], ids=["channel", "scalar", "timed"])
@pytest.mark.parametrize("rule", PLAIN_START)
def test_plain_starts_are_bit_equal_to_resnet(rule: str, form: dict, autocast: bool) -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU())
    z, g, e = torch.randn(B, N, D), torch.randn(B, D), torch.randn(B, E)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for gate in (None, g):
            assert torch.equal(RULES[rule](D, **form)(z, branch, gate, e), RULES["resnet"](D)(z, branch, gate))
    linear = RULES["gated"](D, beta_form="linear")(z, branch, g)
    assert torch.equal(linear, RULES["resnet"](D)(z, branch, g))


@pytest.mark.parametrize("rule", PLAIN_START)
def test_plain_starts_are_bit_equal_on_maps_with_a_shortcut(rule: str) -> None:
    torch.manual_seed(0)
    branch, shortcut, z = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), torch.randn(B, 4, 5, 5)
    unit, plain = (RULES[name](4, 6, channel_axis=1) for name in (rule, "resnet"))
    assert torch.equal(unit(z, branch, shortcut=shortcut), plain(z, branch, shortcut=shortcut))


def test_rezero_starts_as_the_identity() -> None:
    z = torch.randn(B, N, D)
    assert torch.equal(RULES["rezero"](D)(z, nn.Linear(D, D), torch.randn(B, D)), z)
    assert torch.equal(RULES["rezero"](D, time_dim=E)(z, nn.Linear(D, D), None, torch.randn(B, E)), z)


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        ("gated", ["alpha", "beta"]),
        ("adaln", ["alpha", "beta"]),
        ("skip", ["alpha", "beta"]),
        ("resnet", []),
        ("rezero", ["alpha"]),
    ],
)
def test_parameter_names_shapes_and_starts(rule: str, names: list[str]) -> None:
    width = 4 if rule == "adaln" else 6  # what the gates multiply: the branch's input, or its output
    for granularity, size in (("channel", width), ("scalar", 1)):
        static = dict(RULES[rule](4, 6, granularity=granularity).named_parameters())
        timed = dict(RULES[rule](4, 6, granularity=granularity, time_dim=E).named_parameters())
        assert sorted(static) == names
        assert sorted(timed) == sorted(names + [f"{n}_time" for n in names])
        assert all(is_gate(n) for n in timed)
        for name in names:
            start = 1.0 if name == "alpha" and rule != "rezero" else 0.0
            assert torch.equal(static[name], torch.full((size,), start))
            assert torch.equal(timed[f"{name}_time"], torch.zeros(size, E))


@pytest.mark.parametrize("beta_form", ["additive", "linear"])
@pytest.mark.parametrize("rule", [r for r in RULES if r != "resnet"])
def test_every_gate_gets_a_gradient_at_its_start(rule: str, beta_form: str) -> None:
    torch.manual_seed(0)
    for granularity in ("channel", "scalar"):
        unit = RULES[rule](D, granularity=granularity, time_dim=E, beta_form=beta_form)
        out = unit(torch.randn(B, N, D), nn.Linear(D, D), torch.randn(B, D), torch.randn(B, E))
        (out * torch.randn_like(out)).sum().backward()
        for name, parameter in unit.named_parameters():
            assert parameter.grad is not None, name
            assert bool((parameter.grad != 0).all()), name


def saved(unit: Unit, autocast: bool) -> tuple[Tensor, list[Tensor]]:
    """What one unit with a block gate keeps for its backward pass: one tensor per storage, the stream left out."""
    torch.manual_seed(0)
    z, g, branch = torch.randn(B, 64, D, requires_grad=True), torch.randn(B, D, requires_grad=True), nn.Linear(D, D)
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        unit(z, branch, g)
    kept.pop(z.untyped_storage().data_ptr(), None)
    return z, list(kept.values())


def size(tensors: list[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16-autocast"])
@pytest.mark.parametrize("rule", ["gated", "rezero"])
def test_gates_beside_a_block_gate_keep_no_second_copy_of_the_branch(rule: str, autocast: bool) -> None:
    _, plain = saved(RULES["resnet"](D), autocast)
    z, gated = saved(RULES[rule](D), autocast)
    branch_bytes = z.numel() * (2 if autocast else 4)
    assert size(plain) >= branch_bytes
    assert size(gated) - size(plain) <= 4 * (2 * B * D + D) < branch_bytes / 4  # g * alpha, its cast, alpha


@pytest.mark.parametrize("rule", list(RULES))
def test_autocast_keeps_no_float32_copy_of_the_branch(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on CUDA promotes the arguments of addcmul to float32, on CPUs it does not: here it does, too."""
    plain_addcmul = torch.addcmul

    def addcmul(*tensors: Tensor) -> Tensor:
        return plain_addcmul(*(t.float() if torch.is_autocast_enabled("cpu") else t for t in tensors))

    monkeypatch.setattr(torch, "addcmul", addcmul)
    z, kept = saved(RULES[rule](D), autocast=True)
    assert any(t.dtype == torch.bfloat16 and t.numel() >= z.numel() for t in kept)
    assert [t.shape for t in kept if t.dtype == torch.float32 and t.numel() >= z.numel()] == []


@pytest.mark.parametrize("rule", list(RULES))
def test_a_unit_compiles_without_a_graph_break(rule: str) -> None:
    torch.manual_seed(0)
    unit, branch = RULES[rule](D, time_dim=E), nn.Linear(D, D)
    z, g, e = torch.randn(B, N, D), torch.randn(B, D), torch.randn(B, E)

    def run(z: Tensor, g: Tensor, e: Tensor) -> Tensor:
        return unit(z, branch, g, e)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(z, g, e), run(z, g, e))


def test_time_conditioned_gates_need_the_embedding() -> None:
    with pytest.raises(ValueError, match="timestep embedding"):
        RULES["gated"](D, time_dim=E)(torch.randn(B, N, D), nn.Identity())


@pytest.mark.parametrize("rule", list(RULES))
def test_the_stream_of_these_rules_is_the_tensor_itself(rule: str) -> None:
    z = torch.randn(B, N, D)
    assert RULES[rule].open(z) is z
    assert RULES[rule].close(z) is z
    assert torch.equal(RULES[rule].map(z, lambda x: x.flatten(1)), z.flatten(1))


def test_is_gate_goes_by_the_last_part_of_a_name() -> None:
    assert all(map(is_gate, ["alpha", "blocks.0.attn_unit.beta", "a.alpha_time", "a.beta_time"]))
    assert not any(map(is_gate, ["alpha.weight", "blocks.0.attn.qkv.bias", "alphabet", "norm.betas", ""]))


class TwoUnits(nn.Module):
    """Registers its second unit first."""

    def __init__(self) -> None:
        super().__init__()
        self.second, self.first = Residual().unit(4), Residual().unit(4)


class Listed(TwoUnits):
    """Says in which order its units run."""

    def unit_order(self) -> Iterator[tuple[str, Unit]]:
        yield from (("first", self.first), ("second", self.second))


def test_units_come_in_run_order() -> None:
    assert [name for name, _ in units(TwoUnits())] == ["second", "first"]  # as registered, where nothing else is said
    assert [name for name, _ in units(Listed())] == ["first", "second"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rule": "gate"}, ["rule='gate'", *RULES]),
        ({"granularity": "token"}, ["granularity='token'", "channel", "scalar"]),
        ({"beta_form": "quadratic"}, ["beta_form='quadratic'", "additive", "linear"]),
        ({"rule": "skip", "beta_form": "linear"}, ["beta_form=linear", "gated", "'skip'"]),
    ],
)
def test_residual_refuses_unknown_values_and_names_the_choices(values: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        Residual(**values)
    assert [w for w in words if w not in str(refusal.value)] == []


def test_residual_builds_units_of_its_rule() -> None:
    spec = Residual("adaln", granularity="scalar", time_conditioned=True)
    unit = spec.unit(4, 6, channel_axis=1, time_dim=E)
    assert type(unit) is RULES["adaln"]
    assert (unit.dim, unit.dim_out, unit.channel_axis) == (4, 6, 1)
    assert unit.alpha_time.shape == (1, E)
    assert not Residual("gated").unit(4, time_dim=E).time_conditioned  # offered, not asked for
    assert Residual.of("skip") == Residual(rule="skip")
    assert Residual.of(spec) is spec
    with pytest.raises(ValueError, match="no timestep embedding"):
        Residual(time_conditioned=True).unit(4)


def test_gate_init_never_puts_two_zeros_in_series() -> None:
    for rule in RULES:
        assert Residual(rule).gate_init() == (1.0 if rule == "rezero" else 0.0)
        assert Residual(rule).gate_init(0.5) == 0.5
    assert Residual("gated").gate_init(0.0) == 0.0
    with pytest.raises(ValueError, match=r"adaln_gate_init=0.*rezero.*never"):
        Residual("rezero").gate_init(0.0)
