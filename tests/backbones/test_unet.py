"""The U-Nets: exact sizes, the plain network bit for bit under every rule, conditions, starts, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from neural_rdm import UNet
from neural_rdm.backbones.unet import UNETS
from neural_rdm.dynamics.probe import probe
from neural_rdm.residual import Residual, make_plain, units
from tests.helpers import FIVE, covering, is_gate

pytest.importorskip("diffusers", reason="the U-Nets are diffusers'")

TINY: dict[str, Any] = {
    "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [2, 1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
TEXT: dict[str, Any] = {"use_spatial_transformer": True, "context_dim": 24}
ADM: dict[str, Any] = {"num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True}
X, T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])

#: parameters of the official networks, without class embedders
COUNTS = {
    "LDM-4": 400_920_579,
    "LDM-8": 394_984_196,
    "LDM-4-unconditional": 274_056_163,
    "LDM-text-to-image": 872_300_484,
    "ADM-256": 553_838_086,
}
ADM_OTHERS = {
    "256 unconditional": ({"num_classes": None}, 552_814_086),
    "64": (
        {"image_size": 64, "model_channels": 192, "channel_mult": (1, 2, 3, 4), "num_res_blocks": 3,
         "attention_resolutions": (2, 4, 8)},
        295_904_454,
    ),
}  # fmt: skip


def gates_of(net: nn.Module) -> int:
    return sum(2 * unit.dim_out for _, unit in units(net))


@pytest.mark.parametrize("name", list(UNETS))
def test_published_networks_have_their_exact_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        net = UNet.named(name)
        embedded = UNet.named(name, num_context_classes=1000, class_dropout_prob=0.1) if name == "LDM-4" else net
    sizes = {k: p.numel() for k, p in net.named_parameters()}
    assert sum(n for k, n in sizes.items() if not is_gate(k)) == COUNTS[name]
    assert sum(n for k, n in sizes.items() if is_gate(k)) == gates_of(net) > 0
    if embedded is not net:  # LDM's class embedder: 1001 x 512
        assert sum(p.numel() for p in embedded.parameters()) - sum(sizes.values()) == 512_512


@pytest.mark.parametrize(("options", "count"), list(ADM_OTHERS.values()), ids=list(ADM_OTHERS))
def test_other_networks_of_adm_have_theirs(options: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        net = UNet.named("ADM-256", **options, residual="resnet")
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(("kind", "rule"), covering(["ldm", "text", "adm"], FIVE, whole=[("text", ...)]))
def test_every_rule_is_the_plain_network_bit_for_bit_at_its_plain_start(kind: str, rule: str) -> None:
    options = {"ldm": {}, "text": TEXT, "adm": ADM}[kind]
    torch.manual_seed(0)
    plain = UNet(**TINY, **options, residual="resnet")
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    net = UNet(**TINY, **options, residual=rule)
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert all(is_gate(k) for k in missing)
    make_plain(net)
    condition = {"context": torch.randn(2, 4, 24)} if options is TEXT else {}
    condition |= {"y": torch.tensor([0, 4])} if options is ADM else {}
    out = plain(X, T, **condition)
    assert out.abs().min() > 0
    assert torch.equal(net(X, T, **condition), out)


def test_a_fresh_network_predicts_zero_and_learns_everywhere_within_two_steps() -> None:
    """The official zeros in series with the rule's own start leave nothing dead, rezero included."""
    for rule in FIVE:
        torch.manual_seed(0)
        net = UNet(**TINY, **TEXT, residual=rule)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        context, moved = torch.randn(2, 4, 24), set()
        for step in range(4):
            with probe(net) as rows:
                out = net(X, T, context=context)
            if step == 0:
                assert not out.any()
            (out - X).square().mean().backward()
            assert rows.grad.isfinite().all()
            assert bool(rows.grad.any()) == (step > 0)
            moved |= {k for k, p in net.named_parameters() if p.grad is not None and bool(p.grad.any())}
            optimizer.step()
            optimizer.zero_grad()
        # the key's bias cancels in the softmax where attention has one (bare attention); here it has none
        assert {k for k, _ in net.named_parameters()} - moved == set(), rule


def test_the_class_is_the_one_token_of_the_context() -> None:
    net = UNet(**TINY, **TEXT, num_context_classes=4, class_dropout_prob=0.1)
    nn.init.normal_(net.net.conv_out.weight)
    for p in net.net.parameters():
        p.data.add_(0.05 * torch.randn(p.shape))
    assert (net.num_classes, net.null_class, net.context_dim) == (4, 4, None)
    assert net.class_embedder.embedding.weight.shape == (5, 24)
    out = net(X, T, y=torch.tensor([0, 4]))
    token = net.class_embedder.embedding.weight[[0, 4]][:, None]
    assert torch.equal(out, net.net(X, T, encoder_hidden_states=token).sample)
    with pytest.raises(ValueError, match="called without labels"):
        net(X, T)
    with pytest.raises(ValueError, match="called with a text, context"):
        net(X, T, y=torch.tensor([0, 1]), context=torch.randn(2, 1, 24))


def test_padding_of_a_context_changes_nothing() -> None:
    torch.manual_seed(0)
    net = UNet(**TINY, **TEXT)
    for p in net.parameters():
        p.data.add_(0.05 * torch.randn(p.shape))
    context, mask = torch.randn(2, 6, 24), torch.tensor([[True] * 4 + [False] * 2] * 2)
    other = torch.where(mask[..., None], context, 100 * torch.randn(2, 6, 24))
    out = net(X, T, context=context, context_mask=mask)
    torch.testing.assert_close(net(X, T, context=other, context_mask=mask), out)
    torch.testing.assert_close(net(X, T, context=context[:, :4]), out, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net(X, T, context=other), out)


def test_blocks_hold_every_unit_and_names_run_down_then_middle_then_up() -> None:
    net = UNet(**TINY, **TEXT)
    inside = {m for block in net.blocks for m in block.modules()}
    names = [name for name, unit in units(net) if unit in inside]
    assert names == [name for name, _ in units(net)]
    stages = [name.split(".")[1] for name in names]
    assert stages == sorted(stages, key=["down_blocks", "mid_block", "up_blocks"].index)
    assert "net.mid_block.attentions.0.unit/transformer_blocks.0.attn2_unit" in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 7}, "image_size: 7 is not a multiple of 2"),
        ({"num_heads": 2}, "give one of num_heads and num_head_channels"),
        ({"norm_num_groups": 24}, "norm_num_groups: 24 does not divide"),
        ({"num_head_channels": 24}, "a level of 32 channels does not split by 24"),
        ({"context_dim": 8}, "use_spatial_transformer=true and context_dim go together"),
        ({"num_context_classes": 8}, "a class as context needs use_spatial_transformer"),
        ({**TEXT, "num_context_classes": 8, "num_classes": 8}, "one of them must be null"),
        ({**TEXT, "resblock_updown": True}, "ADM's, which has no spatial transformer"),
        ({"num_head_channels": None, "num_heads": 2}, "levels of different widths.*only num_head_channels"),
        ({"residual": Residual(time_conditioned=True)}, "time_conditioned=true"),
    ],
)
def test_what_no_official_network_is_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{**TINY, **options})
    with pytest.raises(ValueError, match="'LDM-5' is not one of LDM-4"):
        UNet.named("LDM-5")


def test_compiled_and_checkpointed_networks_measure_and_learn_the_same() -> None:
    torch.manual_seed(0)
    net, context = UNet(**TINY, **TEXT), torch.randn(2, 4, 24)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.05 * torch.randn(p.shape))

    def step(net: UNet) -> tuple[torch.Tensor, list[torch.Tensor]]:
        net.zero_grad()
        with probe(net, branches=True) as rows:
            net(X, T, context=context).square().mean().backward()
        return rows.grad, [p.grad.clone() for p in net.parameters()]

    rows, gradients = step(net)
    checkpointed = UNet(**TINY, **TEXT)
    checkpointed.load_state_dict(net.state_dict())
    checkpointed.net.enable_gradient_checkpointing()
    again, others = step(checkpointed)
    assert torch.equal(again, rows)
    assert all(torch.equal(a, b) for a, b in zip(others, gradients, strict=True))
    net.net.mid_block.compile(backend="aot_eager", fullgraph=True)
    again, others = step(net)
    torch.testing.assert_close(again, rows, rtol=1e-5, atol=0)
    torch.testing.assert_close(others, gradients, rtol=1e-4, atol=1e-6)
