"""What every residual rule must do on every backbone, whatever its stream: the five, and two whose stream is a tuple.

A further rule is added to `RULES_HERE`, and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import DiT, Latte, UNet, UViT, fold, grow, load_official
from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.dynamics import probe, sensitivities
from neural_rdm.dynamics.lens import stopped_early
from neural_rdm.dynamics.statistics import Statistics
from neural_rdm.residual import RULES, Residual, Stack, Unit, gate_names, make_plain, units
from neural_rdm.residual.stack import map_stream, tensors_of
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.recompute import recompute
from tests.residual import two_streams  # registers its rules

RIVALS = ["layerscale", "sandwich", "mvsplit", "hc", "ihc", "delta", "dar", "block_attnres", "denseformer"]
RULES_HERE = ["gated", "adaln", "skip", "resnet", "rezero", "two_streams", "history", *RIVALS]
SIZES: dict[str, Any] = {
    "input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "num_heads": 2, "num_classes": 3
}  # fmt: skip
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "dit": lambda **o: DiT(**SIZES, depth=2, **o),
    "dit_text": lambda **o: DiT(**SIZES | {"num_classes": 0}, depth=2, context_dim=5, register_tokens=2, **o),
    "latte": lambda **o: Latte(**SIZES, depth=4, num_frames=3, extras="class", **o),
    "uvit": lambda **o: UViT(
        img_size=4, patch_size=2, in_chans=2, embed_dim=16, depth=2, num_heads=2, num_classes=4, **o
    ),
    "unet": lambda **o: UNet(8, 2, 2, 8, (1, 2), 1, (1, 2), num_heads=1, norm_num_groups=4, **o),
}
SINGLE = [name for name in RULES_HERE if RULES[name].single]
CASES = [
    pytest.param(rule, net, marks=[pytest.mark.full] if rule in RIVALS and net != "dit" else [])
    for rule in RULES_HERE
    for net in NETWORKS
    if (net != "unet" or rule in SINGLE) and (net != "uvit" or RULES[rule].no_reopening is None)
]


NEVER_PLAIN = ("sandwich", "mvsplit")


def network(kind: str, residual: str | Residual, spread: float = 0.3) -> nn.Module:
    """A network whose every weight is random, the ones that start at zero too; its rule is at its start."""
    torch.manual_seed(0)
    net = NETWORKS[kind](residual=residual).double().eval()
    plain = NETWORKS[kind](residual="resnet").double()
    generator = torch.Generator().manual_seed(1)
    values = {n: spread * torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in plain.named_parameters()}
    net.load_state_dict(values, strict=False)
    return net


def moved(net: nn.Module) -> nn.Module:
    """The same with the rule's parameters away from their start."""
    generator = torch.Generator().manual_seed(2)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for name in sorted(gate_names(net)):
            parameters[name].add_(0.2 * torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64))
    return net


def inputs(net: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    given = {"x": torch.randn(2, *net.input_shape, generator=generator).double(), "t": torch.tensor([5, 700])}
    if net.num_classes:
        given["y"] = torch.tensor([0, 2])
    if net.context_dim is not None:
        given["context"] = torch.randn(2, 4, net.context_dim, generator=generator).double()
    return given


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def gradients(net: nn.Module) -> dict[str, Tensor]:
    net.zero_grad()
    net(**inputs(net)).square().mean().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_it_starts_as_it_says(rule: str, kind: str) -> None:
    net, plain = network(kind, rule), network(kind, "resnet")
    given = inputs(net)
    assert plain(**given).std() > 1e-3
    if RULES[rule].start == "identity":
        rest = network(kind, "resnet")
        for _, unit in units(rest):
            unit.off = True
        torch.testing.assert_close(net(**given), rest(**given), rtol=1e-12, atol=1e-12)
    elif RULES[rule].start == "other":
        assert relative(net(**given), plain(**given)) > 1e-2
    if RULES[rule].start != "plain":
        if rule in NEVER_PLAIN:
            with pytest.raises(ValueError, match="plain"):
                make_plain(net)
            return
        make_plain(net)
    assert relative(net(**given), plain(**given)) <= max(1e-12, RULES[rule].plain_within)


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_its_units_know_their_places_and_every_parameter_of_it_learns(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    found = [unit for _, unit in units(net)]
    assert [unit.place.index for unit in found] == list(range(len(found)))
    assert {unit.place.count for unit in found} == {len(found)}
    blocks = [unit.place.block for unit in found]
    assert blocks == sorted(blocks)
    grads, own = gradients(net), gate_names(net)
    assert {n.rpartition(".")[0] for n in own} <= {n for n, m in net.named_modules() if isinstance(m, (Unit, Stack))}
    assert [n for n in own if n not in grads or not grads[n].abs().max() > 0] == []
    groups = {g["name"]: g for g in Optimizer(weight_decay=0.1, gate_lr_scale=3.0).build(net).param_groups}
    if own:
        assert len(groups["gates"]["params"]) == len(own)
        assert (groups["gates"]["weight_decay"], groups["net"]["weight_decay"]) == (0.0, 0.1)


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_measuring_changes_nothing_and_the_rows_are_autograds(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    expected, out = gradients(net), net(**inputs(net)).detach()
    entries: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., Any]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            own = map_stream(lambda z: z.view_as(z), given[0])
            entries[name] = tensors_of(own)
            for z in entries[name]:
                z.retain_grad()
            return own, *given[1:]

        return hook

    hooks = [unit.register_forward_pre_hook(keep(name)) for name, unit in units(net)]
    gradients(net)
    for hook in hooks:
        hook.remove()
    norms = [sum(float(z.grad.square().sum()) for z in entries[name] if z.grad is not None) for name, _ in units(net)]
    net.zero_grad()
    with probe(net, branches=True) as rows, Statistics(net, bins=2) as watching:
        watching.at(inputs(net)["t"])
        measured = net(**inputs(net))
        measured.square().mean().backward()
    assert torch.equal(measured, out)
    for name, parameter in net.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(rows.grad[:, 0], torch.tensor(norms, dtype=torch.float64), rtol=1e-9, atol=1e-14)
    assert (rows.grad[:, 1:3] > 0).all()
    assert all(s.norm > 0 and s.gain is not None for s in sensitivities(net, rows.grad))
    records = watching.records()
    assert len(records) == 2 * len(norms)
    assert all(r.rms > 0 and r.growth > 0 and r.write_ratio > 0 for r in records)


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_leaving_units_out_ends_in_the_whole_network(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    results = list(stopped_early(net, lambda: net(**inputs(net))))
    assert len(results) == len(list(units(net))) + 1
    assert torch.equal(results[-1], net(**inputs(net)))
    assert all((a - b).abs().max() > 0 for a, b in pairwise(results))


@pytest.mark.parametrize(("rule", "kind"), CASES)
def test_checkpointed_blocks_and_copies_give_the_same(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    expected = gradients(net)
    again = copy.deepcopy(net)
    again.load_state_dict(net.state_dict())
    recompute(again, "full")
    again = copy.deepcopy(again)
    for name, grad in gradients(again).items():
        assert torch.equal(grad, expected[name]), name


@pytest.mark.parametrize("rule", RULES_HERE)
def test_it_says_whether_what_it_writes_at_a_token_depends_on_others(rule: str) -> None:
    """With branches that look at no other token, the first two of four are what they are whatever the others."""
    net: Any = moved(network("dit", rule))
    seen: list[Tensor] = []
    for block in net.blocks:
        block.attn = nn.Linear(16, 16).double()
    net.final_layer.register_forward_hook(lambda _, args, out: seen.append(out[:, :2].detach()))
    net(**inputs(net))
    net.registers.register_forward_hook(lambda _, args, tokens: torch.cat([tokens[:, :2], tokens[:, 2:] + 1], dim=1))
    net(**inputs(net))
    assert (relative(*seen) > 1e-9) == any(unit.across_tokens for _, unit in units(net))


@pytest.mark.parametrize("rule", RULES_HERE)
def test_a_block_compiles_without_a_graph_break(rule: str) -> None:
    torch._dynamo.reset()
    net = moved(network("dit", rule))
    expected = net(**inputs(net))
    # of the rivals the second block alone, whose stream has a past
    for block in net.blocks[rule in RIVALS :]:
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(net(**inputs(net)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rule", "kind"), [case for case in CASES if case.values[1] in ("dit", "latte", "uvit")])
def test_it_grows_without_moving_the_output_or_says_why_not(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    depth = {"dit": 5, "latte": 8, "uvit": 6}[kind]
    if RULES[rule].no_growth is not None:
        with pytest.raises(ValueError, match=RULES[rule].no_growth):
            grow(net, depth)
        return
    deep = grow(net, depth)
    found = [unit.place for _, unit in units(deep)]
    assert [place.index for place in found] == list(range(len(found)))
    torch.testing.assert_close(deep(**inputs(net)), net(**inputs(net)), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("rule", "kind"), [case for case in CASES if case.values[1] in ("dit", "uvit")])
def test_it_folds_exactly_or_says_why_not(rule: str, kind: str) -> None:
    net = moved(network(kind, rule))
    if rule not in ("gated", "resnet", "rezero", "layerscale") or (rule, kind) == ("gated", "dit"):
        with pytest.raises(ConfigError, match="cannot fold: "):
            fold(net)
        return
    plain = fold(net)
    assert not gate_names(plain)
    torch.testing.assert_close(plain(**inputs(net)), net(**inputs(net)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rule", RULES_HERE)
def test_official_weights_come_through_it_unchanged(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain = network("dit", "resnet")
    if rule in NEVER_PLAIN:
        with pytest.raises(CheckpointError, match=r"cannot be loaded: .* residual=gated can take it"):
            load_official(network("dit", rule), plain.state_dict())
        return
    net = load_official(moved(network("dit", rule)), plain.state_dict())
    if RULES[rule].plain_within:
        assert relative(net(**inputs(net)), plain(**inputs(net))) <= RULES[rule].plain_within
        assert f"under residual={rule} the output of two random samples moves by" in capsys.readouterr().out
        return
    assert capsys.readouterr().out == ""
    torch.testing.assert_close(net(**inputs(net)), plain(**inputs(net)), rtol=1e-12, atol=1e-12)


def test_what_a_rule_cannot_do_is_refused_when_the_network_is_built() -> None:
    for rule in ("two_streams", "history"):
        with pytest.raises(ValueError, match=f"{rule!r} cannot be had in a network of diffusers: its stream is sev"):
            NETWORKS["unet"](residual=rule)
    two_streams.History.no_reopening = "the history would end there"
    try:
        with pytest.raises(ValueError, match="'history' cannot be had in a U-ViT with long skips: the history would"):
            NETWORKS["uvit"](residual="history")
    finally:
        two_streams.History.no_reopening = None


def test_images_beside_clips_need_a_stream_that_can_be_joined() -> None:
    given = inputs(network("latte", "gated"))
    joint = given | {"x": torch.cat([given["x"], given["x"][:, :2]], dim=1)}
    net, plain = network("latte", "two_streams"), network("latte", "resnet")
    torch.testing.assert_close(net(**joint), plain(**joint), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="keeps a history, which cannot be joined"):
        network("latte", "history")(**joint)


def test_options_belong_to_their_rule() -> None:
    net = NETWORKS["dit"](residual=Residual("two_streams", weight=0.25))
    assert net.stack.weight.item() == 0.25
    assert net.state_dict()["stack.weight"].item() == 0.25
    with pytest.raises(ValueError, match=r"'two_streams' has no option granularity='scalar'; its options are weight"):
        Residual("two_streams", granularity="scalar")
    with pytest.raises(ValueError, match="called 'gated' exists already"):
        two_streams.rule("gated")(two_streams.History)


def test_official_weights_are_not_put_under_a_rule_that_never_computes_them() -> None:
    class Half(Unit):
        start = "other"

        def write(self, z: Any, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Any:
            return super().write(z, 0.5 * f, g, e)

        def plain_values(self) -> dict[str, float]:
            raise ValueError("it halves every write")

    net = NETWORKS["dit"](residual=Residual(Half))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="the state dict cannot be loaded: it halves every write"):
        load_official(net, network("dit", "resnet").float().state_dict())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
