"""The residual designs of others: each formula restated in loops over samples, tokens and channels, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neural_rdm import DiT
from neural_rdm.residual import RULES, Residual, Unit, gate_names
from neural_rdm.residual.rivals.attention import attend, frozen_weights, logits_of
from neural_rdm.residual.rivals.hc import _Written
from neural_rdm.residual.rivals.norms import rms_norm
from tests.residual.test_conformance import RIVALS

Array = NDArray[np.float64]
B, N, D, E, UNITS = 2, 3, 4, 5, 6
ROLES = ("attn", "mlp")
EPS = 1e-6


class Toy:
    """Units on tokens [B, N, D] whose branches are `tanh(x W_l)`, each behind a gate g_l [B, D] of its block."""

    def __init__(self, residual: Residual) -> None:
        draw = np.random.default_rng(0).normal
        self.weights, self.gates = draw(size=(UNITS, D, D)), draw(size=(UNITS, B, D))
        self.z, self.e = draw(size=(B, N, D)), draw(size=(B, E))
        plan = residual.plan(UNITS, D, time_dim=E)
        self.units = [plan.unit(ROLES[i % 2], i // 2) for i in range(UNITS)]
        self.stack = plan.stack
        self.modules = nn.ModuleList([self.stack, *self.units]).double()
        for _, parameter in sorted(self.modules.named_parameters()):
            parameter.data += torch.from_numpy(0.3 * draw(size=tuple(parameter.shape)))

    def run(self) -> Array:
        e, stream = torch.from_numpy(self.e), self.stack.open(torch.from_numpy(self.z))
        for unit, weight, gate in zip(self.units, self.weights, self.gates, strict=True):
            stream = unit(stream, lambda h, w=weight: (h @ torch.from_numpy(w)).tanh(), torch.from_numpy(gate), e)
        return self.stack.close(stream, e).detach().numpy()

    def branch(self, i: int, b: int, u: Array) -> Array:
        """The gated output of unit i for one token [D] of sample b."""
        return self.gates[i, b] * np.tanh(u @ self.weights[i])

    def value(self, i: int, name: str) -> Array:
        parameter: Tensor = getattr(self.units[i], name)
        return parameter.detach().numpy()

    def shared(self, name: str) -> Array:
        parameter: Tensor = getattr(self.stack, name)
        return parameter.detach().numpy()


def rms(x: Array) -> float:
    return math.sqrt(sum(v * v for v in x) / len(x) + EPS)


def depth_mean(query: Array, sources: list[Array], scale: float = 1.0) -> Array:
    """One token's mean of its sources by attention."""
    scores = [math.exp(scale * sum(q * v for q, v in zip(query, s, strict=True)) / rms(s)) for s in sources]
    return np.asarray(sum((w / sum(scores)) * s for w, s in zip(scores, sources, strict=True)))


def tokens(toy: Toy, one: Callable[[int, Array], Array]) -> Array:
    """Run every token by itself: `one(b, z)` from its input to its output."""
    return np.stack([np.stack([one(b, toy.z[b, n]) for n in range(N)]) for b in range(B)])


def layerscale(toy: Toy, options: dict[str, Any]) -> Array:
    def one(b: int, z: Array) -> Array:
        for i in range(UNITS):
            z = z + toy.value(i, "alpha") * toy.branch(i, b, z)
        return z

    return tokens(toy, one)


def sandwich(toy: Toy, options: dict[str, Any]) -> Array:
    def one(b: int, z: Array) -> Array:
        for i in range(UNITS):
            f = np.tanh(z @ toy.weights[i])
            scale = np.tanh(toy.value(i, "alpha")) if options.get("gate", "tanh") == "tanh" else 1.0
            z = z + scale * toy.gates[i, b] * toy.value(i, "weight") * f / rms(f)
        return z

    return tokens(toy, one)


def mvsplit(toy: Toy, options: dict[str, Any]) -> Array:
    out = np.empty_like(toy.z)
    for b in range(B):
        z = toy.z[b]
        for i in range(UNITS):
            f = np.stack([toy.branch(i, b, z[n]) for n in range(N)])
            mean_f, mean_z = sum(f) / N, sum(z) / N
            rows = [
                z[n] + toy.value(i, "beta") * (f[n] - mean_f) + toy.value(i, "alpha") * (mean_f - mean_z)
                for n in range(N)
            ]
            z = np.stack([toy.value(i, "weight") * row / rms(row) for row in rows])
        out[b] = z
    return out


def ihc(toy: Toy, options: dict[str, Any]) -> Array:
    n = options.get("n", 4)

    def one(b: int, z: Array) -> Array:
        copies = [z.copy() for _ in range(n)]
        for i in range(UNITS):
            a, w = toy.value(i, "read_weight"), toy.value(i, "write_weight")
            u = np.array([sum(a[s, c] * copies[s][c] for s in range(n)) for c in range(D)])
            f = toy.branch(i, b, u)
            for s in range(n):
                for c in range(D):
                    copies[s][c] += w[s, c] * f[c]
        return np.asarray(sum(copies) / n)

    return tokens(toy, one)


def hc(toy: Toy, options: dict[str, Any]) -> Array:
    n = options.get("n", 4)

    def one(b: int, z: Array) -> Array:
        copies = [z.copy() for _ in range(n)]
        for i in range(UNITS):
            read, carry = toy.value(i, "read_weight").copy(), toy.value(i, "carry").copy()
            write = toy.value(i, "write_weight").copy()
            if options.get("dynamic"):
                s_read, s_write, s_carry = toy.value(i, "dynamic_scale")
                for r in range(n):
                    token = (copies[r] / rms(copies[r])) @ toy.value(i, "dynamic_weight")
                    read[r] += s_read * math.tanh(token[0])
                    write[r] += s_write * math.tanh(token[1])
                    for s in range(n):
                        carry[r, s] += s_carry * math.tanh(token[2 + s])
            f = toy.branch(i, b, np.asarray(sum(read[s] * copies[s] for s in range(n))))
            copies = [sum(carry[r, s] * copies[r] for r in range(n)) + write[s] * f for s in range(n)]
        return np.asarray(sum(copies) / n)

    return tokens(toy, one)


def delta(toy: Toy, options: dict[str, Any]) -> Array:
    def one(b: int, z: Array) -> Array:
        h, sources = z, [z]
        for i in range(UNITS):
            u = h if i == 0 else h + toy.value(i, "gamma") * depth_mean(toy.shared("query")[i - 1], sources)
            sources.append(toy.branch(i, b, u))
            h = h + sources[-1]
        return h

    return tokens(toy, one)


def dar(toy: Toy, options: dict[str, Any]) -> Array:
    chunk = options.get("chunk", 1)

    def one(b: int, z: Array) -> Array:
        by_time = toy.shared("time_weight") @ toy.e[b] + toy.shared("time_bias")
        outputs: list[Array] = []
        for i in range(UNITS + 1):  # the last router's turn is UNITS
            current = (min(i, UNITS - 1)) // chunk * chunk  # the first unit of the chunk that is not summarised yet
            seen = [z, *(outputs[k] for k in range(chunk - 1, current, chunk)), *outputs[current:]]
            query = toy.shared("query")[i - 1] if i else np.zeros(D)
            u = depth_mean(query + by_time, seen, D**-0.5)
            if i < UNITS:
                outputs.append(toy.branch(i, b, u))
        return u

    return tokens(toy, one)


def block_attnres(toy: Toy, options: dict[str, Any]) -> Array:
    group = options.get("group", 16)

    def one(b: int, z: Array) -> Array:
        outputs: list[Array] = []
        for i in range(UNITS + 1):
            sums = [np.asarray(sum(outputs[k : k + group])) for k in range(0, len(outputs), group)]
            u = depth_mean(toy.shared("query_final" if i == UNITS else f"query_{ROLES[i % 2]}"), [z, *sums])
            if i < UNITS:
                outputs.append(toy.branch(i, b, u))
        return u

    return tokens(toy, one)


def denseformer(toy: Toy, options: dict[str, Any]) -> Array:
    every = options.get("every", 1)

    def one(b: int, z: Array) -> Array:
        past = [z]
        for i in range(UNITS):
            z = z + toy.branch(i, b, z)
            if i % 2:
                past.append(z)
                if (i // 2 + 1) % every == 0:
                    z = np.asarray(sum(w * x for w, x in zip(toy.value(i, "weights"), past, strict=True)))
        return z

    return tokens(toy, one)


CASES: list[tuple[Callable[[Toy, dict[str, Any]], Array], dict[str, Any]]] = [
    (layerscale, {}),
    (sandwich, {}),
    (sandwich, {"gate": "none"}),
    (mvsplit, {"beta": 0.03}),
    (ihc, {"n": 3}),
    (hc, {"n": 3}),
    (hc, {"n": 2, "dynamic": True}),
    (delta, {}),
    (dar, {}),
    (dar, {"chunk": 2}),
    (dar, {"chunk": 4}),
    (block_attnres, {"group": 2}),
    (block_attnres, {"group": 4}),
    (denseformer, {}),
    (denseformer, {"every": 2}),
]


@pytest.mark.parametrize(("restated", "options"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_it_computes_its_formula(restated: Callable[..., Array], options: dict[str, Any]) -> None:
    toy = Toy(Residual(restated.__name__, **options))
    np.testing.assert_allclose(toy.run(), restated(toy, options), rtol=1e-12, atol=1e-12)


def test_every_rule_is_restated() -> None:
    assert {restated.__name__ for restated, _ in CASES} == set(RIVALS)


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        # the counts of a DiT-XL/2: D = 1152, 28 blocks, U = 56 units
        ("layerscale", {}, 56 * 1152),
        ("sandwich", {}, 2 * 56 * 1152),
        ("mvsplit", {}, 3 * 56 * 1152),
        ("ihc", {"n": 4}, 516_096),
        ("hc", {"n": 4}, 56 * (4 + 16 + 4)),
        ("hc", {"n": 4, "dynamic": True}, 56 * (4 + 16 + 4 + 1152 * 6 + 3)),
        ("delta", {}, 63_415),
        ("dar", {}, 64_512 + 1152 * 1152 + 1152),
        ("block_attnres", {}, 3_456),
        ("denseformer", {}, 434),
    ],
)
def test_the_parameters_are_as_many_as_the_sources_say(rule: str, options: dict[str, Any], expected: int) -> None:
    with torch.device("meta"):
        net = DiT(residual=Residual(rule, **options))
    parameters = dict(net.named_parameters())
    assert sum(parameters[name].numel() for name in gate_names(net)) == expected


def mean(queries: Tensor, sources: list[Tensor], router: int = 0) -> Tensor:
    """What one of the routers reads."""
    logits = torch.stack([logits_of(source, queries, 0.7) for source in sources], dim=-1)
    return attend(logits[..., router, :].softmax(dim=-1), sources)


@pytest.mark.parametrize("queries", [(2, D), (B, 2, D)], ids=["the same for all", "one a sample"])
def test_attention_over_depth_has_the_gradient_of_its_formula(queries: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    q = torch.randn(queries, dtype=torch.float64, requires_grad=True)
    sources = [torch.randn(B, N, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda q, *s: mean(q, list(s), router=1), (q, *sources))
    rows = [s.detach().transpose(0, 1) for s in sources]  # as Latte hands them on: not contiguous
    if q.ndim == 2:
        torch.testing.assert_close(mean(q, rows), mean(q, sources).transpose(0, 1))


def test_attention_over_depth_in_half_precision_weighs_in_single() -> None:
    torch.manual_seed(0)
    q, sources = 3 * torch.randn(1, D), [torch.randn(B, N, D) for _ in range(4)]
    exact = mean(q, [s.bfloat16().float() for s in sources])
    with torch.autocast("cpu", torch.bfloat16):
        out = mean(q, [s.bfloat16() for s in sources])
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.02)


def test_copies_are_not_rounded_by_autocast() -> None:
    torch.manual_seed(0)
    toy = Toy(Residual("hc", n=2))
    toy.modules.float()
    stream = toy.stack.open(torch.randn(B, N, D))
    with torch.autocast("cpu", torch.bfloat16):
        after = toy.units[0](stream, lambda h: torch.zeros_like(h))
    exact = toy.units[0](stream, lambda h: torch.zeros_like(h))
    assert all(torch.equal(a, b) for a, b in zip(after, exact, strict=True))


@pytest.mark.parametrize("gate", [(1, 1, 1), (B, 1, D)], ids=["no gate", "gate"])
def test_hyper_connections_write_with_the_gradient_of_their_formula(gate: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 2), (2, *gate), (B, N, D))]
    copies = [torch.randn(B, N, D, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(_Written.apply, (*given, *copies))


@pytest.mark.parametrize("channel_axis", [-1, 1])
def test_a_norm_behind_a_branch_has_the_gradient_of_its_formula(channel_axis: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(B, D, N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(D, dtype=torch.float64, requires_grad=True)
    for w in (weight, None):
        assert torch.autograd.gradcheck(lambda x, w=w: rms_norm(x, channel_axis, w), x)
    assert torch.autograd.gradcheck(lambda w: rms_norm(x.detach(), channel_axis, w), weight)
    exact = torch.nn.functional.rms_norm(x.movedim(channel_axis, -1), (D,), weight, EPS)
    torch.testing.assert_close(rms_norm(x, channel_axis, weight), exact.movedim(-1, channel_axis), rtol=1e-12, atol=0)


def test_frozen_weights_leave_the_mean_and_cut_the_gradient_through_them() -> None:
    torch.manual_seed(0)
    q = torch.randn(1, D, dtype=torch.float64, requires_grad=True)
    sources = [torch.randn(B, N, D, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    with frozen_weights():
        out = mean(q, sources)
    torch.testing.assert_close(out, mean(q, sources))
    share = torch.autograd.grad(out.sum(), sources)
    torch.testing.assert_close(sum(share), torch.ones_like(out))
    assert torch.autograd.grad(out.sum(), q, allow_unused=True) == (None,)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("rule", ["ihc", "hc"])
def test_copies_start_plain_to_the_bit_and_come_to_differ(rule: str, n: int) -> None:
    torch.manual_seed(0)
    net, plain = (
        DiT(4, 2, 2, 16, 2, 2, num_classes=3, residual=r).double() for r in (Residual(rule, n=n), Residual("resnet"))
    )
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
            net.get_parameter(name).copy_(parameter)
    x, t, y = torch.randn(2, 2, 4, 4).double(), torch.tensor([3, 900]), torch.tensor([0, 2])
    assert torch.equal(net(x, t, y), plain(x, t, y))
    if n == 1:
        return
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        net(x, t, y).square().mean().backward()
        optimizer.step()
    seen: list[Any] = []
    hook = list(net.blocks)[-1].mlp_unit.register_forward_hook(lambda _, given, out: seen.append(out))
    net(x, t, y)
    hook.remove()
    assert (torch.stack(seen[0]).std(dim=0) > 1e-6).double().mean() > 0.9


@pytest.mark.parametrize("rule", RIVALS)
def test_every_parameter_learns_from_the_official_start(rule: str) -> None:
    """adaLN-Zero closes the branches at first: by the fourth step everything has moved."""
    torch.manual_seed(0)
    net = DiT(4, 2, 2, 16, 3, 2, num_classes=3, residual=rule)
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    x, t, y = torch.randn(4, 2, 4, 4), torch.tensor([3, 900, 50, 400]), torch.tensor([0, 2, 1, 3])
    for _ in range(5):
        optimizer.zero_grad()
        (net(x, t, y)[:, :2] - x).square().mean().backward()
        optimizer.step()
    parameters = dict(net.named_parameters())
    assert [n for n in gate_names(net) if torch.equal(parameters[n], start[n])] == []


@pytest.mark.parametrize("rule", RIVALS)
def test_a_unit_never_sees_what_comes_later(rule: str) -> None:
    toy = Toy(Residual(rule))
    seen: list[list[Tensor]] = []
    for last in (0.0, 1.0):  # what the third unit writes
        inputs: list[Tensor] = []
        stream = toy.stack.open(torch.from_numpy(toy.z))
        for i, unit in enumerate(toy.units):

            def branch(h: Tensor, i: int = i, last: float = last, inputs: list[Tensor] = inputs) -> Tensor:
                inputs.append(h.detach())
                return (h @ torch.from_numpy(toy.weights[i])).tanh() + (last if i == 3 else 0.0)

            stream = unit(stream, branch, None, torch.from_numpy(toy.e))
        seen.append(inputs)
    assert all(torch.equal(a, b) for a, b in zip(seen[0][:4], seen[1][:4], strict=True))
    assert not torch.equal(seen[0][4], seen[1][4])


def test_layerscale_starts_smaller_in_deeper_networks() -> None:
    starts = [Residual("layerscale").unit(4, count=units).alpha[0].item() for units in (36, 48, 50)]
    assert starts == pytest.approx([1e-1, 1e-5, 1e-6])
    assert Residual("layerscale", init=0.25).unit(4).alpha[0].item() == 0.25


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("ihc", {"n": 0}, "n=0 must be above 0"),
        ("hc", {"n": -1}, "n=-1 must be above 0"),
        ("dar", {"chunk": 0}, "chunk=0 must be above 0"),
        ("block_attnres", {"group": 0}, "group=0 must be above 0"),
        ("denseformer", {"every": 0}, "every=0 must be above 0"),
        ("sandwich", {"gate": "sigmoid"}, "gate=sigmoid is not one of tanh, none"),
    ],
)
def test_options_out_of_range_are_refused(rule: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(4, 2, 2, 16, 2, 2, num_classes=3, residual=Residual(rule, **options))


def test_a_closed_rule_opens_the_gates_of_its_blocks() -> None:
    """Two zeros in series never learn: with its alpha at 0 `sandwich` starts adaLN gates at 1; without alpha at 0."""
    assert Residual("sandwich").gate_init() == 1.0
    assert Residual("sandwich", gate="none").gate_init() == 0.0
    with pytest.raises(ValueError, match="two zeros in series"):
        Residual("sandwich").gate_init(0.0)


def test_every_rival_is_a_rule_by_its_name() -> None:
    for rule in RIVALS:
        assert issubclass(RULES[rule], Unit)
        assert RULES[rule].__module__ == f"neural_rdm.residual.rivals.{rule}"
