"""Folded networks compute what the gated ones did, are plain, and what cannot fold is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import DiT, Latte, UNet, fold, gate
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import Residual, units
from tests.helpers import covering, is_gate

diffusers = pytest.importorskip("diffusers", reason="U-Nets are diffusers'")

LDM: dict[str, Any] = {
    "image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [2, 1],
    "num_res_blocks": 1, "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
TEXT = {"use_spatial_transformer": True, "context_dim": 24}


def shaken(net: nn.Module, gates: float = 0.3) -> nn.Module:
    """Every weight random, the ones that start at zero too, and every gate away from its start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_((gates if is_gate(name) else 0.05) * torch.randn(p.shape, generator=generator))
    return net.eval()


def inputs(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    given = {"x": torch.randn(2, 3, 8, 8, generator=generator), "t": torch.tensor([3, 700])}
    if kind == "text":
        given["context"] = torch.randn(2, 5, 24, generator=generator)
    if kind == "labels":
        given["y"] = torch.tensor([0, 4])
    return given


def unet(kind: str, residual: str | Residual) -> UNet:
    torch.manual_seed(0)
    options: dict[str, Any] = {"plain": {}, "text": TEXT, "labels": {"num_classes": 5, "resblock_updown": True}}[kind]
    return shaken(UNet(**LDM, **options, residual=residual))  # type: ignore[return-value]


def stock(plain: nn.Module, kind: str) -> Tensor:
    """diffusers' own forward."""
    given = inputs(kind)
    names = {"context": "encoder_hidden_states", "y": "class_labels"}
    return plain(given.pop("x"), given.pop("t"), **{names[k]: v for k, v in given.items()}).sample


@pytest.mark.parametrize(
    ("kind", "rule"),
    covering(["text", "plain", "labels"], ["gated", "rezero", "resnet", "scalar"], whole=[(..., "gated")]),
)
def test_a_folded_unet_is_diffusers_own_and_computes_the_same(kind: str, rule: str, tmp_path: Path) -> None:
    residual = Residual("gated", granularity="scalar") if rule == "scalar" else rule
    net = unet(kind, residual)
    expected = net(**inputs(kind))
    plain = fold(net)
    assert type(plain) is (diffusers.UNet2DConditionModel if kind == "text" else diffusers.UNet2DModel)
    assert not any(is_gate(k) for k in plain.state_dict())
    assert ((stock(plain, kind) - expected).abs().max() / expected.std()).item() < 1e-5
    assert torch.equal(net(**inputs(kind)), expected), "folding changed the network itself"
    plain.save_pretrained(tmp_path)
    again = type(plain).from_pretrained(tmp_path)
    assert torch.equal(stock(again, kind), stock(plain, kind))


def test_fold_undoes_gate() -> None:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",),
    ).eval()
    before, config = net(inputs("plain")["x"], 3).sample, dict(net.config)
    plain = fold(gate(net))
    assert type(plain) is diffusers.UNet2DModel
    assert dict(plain.config) == config
    assert torch.equal(plain(inputs("plain")["x"], 3).sample, before)
    assert gate(plain) is plain


def test_beta_of_skip_folds_and_what_does_not_is_named() -> None:
    net = unet("text", "skip")
    for _, unit in units(net):
        nn.init.ones_(unit.alpha)
    expected = net(**inputs("text"))
    assert ((stock(fold(net), "text") - expected).abs().max() / expected.std()).item() < 1e-5
    net.net.mid_block.resnets[1].unit.alpha.data[0] = 1.5
    with pytest.raises(ConfigError, match=r"net\.mid_block\.resnets\.1\.unit cannot fold.*moves by 0\.5"):
        fold(net)
    with pytest.raises(ConfigError, match=r"net\.down_blocks\.0\.\S+ cannot fold.*beta.*multiplied by the"):
        fold(unet("plain", Residual(beta_form="linear")))
    with pytest.raises(ConfigError, match=r"cannot fold.*alpha"):
        fold(unet("plain", "adaln"))
    with pytest.raises(ValueError, match="no residual units"):
        fold(nn.Linear(2, 2))


@pytest.mark.parametrize("kind", [DiT, Latte])
def test_a_transformer_folds_alpha_and_names_the_beta_that_its_adaln_gate_hides(kind: type[DiT]) -> None:
    sizes: dict[str, Any] = {
        "input_size": 4, "patch_size": 2, "in_channels": 2, "hidden_size": 16, "depth": 2, "num_heads": 2
    }  # fmt: skip
    if kind is Latte:
        sizes |= {"num_frames": 2, "extras": 2}
    net = shaken(kind(**sizes, num_classes=3))
    for _, unit in units(net):
        nn.init.zeros_(unit.beta)
    x, t, y = torch.randn(2, *net.input_shape), torch.tensor([3, 700]), torch.tensor([0, 3])
    plain = fold(net)
    assert type(plain) is kind
    assert plain.state_dict().keys() == kind(**sizes, num_classes=3, residual="resnet").state_dict().keys()
    torch.testing.assert_close(plain(x, t, y), net(x, t, y), rtol=1e-4, atol=1e-5)
    net.blocks[1].mlp_unit.beta.data[0] = 0.5
    with pytest.raises(ConfigError, match=r"blocks\.1\.mlp_unit cannot fold: its beta.*adaLN gate.*beta_form=none"):
        fold(net)
    without = shaken(kind(**sizes, num_classes=3, residual=Residual(beta_form="none")))
    torch.testing.assert_close(fold(without)(x, t, y), without(x, t, y), rtol=1e-4, atol=1e-5)
