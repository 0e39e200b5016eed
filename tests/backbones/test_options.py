"""What goes beside any residual rule: value residual, long skips, LayerNorm scaling, stochastic depth."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neural_rdm import DiT, Latte, UNet, UViT
from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.options import Options, added, draws, keyed, option_of
from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.dynamics import probe
from neural_rdm.dynamics.lens import each_left_out, stopped_early
from neural_rdm.dynamics.mixing import depth_mixing, has_mixing
from neural_rdm.residual import gate_names, units
from neural_rdm.runs import build as builder
from tests.helpers import ROOT
from tests.training.trainer import fit

Array = NDArray[np.float64]
SIZES: dict[str, Any] = {
    "input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "num_heads": 2, "num_classes": 3
}  # fmt: skip
NETWORKS: dict[str, Callable[..., Backbone]] = {
    "dit": lambda **o: DiT(**SIZES, depth=4, **o),
    "dit_text": lambda **o: DiT(**SIZES | {"num_classes": 0}, depth=3, context_dim=5, register_tokens=2, **o),
    "latte": lambda **o: Latte(**SIZES, depth=4, num_frames=3, extras="class", **o),
    "uvit": lambda **o: UViT(
        img_size=4, patch_size=2, in_chans=2, embed_dim=16, depth=4, num_heads=2, num_classes=4, **o
    ),
}
SKIPS = {"long_skip": 0.5}
POSITIONS = [12, 13]  # at which every unit is left out of one sample at most
EVERY = {"value_residual": True, **SKIPS, "lns": True, "stochastic_depth": 0.6}


def options(kind: str, rule: str = "gated") -> dict[str, Any]:
    """All that a network may have under a rule."""
    without = kind == "uvit" or rule in ("delta", "dar")
    return {name: value for name, value in EVERY.items() if not (without and name in SKIPS)}


def network(kind: str, rule: str = "gated", at_start: bool = False, **chosen: Any) -> Backbone:
    """A network in float64 whose every weight is random; `at_start` leaves those of options and rule as they begin."""
    torch.manual_seed(0)
    net = NETWORKS[kind](residual=rule, **chosen).double().eval()
    kept = added(net) | gate_names(net) if at_start else set()
    own, generator = added(net), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in sorted(net.named_parameters(), key=lambda pair: (pair[0] in own, pair[0])):
            noise = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if name not in kept:
                parameter.add_(noise)
    return net


def inputs(net: Backbone) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    given = {"x": torch.randn(2, *net.input_shape, generator=generator).double(), "t": torch.tensor([5, 700])}
    if net.num_classes:
        given["y"] = torch.tensor([0, 2])
    if net.context_dim is not None:
        given["context"] = torch.randn(2, 4, net.context_dim, generator=generator).double()
    return given


def gradients(net: Backbone) -> dict[str, Tensor]:
    net.zero_grad()
    with keyed(0, POSITIONS):
        (net(**inputs(net)) - 1).square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


# -- the formulas, in loops


def norm(x: Array, eps: float = 1e-6) -> Array:
    return (x - x.mean()) / math.sqrt(((x - x.mean()) ** 2).mean() + eps)


def linear(layer: nn.Linear, x: Array) -> Array:
    weight, bias = layer.weight.detach().numpy(), layer.bias
    return weight @ x + (0 if bias is None else bias.detach().numpy())


def attention(layer: nn.Module, tokens: Array, first: Array | None) -> tuple[Array, Array]:
    """Of one sequence [N, D]: the output, and the values before they were mixed with the `first` ones."""
    n, d = tokens.shape
    rows = np.stack([linear(layer.qkv, token) for token in tokens])
    q, k, own = rows[:, :d], rows[:, d : 2 * d], rows[:, 2 * d :]
    lam = 0.0 if first is None else float(layer.value_lambda)
    v = own if first is None else lam * first + (1 - lam) * own
    out, wide = np.zeros((n, d)), d // layer.num_heads
    for h in range(layer.num_heads):
        part = slice(h * wide, (h + 1) * wide)
        for i in range(n):
            scores = [math.exp(q[i, part] @ k[j, part] / math.sqrt(wide)) for j in range(n)]
            out[i, part] = sum(s / sum(scores) * v[j, part] for j, s in enumerate(scores))
    return np.stack([linear(layer.proj, token) for token in out]), own


class Loops:
    """A network's blocks sequence by sequence; the residual rule, the embeddings and the last layer are its own."""

    def __init__(self, net: Backbone, drawn: Array | None) -> None:
        self.net, self.on, self.drawn = net, net.options, drawn
        self.first: dict[tuple[str, int], Array] = {}
        self.unit = 0

    def branch(self, each: Callable[[int, Array], Array]) -> Callable[[Tensor], Tensor]:
        """A branch over rows [R, N, D] from what it does to one, behind its norm; R is a multiple of the samples."""
        unit, self.unit = self.unit, self.unit + 1

        def run(h: Tensor) -> Tensor:
            rows = []
            for r, tokens in enumerate(h.detach().numpy()):
                f = each(r, np.asarray(tokens))
                rows.append(f if self.drawn is None else f * self.drawn[r * 2 // len(h), unit])
            return torch.from_numpy(np.stack(rows))

        return run

    def attend(self, layer: nn.Module, kind: str, r: int, tokens: Array) -> Array:
        first = self.first.get((kind, r)) if self.on.value_residual else None
        out, own = attention(layer, tokens, first)
        self.first.setdefault((kind, r), own)
        return out

    def scale(self, number: int) -> float:
        return 1 / math.sqrt(number + 1) if self.on.lns else 1.0

    def dit_block(self, stream: Any, number: int, c: Tensor, e: Tensor, kind: str = "space") -> Any:
        block = self.net.blocks.get_submodule(str(number))
        made = [np.split(linear(block.adaLN_modulation[1], row), 6) for row in c.detach().numpy()]
        scale = self.scale(number)

        def ready(r: int, tokens: Array, shift: int) -> Array:
            return np.stack([norm(x) * scale * (1 + made[r][shift + 1]) + made[r][shift] for x in tokens])

        def mlp(r: int, tokens: Array) -> Array:
            hidden = [torch.from_numpy(linear(block.mlp.fc1, x)) for x in ready(r, tokens, 3)]
            return np.stack([linear(block.mlp.fc2, nn.functional.gelu(x, approximate="tanh").numpy()) for x in hidden])

        gates = [torch.from_numpy(np.stack([m[i] for m in made])) for i in (2, 5)]
        attend = self.branch(lambda r, x: self.attend(block.attn, kind, r, ready(r, x, 0)))
        stream = block.attn_unit(stream, attend, gates[0], e)
        return block.mlp_unit(stream, self.branch(mlp), gates[1], e)

    def join(self, stream: Any, skips: list[Tensor], number: int, depth: int) -> Any:
        """W [x; k^j s_j] token by token, W = [I, 0] and what is stored."""
        j = depth - 1 - number
        if self.on.long_skip is None or j >= depth // 2:
            return stream
        layer = self.net.blocks.get_submodule(str(number)).skip_linear
        weight = layer.weight.detach().numpy() + np.eye(*layer.weight.shape)
        x, s = self.net.stack.close(stream).detach(), self.on.long_skip**j * skips[j].detach()
        both = torch.cat([x, s], dim=-1).numpy()
        mixed = [[weight @ token + layer.bias.detach().numpy() for token in row] for row in both]
        return self.net.stack.open(torch.from_numpy(np.array(mixed)))

    def dit(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        net, skips = self.net, []
        e = net.t_embedder(t)
        c = nn.functional.silu(e + net.y_embedder(y))
        stream = net.stack.open(net.x_embedder(x) + net.pos_embed)
        for number in range(net.depth):
            stream = self.dit_block(self.join(stream, skips, number, net.depth), number, c, e)
            skips.append(net.stack.close(stream))
        return net.final_layer(net.stack.close(stream, e), c)

    def latte(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Its stream is one tensor, [B, F, N, D] between blocks."""
        net, skips = self.net, []
        e = net.t_embedder(t)
        c = nn.functional.silu(e + net.y_embedder(y))
        z = (net.x_embedder(x.flatten(0, 1)) + net.pos_embed).unflatten(0, (len(x), -1))
        for number in range(net.depth):
            turned = z.transpose(1, 2) if number % 2 else z
            rows = turned.shape[1]
            other = [(s.transpose(1, 2) if number % 2 else s).flatten(0, 1) for s in skips]
            s = turned.flatten(0, 1) + (net.temp_embed if number == 1 else 0)
            s = self.join(s, other, number, net.depth)
            again, e_rows = c.repeat_interleave(rows, dim=0), e.repeat_interleave(rows, dim=0)
            s = self.dit_block(s, number, again, e_rows, "time" if number % 2 else "space")
            z = s.unflatten(0, (len(x), rows))
            z = z.transpose(1, 2) if number % 2 else z
            skips.append(z)
        frames = z.flatten(0, 1)
        return net.final_layer(frames, c.repeat_interleave(z.shape[1], dim=0))

    def uvit(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        net, skips, seen = self.net, [], []
        hook = net.in_blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
        net(x, t, y)
        hook.remove()
        stream, e = seen[0]
        for number, block in enumerate(net.blocks):
            if block.skip_linear is not None:
                stream = net.stack.open(block.mixed(net.stack.close(stream), skips.pop()))
            stream = self.uvit_block(stream, block, number, e)
            if block in list(net.in_blocks):
                skips.append(net.stack.close(stream))
        return net.norm(net.stack.close(stream, e))[:, net.extras :]

    def uvit_block(self, stream: Any, block: nn.Module, number: int, e: Tensor) -> Any:
        def ready(layer: nn.LayerNorm, tokens: Array) -> Array:
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            return np.stack([self.scale(number) * (weight * norm(x, 1e-5) + bias) for x in tokens])

        def mlp(r: int, tokens: Array) -> Array:
            hidden = [torch.from_numpy(linear(block.mlp.fc1, x)) for x in ready(block.norm2, tokens)]
            return np.stack([linear(block.mlp.fc2, nn.functional.gelu(x).numpy()) for x in hidden])

        attend = self.branch(lambda r, x: self.attend(block.attn, "", r, ready(block.norm1, x)))
        stream = block.attn_unit(stream, attend, None, e)
        return block.mlp_unit(stream, self.branch(mlp), None, e)


@pytest.mark.parametrize(
    ("kind", "rule"), [("dit", "gated"), ("dit", "hc"), ("dit", "delta"), ("latte", "gated"), ("uvit", "hc")]
)
@torch.no_grad()
def test_all_options_together_are_their_formulas(kind: str, rule: str) -> None:
    net = network(kind, rule, **options(kind, rule)).train()
    given = inputs(net)
    with keyed(0, POSITIONS):
        drawn = torch.cat(draws(net, net.blocks, 2, torch.device("cpu")), dim=1).numpy().astype(np.float64)
        assert (drawn == 0).any()
        assert (drawn > 0).any(axis=0).all()  # so that nothing is compared with nothing
        seen: list[Tensor] = []
        last = net.decoder_pred if kind == "uvit" else net.final_layer
        hook = last.register_forward_hook(lambda _, given, out: seen.append(given[0] if kind == "uvit" else out))
        net(**given)
        hook.remove()
        found = getattr(Loops(net, drawn), kind)(**given)
    expected = seen[0][:, net.extras :] if kind == "uvit" else seen[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


# -- where they start, what they cost


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("dit", "gated"), ("dit", "hc"), ("dit", "delta"), ("dit_text", "gated"), ("latte", "hc"), ("uvit", "hc")],
)
@torch.no_grad()
def test_values_and_long_skips_start_plain_to_the_last_bit_and_on_the_same_body(kind: str, rule: str) -> None:
    chosen = {name: value for name, value in options(kind, rule).items() if name in ("value_residual", "long_skip")}
    net, plain = (network(kind, rule, at_start=True, **o) for o in (chosen, {}))
    own, state = added(net), net.state_dict()
    assert state.keys() - plain.state_dict().keys() == own
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    given = inputs(net)
    assert torch.equal(net(**given), plain(**given))
    low = {name: value.float() if value.is_floating_point() else value for name, value in given.items()}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.float()(**low), plain.float()(**low))
    assert not torch.equal(network(kind, rule, **chosen)(**given), net.double()(**given))


def test_the_page_says_what_they_start_as_cost_and_go_with() -> None:
    page = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8").partition("## Beside any rule")[2]
    lines = [[cell.strip() for cell in line.split("|")[2:6]] for line in page.splitlines() if "`backbone." in line[:60]]
    rows = {key.strip("`").removeprefix("backbone.").partition("="): rest for key, *rest in lines if "=" in key}
    assert [name for name, _, _ in rows] == [field.name for field in dataclasses.fields(Options)]
    with torch.device("meta"):
        net = DiT.named("DiT-XL/2", **EVERY)
    own = {name: parameter.numel() for name, parameter in net.named_parameters() if name in added(net)}
    kinds = {"DiT": NETWORKS["dit"], "Latte": NETWORKS["latte"], "U-ViT": NETWORKS["uvit"], "U-Net": unet}
    for (name, _, value), (start, parameters, where) in rows.items():
        chosen = {name: yaml.safe_load(value)}
        plain, fresh = network("dit"), network("dit", at_start=True, **chosen)
        fresh.load_state_dict(plain.state_dict(), strict=False)
        assert torch.equal(fresh(**inputs(fresh)), plain(**inputs(plain))) == (start == "plain")
        assert sum(count for key, count in own.items() if option_of(key) == name) == int(parameters.replace(",", ""))
        found = []
        for kind, build in kinds.items():
            with contextlib.suppress(ValueError):
                build(**chosen)
                found.append(kind)
        assert ", ".join(found) == where
    # of the four attentions of a Latte two are the first of their kind; a U-ViT of depth 4 has five blocks
    assert [len(added(network(kind, value_residual=True))) for kind in ("latte", "uvit")] == [2, 4]


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_of_an_option_learns_from_the_start(kind: str) -> None:
    net = network(kind, at_start=True, **options(kind) | {"stochastic_depth": 0.0})
    grads, own = gradients(net), added(net)
    assert own
    assert [name for name in own if not grads[name].any()] == []
    torch.manual_seed(0)
    official = NETWORKS[kind](**options(kind) | {"stochastic_depth": 0.0}).double()
    optimizer = torch.optim.AdamW(official.parameters(), lr=1e-2)
    for _ in range(4):
        grads = gradients(official)
        optimizer.step()
    assert [name for name in own if not grads[name].any()] == []


# -- blocks that are computed again, compiled, left out


@pytest.mark.parametrize("kind", NETWORKS)
def test_checkpointed_blocks_give_the_same(kind: str) -> None:
    net = network(kind, "hc", **options(kind)).train()
    again = copy.deepcopy(net)
    for block in again.blocks:
        plain = block.forward
        block.forward = lambda *a, plain=plain, **k: checkpoint(plain, *a, use_reentrant=False, **k)
    expected = gradients(net)
    for name, grad in gradients(again).items():
        assert torch.equal(grad, expected[name]), name


@pytest.mark.parametrize("kind", ["dit", *(pytest.param(k, marks=pytest.mark.full) for k in ("latte", "uvit"))])
def test_blocks_compile_without_a_graph_break_once_for_all_depths(kind: str) -> None:
    torch._dynamo.reset()
    net = network(kind, **options(kind)).train()
    expected = gradients(net)
    torch._dynamo.utils.counters.clear()
    for block in net.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    for name, grad in gradients(net).items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-10, atol=1e-12)
    # the first block, one with the first values, one with a long skip; of a Latte in either layout
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= (6 if kind == "latte" else 3)


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_measuring_and_leaving_units_out_still_work(kind: str) -> None:
    net = network(kind, **options(kind))
    given = inputs(net)
    expected = net(**given).detach()
    count = len(list(units(net)))
    results = list(stopped_early(net, lambda: net(**given)))
    assert len(results) == count + 1
    assert torch.equal(results[-1], expected)
    # without the first attention the next one is the first
    assert all(result.isfinite().all() and not torch.equal(result, expected) for result in
               each_left_out(net, lambda: net(**given)))  # fmt: skip
    with probe(net) as rows:
        measured = net(**given)
        measured.square().mean().backward()
    assert torch.equal(measured, expected)
    assert (rows.grad[:, 0] > 0).all()


def test_the_mixing_of_depth_is_the_rules_alone() -> None:
    net = network("dit", value_residual=True, lns=True)
    plain = network("dit")
    for (_, unit), (_, own) in zip(units(net), units(plain), strict=True):
        own.load_state_dict(unit.state_dict())
    found, expected = (depth_mixing(n, lambda n=n: n(**inputs(n))) for n in (net, plain))
    torch.testing.assert_close(found, expected)
    assert not has_mixing(network("dit", long_skip=0.5))


# -- stochastic depth


def table(net: nn.Module, rows: int) -> Tensor:
    return torch.cat(draws(net, net.blocks, rows, torch.device("cpu")), dim=1)


def test_draws_depend_on_seed_position_and_unit_alone() -> None:
    net = network("dit", stochastic_depth=0.8).train()
    with keyed(1, range(8)):
        whole = table(net, 8)
    parts = []
    for positions in ([0, 1, 2], [3], [4, 5, 6, 7]):
        torch.rand(3)
        with keyed(1, torch.tensor(positions)):
            parts.append(table(net, len(positions)))
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple((column == 0).tolist()) for column in whole.T[2:]}) > 3
    with keyed(2, range(8)):
        assert not torch.equal(table(net, 8), whole)
    with keyed(1, range(8)), pytest.raises(ValueError, match="positions of 8 samples, and given 2"):
        net(**inputs(net))
    torch.manual_seed(0)
    first = table(net, 8)
    assert not torch.equal(table(net, 8), first)
    torch.manual_seed(0)
    assert torch.equal(table(net, 8), first)


def test_rates_grow_with_depth_and_the_mean_stays() -> None:
    net = network("dit", stochastic_depth=0.8).train()
    with keyed(0, range(40_000)):
        drawn = table(net, 40_000).double()
    rates = torch.linspace(0, 0.8, 8, dtype=torch.float64)
    torch.testing.assert_close((drawn == 0).double().mean(dim=0), rates, rtol=0, atol=0.01)
    torch.testing.assert_close(drawn.mean(dim=0), torch.ones(8, dtype=torch.float64), rtol=0, atol=0.05)
    assert (drawn[:, 0] == 1).all()
    torch.testing.assert_close(drawn.amax(dim=0), 1 / (1 - rates), rtol=1e-6, atol=0)
    gone = network("dit", stochastic_depth=1.0).train()
    assert not table(gone, 5)[:, -1].any()
    assert table(gone, 5).isfinite().all()


def test_evaluation_drops_nothing() -> None:
    net, plain = network("latte", stochastic_depth=0.8), network("latte")
    given = inputs(net)
    assert torch.equal(net(**given), plain(**given))
    assert not torch.equal(net.train()(**given), plain(**given))


def test_images_beside_a_clip_share_its_draws() -> None:
    net = network("latte", **EVERY).train()
    given = inputs(net)
    joint = given | {"x": torch.cat([given["x"], given["x"][:, :2]], dim=1)}
    with keyed(0, POSITIONS):
        alone, both = net(**given), net(**joint)
    torch.testing.assert_close(both[:, :3], alone, rtol=1e-9, atol=1e-12)
    labels = given | {"x": joint["x"], "y": torch.tensor([[0, 0, 0], [2, 2, 2]])}
    with keyed(0, POSITIONS):
        torch.testing.assert_close(net(**labels), both, rtol=1e-9, atol=1e-12)


# -- refusals


def unet(**chosen: Any) -> UNet:
    return UNet(8, 2, 2, 8, (1, 2), num_heads=1, norm_num_groups=4, **chosen)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NETWORKS["dit"](residual="delta", **SKIPS), r"long_skip=0\.5 with residual='delta': what its"),
        (lambda: NETWORKS["uvit"](**SKIPS), r"long_skip=0\.5 is for networks without .* its own, skip"),
        (lambda: Latte(**SIZES, depth=4, num_frames=1, **SKIPS), "num_frames=1 leaves those out; pass long_skip"),
        (lambda: NETWORKS["dit"](long_skip=0.0), r"long_skip=0\.0 must be above 0"),
        (lambda: NETWORKS["dit"](stochastic_depth=1.5), r"stochastic_depth=1\.5 must be between 0 and 1"),
        *(
            (lambda o=o: unet(**o), f"{next(iter(o))}=.* cannot be had in a U-Net: ")
            for o in ({"value_residual": True}, SKIPS, {"lns": True}, {"stochastic_depth": 0.1})
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_reason(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# -- in a run


def composed(*overrides: str) -> Any:
    found = compose_config("train", [*overrides, "~metric"], [])
    validate(found.cfg, "train", found.sources)
    return found.cfg


def test_a_run_with_all_options_does_not_depend_on_how_its_batches_are_split(tmp_path: Path) -> None:
    chosen = [f"backbone.{name}={str(value).lower()}" for name, value in EVERY.items()]
    cfg = composed(*chosen, "backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2")
    weights = []
    for accumulate in (1, 2):
        module = builder.module(cfg, "pixels")
        assert module.net.options == Options(**EVERY)
        torch.manual_seed(accumulate)  # which draws nothing
        fit(module, tmp_path, steps=2, accumulate=accumulate, batch_size=8)
        weights.append(torch.cat([p.detach().flatten() for p in module.net.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_the_preflight_refuses_with_the_same_sentences() -> None:
    for overrides, message in (
        (["exp=digits_unet_gated", "backbone.lns=true"], r"backbone\.lns=True cannot be had in a U-Net"),
        (["backbone.long_skip=-1"], r"backbone\.long_skip=-1.* must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            composed(*overrides)
