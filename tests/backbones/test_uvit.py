"""U-ViT against the official implementation, under every rule; sizes, conditions, skips, sensitivities, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from neural_rdm import UViT, fold, load_official
from neural_rdm.core.errors import CheckpointError
from neural_rdm.dynamics.probe import probe
from neural_rdm.residual import Residual, make_plain, units
from tests.helpers import FIVE, covering, is_gate, shared

TINY: dict[str, Any] = {
    "img_size": 4, "patch_size": 2, "in_chans": 2, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 4
}  # fmt: skip
TEXT: dict[str, Any] = {**TINY, "num_classes": -1, "clip_dim": 5, "num_clip_token": 6}
LATENT: dict[str, Any] = {"in_chans": 4, "num_classes": 1001}
COCO: dict[str, Any] = {"img_size": 32, "in_chans": 4, "clip_dim": 768, "num_clip_token": 77}
#: size, what else makes the published network, and its parameters
COUNTS = {
    "CIFAR10": ("S/2", {"img_size": 32}, 44_255_328),
    "CelebA64": ("S/4", {"img_size": 64}, 44_292_228),
    "IN64 M": ("M/4", {"img_size": 64, "num_classes": 1000, "class_dropout_prob": 0.0}, 130_940_292),
    "IN64 L": ("L/4", {"img_size": 64, "num_classes": 1000, "class_dropout_prob": 0.0}, 286_827_652),
    "IN256 L": ("L/2", {"img_size": 32, **LATENT}, 286_763_172),
    "IN256 H": ("H/2", {"img_size": 32, **LATENT, "conv": False}, 500_832_016),
    "IN512 L": ("L/4", {"img_size": 64, **LATENT}, 286_861_524),
    "IN512 H": ("H/4", {"img_size": 64, **LATENT, "conv": False}, 500_942_656),
    "COCO S": ("S/2", COCO, 44_692_644),
    "COCO Deep": ("S-Deep/2", COCO, 58_345_636),
}


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Constructor arguments, state dict, and inputs with the output of the official network."""
    with safe_open(shared(f"golden/{name}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    return config, state, {k.removeprefix("input."): v for k, v in tensors.items() if not k.startswith("state_dict.")}


def shaken(net: UViT) -> UViT:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    return net


def inputs(net: UViT) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *net.input_shape, generator=generator)
    context = None if net.context_dim is None else torch.randn(2, 6, 5, generator=generator)
    return x, torch.tensor([5.0, 700.0]), torch.tensor([0, 3]) if net.num_classes else None, context


@pytest.mark.parametrize(("name", "rule"), covering(["uvit", "uvit_t2i"], FIVE))
def test_golden_networks_under_every_rule(name: str, rule: str) -> None:
    config, state, given = golden(name)
    net = load_official(UViT(**config, residual=rule), state)
    out = net(given["x"], given["timesteps"], given.get("y"), given.get("context"))
    assert ((out - given["output"]).abs().max() / given["output"].std()).item() < 1e-5


@pytest.mark.parametrize(("size", "options", "count"), list(COUNTS.values()), ids=list(COUNTS))
def test_published_networks_have_their_exact_number_of_parameters(
    size: str, options: dict[str, Any], count: int
) -> None:
    with torch.device("meta"):
        net = UViT.named(f"UViT-{size}", **options)
    sizes = {k: p.numel() for k, p in net.named_parameters()}
    assert sum(n for k, n in sizes.items() if not is_gate(k)) == count
    assert sum(n for k, n in sizes.items() if is_gate(k)) == 4 * net.embed_dim * (net.depth + 1)
    assert len(list(units(net))) == 2 * (net.depth + 1)


@pytest.mark.parametrize(("kind", "rule"), covering(["tiny", "text", "skipless"], FIVE, whole=[("tiny", ...)]))
def test_every_rule_is_the_plain_network_bit_for_bit_at_its_plain_start(kind: str, rule: str) -> None:
    options = {"tiny": TINY, "text": TEXT, "skipless": {**TINY, "skip": False, "mlp_time_embed": True}}[kind]
    torch.manual_seed(0)
    plain = shaken(UViT(**options, residual="resnet"))
    net = UViT(**options, residual=rule)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(is_gate(k) for k in missing)
    make_plain(net)
    assert torch.equal(net(*inputs(net)), plain(*inputs(net)))


def test_time_conditioned_gates_read_the_timestep_alone() -> None:
    torch.manual_seed(0)
    net = shaken(UViT(**TINY, residual=Residual(time_conditioned=True)))
    x, t, y, _ = inputs(net)
    out = net(x, t, y)
    for _, unit in units(net):
        unit.alpha_time.data.zero_()
    assert not torch.allclose(net(x, t, y), out)


@pytest.mark.parametrize("rule", FIVE)
def test_sensitivities_obey_their_recursion_in_float64(rule: str) -> None:
    """s_i = s_{i+1} + J^T (alpha s_{i+1}) between the two units of a block, where nothing forks (theory, section 4)."""
    torch.manual_seed(0)
    net = shaken(UViT(**TINY, residual=rule).double())
    x, t, y, _ = inputs(net)
    entries: dict[str, Tensor] = {}
    for name, unit in units(net):

        def enter(module: Any, given: tuple[Any, ...], name: str = name) -> tuple[Any, ...]:
            z = given[0].view_as(given[0])
            z.retain_grad()
            entries[name] = z
            return z, *given[1:]

        unit.register_forward_pre_hook(enter)
    with probe(net) as rows:
        net(x.double(), t, y).square().sum().backward()
    for (name, _), row in zip(units(net), rows.grad, strict=True):
        torch.testing.assert_close(row[0], entries[name].grad.square().sum(), rtol=1e-9, atol=0)
    for i, (name, _) in enumerate(units(net)):
        if name.endswith("attn_unit"):  # its exit is the entry of the block's second unit: one segment
            torch.testing.assert_close(rows.grad[i, 1], rows.grad[i + 1, 0], rtol=1e-9, atol=0)
        elif name.startswith("in_blocks"):  # a skip leaves here, so the exit collects more than the next entry
            assert not torch.allclose(rows.grad[i, 1], rows.grad[i + 1, 0], rtol=1e-3)


def test_blocks_are_in_run_order_and_skips_pair_the_ends() -> None:
    net = UViT(**TINY)
    assert net.blocks == [*net.in_blocks, net.mid_block, *net.out_blocks]
    assert [name for name, _ in units(net)][:2] == ["in_blocks.0.attn_unit", "in_blocks.0.mlp_unit"]
    seen: list[Tensor] = []
    made: list[Tensor] = []
    for block in net.in_blocks:
        block.register_forward_hook(lambda m, given, out: made.append(out[0]))
    for block in net.out_blocks:
        block.skip_linear.register_forward_pre_hook(lambda m, given: seen.append(given[0][..., TINY["embed_dim"] :]))
    net(*inputs(net)[:3])
    assert all(torch.equal(a, b) for a, b in zip(seen, reversed(made), strict=True))


def test_classes_of_the_data_and_rows_of_the_table() -> None:
    net = UViT(**TINY)
    assert (net.num_classes, net.null_class, net.label_emb.weight.shape[0]) == (3, 3, 4)
    without = UViT(**TINY, class_dropout_prob=0.0)
    assert (without.num_classes, without.null_class) == (4, None)
    assert UViT(**{**TINY, "num_classes": -1}).num_classes == 0
    text = UViT(**TEXT)
    x, t, _, context = inputs(text)
    with pytest.raises(ValueError, match="UViT reads texts of 6 tokens, and was given 4"):
        text(x, t, None, context[:, :4])


@pytest.mark.parametrize("rule", ["gated", "rezero"])
def test_all_gates_fold(rule: str) -> None:
    torch.manual_seed(0)
    net = shaken(UViT(**TINY, residual=rule))
    plain = fold(net)
    assert plain.state_dict().keys() == UViT(**TINY, residual="resnet").state_dict().keys()
    torch.testing.assert_close(plain(*inputs(net)), net(*inputs(net)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embed_dim": 32}, "the file's embed_dim is 16, the network's 32"),
        ({"depth": 6}, "the file has 4 blocks, the network 6; pass backbone.depth=4"),
        ({"num_classes": 8}, "4 rows against 8; pass pretrained.reinit=[label_emb]"),
        ({"num_classes": -1}, "one of both has classes and the other has none"),
        ({"img_size": 8}, "another resolution: pass pretrained.reinit=[pos_embed]"),
        ({"conv": False}, "set backbone.conv as the file's"),
        ({"qkv_bias": True}, "set backbone.qkv_bias"),
    ],
)
def test_weights_that_do_not_fit_say_what_to_change(changed: dict[str, Any], message: str) -> None:
    state = UViT(**TINY, residual="resnet").state_dict()
    with pytest.raises(CheckpointError) as caught:
        load_official(UViT(**{**TINY, **changed}), state)
    assert message in str(caught.value)


def test_another_resolution_keeps_the_rows_of_the_other_tokens() -> None:
    torch.manual_seed(0)
    source = shaken(UViT(**TINY, residual="resnet"))
    net = load_official(UViT(**{**TINY, "img_size": 8}), source.state_dict(), reinit=["pos_embed"])
    assert torch.equal(net.pos_embed[:, :2], source.pos_embed[:, :2])
    assert net.pos_embed.shape == (1, 2 + 16, 16)
    torch.testing.assert_close(net.pos_embed[:, 2:].mean(1), source.pos_embed[:, 2:].mean(1), rtol=0.2, atol=0.1)
    with pytest.raises(CheckpointError, match="weights of a DiT or a Latte, and not of a U-ViT"):
        load_official(net, {"blocks.0.attn.qkv.weight": torch.zeros(1)})


@pytest.mark.parametrize("labelled", [True, False])
def test_a_label_less_or_more_leaves_every_other_row_in_its_place(labelled: bool) -> None:
    torch.manual_seed(0)
    without = {**TINY, "num_classes": -1}
    source = shaken(UViT(**(TINY if labelled else without), residual="resnet"))
    net = UViT(**(without if labelled else TINY))
    own = net.pos_embed.detach().clone()
    load_official(net, source.state_dict(), reinit=["label_emb", "pos_embed"])
    assert torch.equal(net.pos_embed[:, -5:], source.pos_embed[:, -5:])  # the timestep's and four patches'
    if not labelled:
        assert torch.equal(net.pos_embed[:, :1], own[:, :1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"embed_dim": 18, "num_heads": 4}, "embed_dim: 18 must be even and a multiple of num_heads=4"),
        ({"img_size": 5}, "patch_size: 2 does not divide img_size=5"),
        ({"clip_dim": 5}, "go together"),
        ({"clip_dim": 5, "num_clip_token": 6}, "labels or a text, not both"),
        ({"residual": "gates"}, "is not one of gated"),
        ({"num_classes": 1}, "no class is left"),
    ],
)
def test_what_is_not_a_u_vit_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UViT(**{**TINY, **changed})
    with pytest.raises(ValueError, match="called without labels"):
        UViT(**TINY)(torch.zeros(1, 2, 4, 4), torch.zeros(1))
