"""Texts and the options of later transformers, on DiT and Latte."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_rdm import DiT, Latte
from neural_rdm.backbones.attention import CrossAttention, RotaryAttention
from tests.helpers import FIVE, covering, is_gate

TINY: dict[str, Any] = {
    "input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 5
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": True}, "qk_rms": {"qk_norm": True, "norm": "rms"}, "rms": {"norm": "rms"},
    "swiglu": {"mlp": "swiglu"}, "rope": {"positions": "rope"}, "registers": {"register_tokens": 3},
    "single": {"adaln": "single"}, "math": {"attention": "math"}, "text": {"context_dim": 6},
    "rope_math": {"positions": "rope", "attention": "math"},
    "all": {
        "qk_norm": True, "norm": "rms", "mlp": "swiglu", "positions": "rope", "register_tokens": 2, "adaln": "single",
        "context_dim": 6,
    },
}  # fmt: skip


def network(kind: type[DiT], rule: str = "gated", random: bool = True, **options: Any) -> DiT:
    extra = {"num_frames": 3, "extras": "class"} if kind is Latte else {}
    torch.manual_seed(0)
    net = kind(**TINY, **extra, **options, residual=rule)
    if random:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, p in net.named_parameters():
                if p.requires_grad and not is_gate(name):
                    p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def inputs(net: DiT, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    given = {
        "x": torch.randn(2, *net.input_shape, generator=generator), "t": torch.tensor([3, 700]),
        "y": torch.tensor([0, 5]),
    }  # fmt: skip
    if net.context_dim is not None:
        given["context"] = torch.randn(2, 7, net.context_dim, generator=generator)
        given["context_mask"] = torch.arange(7) < torch.tensor([[4], [7]])
    return given


@pytest.mark.parametrize(
    ("kind", "option", "rule"),
    covering([DiT, Latte], sorted(OPTIONS), ["gated", "rezero"], whole=[(..., ..., "gated")]),
)
def test_every_option_starts_at_zero_output_and_trains_all_it_has(kind: type[DiT], option: str, rule: str) -> None:
    fresh = network(kind, rule, random=False, **OPTIONS[option])
    assert not fresh(**inputs(fresh)).any()
    net = network(kind, rule, **OPTIONS[option])
    if rule == "rezero":
        for name, p in net.named_parameters():
            if name.endswith("alpha"):
                p.data.fill_(0.5)
    out = net(**inputs(net))
    assert out.shape == (2, *net.input_shape[:-3], 6, 4, 4)
    assert out.isfinite().all()
    out.square().mean().backward()
    idle = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    # softmax does not see what is added to every key
    assert [n for n in idle if not n.endswith("k_norm.bias")] == []


@pytest.mark.parametrize("option", sorted(set(OPTIONS) - {"math"}))
def test_an_option_is_another_network(option: str) -> None:
    plain, net = network(DiT), network(DiT, **OPTIONS[option])
    shown = inputs(net)
    out = net(**shown)
    reference = plain(**{k: v for k, v in shown.items() if "context" not in k})
    assert not torch.allclose(out, reference, atol=1e-3)


def test_the_attention_kernel_does_not_change_the_result() -> None:
    plain, pinned = network(DiT), network(DiT, attention="math")
    assert plain.state_dict().keys() == pinned.state_dict().keys()
    torch.testing.assert_close(plain(**inputs(plain)), pinned(**inputs(plain)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("option", "rule"), covering(sorted(OPTIONS), ["adaln", "gated", "skip"], whole=[("all", ...)])
)
def test_plain_starts_are_bit_equal_to_resnet(option: str, rule: str) -> None:
    net, plain = network(DiT, rule, **OPTIONS[option]), network(DiT, "resnet", **OPTIONS[option])
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not is_gate(k)})
    assert torch.equal(net(**inputs(net)), plain(**inputs(net)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.integers(0, 1000))
def test_padding_never_matters(length: int, seed: int) -> None:
    net = network(Latte, context_dim=6)
    shown = inputs(net)
    shown["context_mask"] = torch.arange(7) < torch.tensor([[length], [7]])
    out = net(**shown)
    assert out.isfinite().all()
    other = shown["context"].clone()
    other[0, length:] = 100 * torch.randn(7 - length, 6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(net(**{**shown, "context": other}), out)
    if length:
        alone = net(**{k: v[:1, :length] if "context" in k else v[:1] for k, v in shown.items()})
        torch.testing.assert_close(alone, out[:1], atol=1e-5, rtol=1e-4)


def test_without_a_mask_every_token_counts() -> None:
    layer = CrossAttention(16, 6, 2)
    x, context = torch.randn(2, 4, 16), torch.randn(2, 5, 6)
    assert torch.equal(layer(x, context), layer(x, context, torch.ones(2, 5, dtype=torch.bool)))
    frames = layer(x.repeat_interleave(3, 0), context)
    torch.testing.assert_close(frames, layer(x, context).repeat_interleave(3, 0))


@pytest.mark.parametrize("rule", FIVE)
def test_a_new_text_is_silent_at_first(rule: str) -> None:
    net = network(DiT, rule, random=False, context_dim=6)
    for block in net.blocks:
        zero_projection = not block.cross_attn.proj.weight.any()
        zero_alpha = rule == "rezero" and not block.cross_unit.alpha.any()
        assert zero_projection != zero_alpha  # one zero, never two in series
    assert [n for n, _ in net.blocks[0].named_modules() if n.endswith("_unit")] == [
        "attn_unit", "cross_unit", "mlp_unit"
    ]  # fmt: skip


def test_a_shared_modulation_saves_its_parameters_and_is_the_same_function_at_first() -> None:
    with torch.device("meta"):
        block, single = (DiT.named("DiT-XL/2", adaln=adaln, residual="resnet") for adaln in ("block", "single"))
    counts = [sum(p.numel() for p in net.parameters()) for net in (block, single)]
    linear = 6 * 1152 * 1152 + 6 * 1152
    assert counts[0] - counts[1] == 28 * linear - linear - 28 * 6 * 1152
    assert counts[1] / counts[0] < 0.69
    shared = network(DiT, random=False, adaln="single")
    assert not shared(**inputs(shared)).any()


def test_rotary_scores_depend_on_distances_alone() -> None:
    torch.manual_seed(0)
    layer = RotaryAttention(16, 2, grid=(3, 5), unturned=1)
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (layer.turn(v.expand(1, 1, 16, 8))[0, 0] for v in (q, k))
    scores = (turned_q @ turned_k.T)[1:, 1:].unflatten(0, (3, 5)).unflatten(2, (3, 5))
    torch.testing.assert_close(scores[1, 2, 2, 4], scores[0, 0, 1, 2])
    torch.testing.assert_close(scores[2, 1, 0, 3], scores[2, 0, 0, 2])
    assert not torch.allclose(scores[0, 0, 0, 1], scores[0, 0, 1, 0])
    torch.testing.assert_close(turned_q[0], q)  # a register has no place
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(16))


def test_rotary_networks_have_no_table() -> None:
    assert not DiT(**TINY, positions="rope").pos_embed.any()
    latte = Latte(**TINY, num_frames=3, positions="rope")
    assert not latte.temp_embed.any()
    assert latte.blocks[1].attn.cos.shape[0] == 3


def test_swiglu_keeps_the_number_of_parameters() -> None:
    with torch.device("meta"):
        plain, net = DiT.named("DiT-S/2"), DiT.named("DiT-S/2", mlp="swiglu")
    counts = [sum(p.numel() for p in n.parameters()) for n in (plain, net)]
    assert abs(counts[1] / counts[0] - 1) < 0.01


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"norm": "batch"}, "layer, rms"), ({"mlp": "relu"}, "gelu, swiglu"), ({"positions": "alibi"}, "sincos, rope"),
        ({"attention": "fast"}, "auto, math"), ({"adaln": "none"}, "block, single"),
        ({"register_tokens": -1}, "at least 0"), ({"positions": "rope", "num_heads": 8}, "turns a head's channels"),
    ],
)  # fmt: skip
def test_unknown_options_name_the_choices(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        DiT(**{**TINY, **options})


def test_a_text_and_its_network_go_together() -> None:
    net = network(DiT)
    with pytest.raises(ValueError, match="context_dim=None was called with a text"):
        net(**inputs(net), context=torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match="context_dim=6 was called without a text"):
        network(DiT, context_dim=6)(**inputs(net))
