"""The five rules against a plain re-statement: their starts, their parameters, what they keep for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from neural_rdm.residual import RULES, Residual, Unit, gate_names, units
from tests.helpers import FIVE, covering

PLAIN_START = ("gated", "adaln", "skip")
FORMS: dict[str, dict] = {"channel": {}, "scalar": {"granularity": "scalar"}, "timed": {"time_conditioned": True}}
B, N, D, E = 2, 7, 12, 6


def unit_of(rule: str, **options: object) -> Unit:
    """A unit on D channels, in a network that hands it the timestep embedding."""
    return Residual(rule, **options).unit(D, time_dim=E)


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
    rule=st.sampled_from(FIVE),
    seed=st.integers(0, 2**16),
    inner=st.lists(st.integers(1, 4), max_size=3),
    widths=st.tuples(st.integers(1, 5), st.sampled_from([None, 1, 3])),
    channel_axis=st.sampled_from([-1, 1]),
    granularity=st.sampled_from(["channel", "scalar"]),
    timed=st.booleans(),
    gated_block=st.booleans(),
    form=st.sampled_from(["additive", "linear", "none"]),
)
def test_every_rule_is_its_formula(
    rule, seed, inner, widths, channel_axis, granularity, timed, gated_block, form
) -> None:
    rng = np.random.default_rng(seed)
    dim, dim_out = widths[0], widths[1] or widths[0]
    beta_form = form if rule == "gated" else "additive"
    options = {"granularity": granularity, "time_conditioned": timed} if rule != "resnet" else {}
    options |= {"beta_form": beta_form} if rule == "gated" else {}
    unit = Residual(rule, **options).unit(dim, widths[1], channel_axis, time_dim=E).double()
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
@pytest.mark.parametrize(("rule", "form"), covering(PLAIN_START, list(FORMS), whole=[("gated", ...)]))
def test_plain_starts_are_bit_equal_to_resnet(rule: str, form: str, autocast: bool) -> None:
    torch.manual_seed(0)
    branch = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, D), nn.GELU())
    z, g, e = torch.randn(B, N, D), torch.randn(B, D), torch.randn(B, E)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for gate in (None, g):
            assert torch.equal(unit_of(rule, **FORMS[form])(z, branch, gate, e), unit_of("resnet")(z, branch, gate))
    for form in ("linear", "none"):
        assert torch.equal(unit_of("gated", beta_form=form)(z, branch, g), unit_of("resnet")(z, branch, g))


@pytest.mark.parametrize("rule", PLAIN_START)
def test_plain_starts_are_bit_equal_on_maps_with_a_shortcut(rule: str) -> None:
    torch.manual_seed(0)
    branch, shortcut, z = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), torch.randn(B, 4, 5, 5)
    unit, plain = (Residual(name).unit(4, 6, channel_axis=1) for name in (rule, "resnet"))
    assert torch.equal(unit(z, branch, shortcut=shortcut), plain(z, branch, shortcut=shortcut))


def test_rezero_starts_as_the_identity() -> None:
    z = torch.randn(B, N, D)
    assert torch.equal(unit_of("rezero")(z, nn.Linear(D, D), torch.randn(B, D)), z)
    timed = unit_of("rezero", time_conditioned=True)
    assert torch.equal(timed(z, nn.Linear(D, D), None, torch.randn(B, E)), z)


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
        if rule == "resnet":
            assert not list(Residual(rule).unit(4, 6).parameters())
            continue
        static = dict(Residual(rule, granularity=granularity).unit(4, 6, time_dim=E).named_parameters())
        unit = Residual(rule, granularity=granularity, time_conditioned=True).unit(4, 6, time_dim=E)
        timed = dict(unit.named_parameters())
        assert sorted(static) == names
        assert sorted(timed) == sorted(names + [f"{n}_time" for n in names]) == sorted(gate_names(unit))
        for name in names:
            start = 1.0 if name == "alpha" and rule != "rezero" else 0.0
            assert torch.equal(static[name], torch.full((size,), start))
            assert torch.equal(timed[f"{name}_time"], torch.zeros(size, E))


@pytest.mark.parametrize(
    ("rule", "form"),
    [*((r, {}) for r in FIVE if r != "resnet"), *(("gated", {"beta_form": f}) for f in ("linear", "none"))],
)
def test_every_gate_gets_a_gradient_at_its_start(rule: str, form: dict) -> None:
    torch.manual_seed(0)
    for granularity in ("channel", "scalar"):
        unit = unit_of(rule, granularity=granularity, time_conditioned=True, **form)
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
    _, plain = saved(unit_of("resnet"), autocast)
    z, gated = saved(unit_of(rule), autocast)
    branch_bytes = z.numel() * (2 if autocast else 4)
    assert size(plain) >= branch_bytes
    assert size(gated) - size(plain) <= 4 * (2 * B * D + D) < branch_bytes / 4  # g * alpha, its cast, alpha


@pytest.mark.parametrize("rule", FIVE)
def test_autocast_keeps_no_float32_copy_of_the_branch(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast on CUDA promotes the arguments of addcmul to float32, on CPUs it does not: here it does, too."""
    plain_addcmul = torch.addcmul

    def addcmul(*tensors: Tensor) -> Tensor:
        return plain_addcmul(*(t.float() if torch.is_autocast_enabled("cpu") else t for t in tensors))

    monkeypatch.setattr(torch, "addcmul", addcmul)
    z, kept = saved(unit_of(rule), autocast=True)
    assert any(t.dtype == torch.bfloat16 and t.numel() >= z.numel() for t in kept)
    assert [t.shape for t in kept if t.dtype == torch.float32 and t.numel() >= z.numel()] == []


@pytest.mark.parametrize("rule", FIVE)
def test_a_unit_compiles_without_a_graph_break(rule: str) -> None:
    torch.manual_seed(0)
    unit, branch = unit_of(rule, **({"time_conditioned": True} if rule != "resnet" else {})), nn.Linear(D, D)
    z, g, e = torch.randn(B, N, D), torch.randn(B, D), torch.randn(B, E)

    def run(z: Tensor, g: Tensor, e: Tensor) -> Tensor:
        return unit(z, branch, g, e)

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(z, g, e), run(z, g, e))


def test_time_conditioned_gates_need_the_embedding() -> None:
    with pytest.raises(ValueError, match="timestep embedding"):
        unit_of("gated", time_conditioned=True)(torch.randn(B, N, D), nn.Identity())


@pytest.mark.parametrize("rule", FIVE)
def test_the_stream_of_these_rules_is_the_tensor_itself(rule: str) -> None:
    z = torch.randn(B, N, D)
    stack = Residual(rule).plan(2, D).stack
    assert stack.open(z) is z
    assert stack.close(z) is z
    assert torch.equal(stack.map(lambda x: x.flatten(1), z), z.flatten(1))
    assert torch.equal(stack.add(z, z), 2 * z)
    assert not stack.state_dict()


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
        ({"rule": "gate"}, ["rule='gate'", *FIVE]),
        ({"granularity": "token"}, ["granularity=token", "channel", "scalar"]),
        ({"beta_form": "quadratic"}, ["beta_form=quadratic", "additive", "linear"]),
        ({"rule": "skip", "beta_form": "linear"}, ["beta_form='linear'", "'skip'", "granularity, time_conditioned"]),
        ({"rule": "resnet", "granularity": "scalar"}, ["granularity", "no options"]),
    ],
)
def test_residual_refuses_unknown_values_and_names_the_choices(values: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        Residual(**values)
    assert [w for w in words if w not in str(refusal.value)] == []


def test_residual_builds_units_of_its_rule() -> None:
    spec = Residual("adaln", granularity="scalar", time_conditioned=True)
    unit = spec.unit(4, 6, channel_axis=1, time_dim=E)
    assert type(unit) is RULES[spec.rule] is RULES["adaln"]
    assert (unit.dim, unit.dim_out, unit.channel_axis) == (4, 6, 1)
    assert unit.alpha_time.shape == (1, E)
    assert not Residual("gated").unit(4, time_dim=E).time_conditioned  # offered, not asked for
    assert Residual.of("skip") == Residual(rule="skip")
    assert Residual.of(spec) is spec
    with pytest.raises(ValueError, match="no timestep embedding"):
        Residual(time_conditioned=True).unit(4)


def test_gate_init_never_puts_two_zeros_in_series() -> None:
    for rule in FIVE:
        assert Residual(rule).gate_init() == (1.0 if rule == "rezero" else 0.0)
        assert Residual(rule).gate_init(0.5) == 0.5
    assert Residual("gated").gate_init(0.0) == 0.0
    with pytest.raises(ValueError, match=r"adaln_gate_init=0.*rezero.*never"):
        Residual("rezero").gate_init(0.0)
