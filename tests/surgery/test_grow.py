"""Grown networks: the same output to the last bit, gradients in every new unit at once, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm import DiT, Latte, UViT, grow
from neural_rdm.diffusion.process import DDPM
from neural_rdm.diffusion.samplers import Sampler, sample
from neural_rdm.residual import Residual
from neural_rdm.surgery.grow import PLACEMENTS, depth_of, grown_state, plan
from tests.helpers import FIVE, covering

TINY: dict[str, Any] = {
    "input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "depth": 4, "num_heads": 2, "num_classes": 3
}  # fmt: skip
UVIT: dict[str, Any] = {
    "img_size": 4, "patch_size": 2, "in_chans": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 4
}  # fmt: skip
NETWORKS = ["dit", "dit_text", "dit_single", "dit_time", "latte", "uvit", "uvit_text", "uvit_time", "uvit_skipless"]


def network(kind: str, rule: str = "gated") -> DiT | UViT:
    """A small network, every value of it random: the gates too."""
    torch.manual_seed(0)
    residual = Residual(rule, **({"time_conditioned": True} if kind.endswith("time") and rule != "resnet" else {}))
    if kind == "latte":
        net: DiT | UViT = Latte(**TINY, num_frames=3, extras=2, residual=residual)
    elif kind.startswith("uvit"):
        changed = {"num_classes": -1, "clip_dim": 5, "num_clip_token": 6} if kind == "uvit_text" else {}
        net = UViT(**UVIT | changed, skip=kind != "uvit_skipless", residual=residual)
    else:
        options = {"dit_text": {"context_dim": 5}, "dit_single": {"adaln": "single"}}.get(kind, {})
        net = DiT(**TINY, **options, residual=residual)
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape))
    return net


def inputs(net: DiT | UViT, batch: int = 2) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *net.input_shape, generator=generator)
    context = None if net.context_dim is None else torch.randn(batch, 6, net.context_dim, generator=generator)
    y = torch.arange(batch) % 3 if net.num_classes else None
    return x, torch.linspace(5, 900, batch), y, context


#: a DiT and a U-ViT under every rule and placement (of the two ways in which a new unit starts as the identity)
GROWN = [
    *((rule, kind, "interleave") for rule, kind in covering(FIVE, NETWORKS, whole=[(..., "uvit"), ("gated", ...)])),
    *((r, k, p) for r in ("gated", "skip") for k in ("dit", "uvit") for p in PLACEMENTS[1:]),
    *(("gated", kind, p) for kind, p in covering(NETWORKS, PLACEMENTS[1:], whole=[("latte", ...)])),
]
GROWN = list(dict.fromkeys(GROWN))


@pytest.mark.parametrize(("rule", "kind", "placement"), GROWN)
def test_output_does_not_move_by_one_bit_and_new_units_learn_at_once(rule: str, kind: str, placement: str) -> None:
    net = network(kind, rule)
    if kind == "latte" and placement == "prepend":
        with pytest.raises(ValueError, match="must stay the first"):
            grow(net, 8, placement)
        return
    deep = grow(net, 8, placement)
    assert (depth_of(net), depth_of(deep)) == (4, 8)
    assert len(deep.blocks) - len(net.blocks) == 4
    out = deep(*inputs(net))
    assert torch.equal(out, net(*inputs(net)))
    out.square().mean().backward()
    for name in plan(net, 8, placement).added:
        block = deep.get_submodule(name)
        if getattr(block, "skip_linear", None) is not None:
            assert block.skip_linear.weight.grad[:, 16:].abs().max() > 0, name  # what it may learn to take of its skip
        for unit, last in block.last_layers():
            learns = unit.alpha if unit.scales_branch else last.weight
            assert learns.grad is not None
            assert learns.grad.abs().max() > 0, name


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.sampled_from(PLACEMENTS), st.sampled_from(sorted(FIVE)))
def test_any_depth(depth: int, more: int, placement: str, rule: str) -> None:
    torch.manual_seed(depth)
    net = DiT(**{**TINY, "depth": depth}, residual=rule)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    deep = grow(net, depth + more, placement)
    assert torch.equal(deep(*inputs(net)[:3]), net(*inputs(net)[:3]))
    growth = plan(net, depth + more, placement)
    kept = [old for old, new in growth.origins["blocks"] if not new]
    assert kept == list(range(depth))
    assert len(growth.added) == more


def test_interleaved_copies_stand_behind_their_originals_and_are_evenly_spread() -> None:
    net = network("dit")
    doubled = plan(net, 8).origins["blocks"]
    assert doubled == tuple((i // 2, bool(i % 2)) for i in range(8))
    assert [old for old, new in plan(net, 6).origins["blocks"] if new] == [0, 2]
    latte = plan(network("latte"), 8).origins["blocks"]
    assert latte == ((0, False), (1, False), (0, True), (1, True), (2, False), (3, False), (2, True), (3, True))


def test_copies_are_copies_of_their_neighbours() -> None:
    net = network("dit")
    deep = grow(net, 8)
    for new, old in ((1, 0), (5, 2)):
        assert torch.equal(deep.blocks[new].attn.qkv.weight, net.blocks[old].attn.qkv.weight)
        assert torch.equal(deep.blocks[new].mlp.fc2.weight, net.blocks[old].mlp.fc2.weight)
        assert not deep.blocks[new].attn_unit.alpha.any()


@pytest.mark.parametrize(
    ("placement", "ins"),
    [
        ("interleave", [(0, False), (0, True), (1, False), (1, True)]),
        ("append", [(0, False), (1, False), (0, True), (1, True)]),
        ("prepend", [(0, True), (1, True), (0, False), (1, False)]),
        ("middle", [(0, False), (0, True), (1, True), (1, False)]),
    ],
)
def test_a_u_vit_grows_in_pairs_that_one_skip_joins(placement: str, ins: list[tuple[int, bool]]) -> None:
    net = network("uvit")
    origins = plan(net, 8, placement).origins
    assert list(origins["in_blocks"]) == ins
    # the last block in is the partner of the first block out: copies stand opposite to copies, of partners
    assert list(origins["out_blocks"]) == [(1 - old, new) for old, new in reversed(ins)]
    deep = grow(net, 8, placement)
    assert isinstance(deep, UViT)
    assert deep.depth == 8
    assert UViT(**UVIT | {"depth": 8}).state_dict().keys() == deep.state_dict().keys()
    for i, (old, new) in enumerate(origins["out_blocks"]):
        mix, old_mix = deep.out_blocks[i].skip_linear, net.out_blocks[old].skip_linear
        expected = torch.cat([torch.eye(16), torch.zeros(16, 16)], dim=1) if new else old_mix.weight
        assert torch.equal(mix.weight, expected)
        assert torch.equal(mix.bias, torch.zeros(16) if new else old_mix.bias)
        assert torch.equal(deep.out_blocks[i].attn.qkv.weight, net.out_blocks[old].attn.qkv.weight)


def test_a_u_vit_without_blocks_in_pairs_cannot_grow_but_a_fresh_one_can() -> None:
    fresh = UViT(**UVIT)
    assert torch.equal(grow(fresh, 6)(*inputs(fresh)[:3]), fresh(*inputs(fresh)[:3]))
    with pytest.raises(ValueError, match="UViT grows by 2 blocks"):
        grow(fresh, 7)
    for operator in ("stack", "halved"):
        with pytest.raises(ValueError, match="mix a skip into their stream"):
            grow(fresh, 8, operator=operator)
    copied = grow(network("uvit"), 8, operator="duplicate")
    assert not torch.equal(copied(*inputs(copied)), network("uvit")(*inputs(copied)))
    assert torch.equal(copied.out_blocks[1].skip_linear.weight, copied.out_blocks[0].skip_linear.weight)


@pytest.mark.parametrize("operator", ["duplicate", "stack", "halved"])
def test_other_operators_move_the_output(operator: str) -> None:
    net = network("dit")
    deep = grow(net, 8, operator=operator)
    assert not torch.equal(deep(*inputs(net)), net(*inputs(net)))
    if operator == "stack":
        assert [old for old, _ in plan(net, 8, operator=operator).origins["blocks"]] == [0, 1, 2, 3, 0, 1, 2, 3]
    if operator == "halved":
        assert torch.equal(deep.blocks[0].attn_unit.alpha, net.blocks[0].attn_unit.alpha / 2)
        assert torch.equal(deep.blocks[1].mlp_unit.beta, net.blocks[0].mlp_unit.beta / 2)


def test_samples_of_the_grown_network_are_the_same() -> None:
    net = network("dit")
    null = {"y": torch.tensor([3])}
    drawn = [
        sample(n, DDPM(), Sampler("ddim", 4, cfg_scale=2.0), net.input_shape, 3, 0, {"y": torch.arange(3)}, null)
        for n in (net, grow(net, 9))
    ]
    assert torch.equal(*drawn)


def test_a_part_of_a_state_grows_as_the_whole_does() -> None:
    net = network("dit")
    growth = plan(net, 8)
    whole = grown_state(net, growth, net.state_dict())
    gates = {k: v for k, v in net.state_dict().items() if k.endswith(("alpha", "beta"))}
    part = grown_state(net, growth, gates)
    assert part.keys() == {k for k in whole if k.endswith(("alpha", "beta"))}
    assert all(torch.equal(v, whole[k]) for k, v in part.items())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"depth": 4}, "more than 4"), ({"depth": 8, "placement": "between"}, "interleave, append"),
        ({"depth": 8, "operator": "clone"}, "identity, duplicate"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        grow(network("dit"), **arguments)


def test_networks_that_cannot_grow_say_why() -> None:
    with pytest.raises(ValueError, match=r"all zero.*never receive a gradient"):
        grow(DiT(**TINY), 8)
    with pytest.raises(ValueError, match="all zero"):
        grow(DiT(**TINY, adaln="single"), 8)
    with pytest.raises(ValueError, match="Latte grows by 2 blocks"):
        grow(network("latte"), 7)
    with pytest.raises(ValueError, match="gated and rezero only"):
        grow(network("dit", "skip"), 8, operator="halved")
    with pytest.raises(ValueError, match="Linear cannot be grown: it states no growth"):
        grow(torch.nn.Linear(2, 2), 8)


@pytest.mark.parametrize("steps", [2, pytest.param(200, marks=pytest.mark.full)])
def test_a_network_of_1000_blocks_trains(steps: int) -> None:
    torch.manual_seed(0)
    net = DiT(4, 2, 1, 16, 1000, 2, 1.0, num_classes=2, residual="gated")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    process, losses = DDPM(), []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        y = torch.arange(8) % 2
        x = (2.0 * y - 1)[:, None, None, None] * torch.ones(8, 1, 4, 4)
        t, noise = torch.randint(0, 1000, (8,), generator=generator), torch.randn(x.shape, generator=generator)
        loss = (net(process.q_sample(x, t, noise), t, y)[:, :1] - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(torch.isfinite(torch.tensor(losses)))
    assert all(p.isfinite().all() for p in net.parameters())
    if steps >= 200:
        assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
