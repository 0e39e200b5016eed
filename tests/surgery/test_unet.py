"""Official U-Net weights: golden vectors, both codes restated, the wrapping of their checkpoints, what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from neural_rdm import UNet, fold, load_official
from neural_rdm.backbones.unet import UNETS
from neural_rdm.core.errors import CheckpointError
from neural_rdm.residual import units
from tests.helpers import FIVE, shared
from tests.surgery.official_unet import OfficialUNet

diffusers = pytest.importorskip("diffusers", reason="the U-Nets are diffusers'")

SIZES: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 2,
    "channel_mult": [1, 2], "num_head_channels": 16,
}  # fmt: skip
ADM: dict[str, Any] = {"num_classes": 5, "use_scale_shift_norm": True, "resblock_updown": True, "out_channels": 6}
TEXT: dict[str, Any] = {"use_spatial_transformer": True, "context_dim": 24}


def golden() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Constructor arguments, state dict, and inputs with the output of the official network."""
    with safe_open(shared("golden/ldm_unet.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    return config, state, {k.removeprefix("input."): v for k, v in tensors.items() if not k.startswith("state_dict.")}


def official(**arguments: Any) -> OfficialUNet:
    torch.manual_seed(0)
    net = OfficialUNet(**{**SIZES, **arguments})
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.1 * torch.randn(p.shape) + (p.ndim == 1))
    return net


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 700])


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.std()).item()


@pytest.mark.parametrize("rule", FIVE)
def test_the_golden_network_under_every_rule(rule: str) -> None:
    config, state, given = golden()
    net = load_official(UNet(**config, residual=rule), state)
    out = net(given["x"], given["timesteps"], context=given["context"])
    assert difference(out, given["output"]) < 1e-5


OTHERS = [
    {}, TEXT, ADM, {**ADM, "use_new_attention_order": True}, {"num_res_blocks": 1, "channel_mult": [1, 2, 2]},
    {**TEXT, "num_heads": 2, "num_head_channels": None},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_both_codes_restated(number: int) -> None:
    options, rule = OTHERS[number], ("gated", "rezero")[number % 2]
    source = official(**options)
    net = load_official(UNet(image_size=8, **{**SIZES, **options}, residual=rule), source.state_dict())
    x, t = inputs()
    y = torch.tensor([0, 4]) if "num_classes" in options else None
    context = torch.randn(2, 3, 24) if "context_dim" in options else None
    assert difference(net(x, t, y, context), source(x, t, y, context)) < 1e-5


def test_the_two_orders_of_attention_have_the_same_names() -> None:
    """So a file cannot tell, and the configuration has to."""
    source = official(**ADM, use_new_attention_order=True)
    net = load_official(UNet(image_size=8, **{**SIZES, **ADM}), source.state_dict())
    x, t = inputs()
    y = torch.tensor([0, 4])
    assert difference(net(x, t, y), source(x, t, y)) > 1e-2


def test_the_names_are_those_of_diffusers_own_converter() -> None:
    """For the network with a context diffusers has a converter of its own: the same tensors under the same names."""
    config, state, _ = golden()
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    from neural_rdm.surgery.unet import from_official

    net = UNet(**config, residual="resnet").net
    ours = from_official(state, net)
    theirs = convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in state.items()}, net.config)
    assert ours.keys() == theirs.keys() == net.state_dict().keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def lightning(state: dict[str, Tensor], classes: int, averaged: bool) -> dict[str, Any]:
    """A checkpoint as latent diffusion's trainer writes it."""
    content = {f"model.diffusion_model.{k}": v + averaged for k, v in state.items()}
    if averaged:
        content |= {f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in state.items()}
        content |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    content |= {
        "cond_stage_model.embedding.weight": torch.arange(classes * 24.0).view(classes, 24),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 2), "betas": torch.zeros(3),
        "scale_factor": torch.tensor(0.2),
    }  # fmt: skip
    return {"epoch": 1, "global_step": 3, "state_dict": content, "callbacks": {}}


@pytest.mark.parametrize("averaged", [True, False])
def test_checkpoints_of_latent_diffusion(averaged: bool, tmp_path: Path) -> None:
    state = official(**TEXT).state_dict()
    torch.save(lightning(state, 5, averaged), tmp_path / "model.ckpt")
    net = UNet(image_size=8, **SIZES, **TEXT, num_context_classes=4, class_dropout_prob=0.1)
    load_official(net, tmp_path / "model.ckpt")
    assert torch.equal(net.class_embedder.embedding.weight, torch.arange(120.0).view(5, 24))
    assert torch.equal(net.net.conv_in.weight, state["input_blocks.0.0.weight"])
    assert torch.equal(net.net.mid_block.resnets[1].conv2.bias, state["middle_block.2.out_layers.3.bias"])
    assert all((u.alpha == 1).all() and (u.beta == 0).all() for _, u in units(net))

    fewer = UNet(image_size=8, **SIZES, **TEXT, num_context_classes=2, class_dropout_prob=0.1)
    with pytest.raises(CheckpointError, match=r"rows are 5 in the file, 3 here.*reinit=\[class_embedder\]"):
        load_official(fewer, tmp_path / "model.ckpt")
    own = fewer.class_embedder.embedding.weight.clone()
    load_official(fewer, tmp_path / "model.ckpt", reinit=["class_embedder"])
    assert torch.equal(fewer.class_embedder.embedding.weight, own)

    texts = UNet(image_size=8, **SIZES, **{**TEXT, "context_dim": 40})
    with pytest.raises(
        CheckpointError, match=r"another context: its width is 24 .* 40 here.*reinit='\[\*\.attn2\.to_k,"
    ):
        load_official(texts, tmp_path / "model.ckpt")
    own = {key: value.clone() for key, value in texts.state_dict().items()}
    load_official(texts, tmp_path / "model.ckpt", reinit=["*.attn2.to_k", "*.attn2.to_v"])
    keys = [key for key in own if ".attn2.to_k." in key or ".attn2.to_v." in key]
    assert keys
    assert all(torch.equal(texts.state_dict()[key], own[key]) for key in keys)
    assert torch.equal(texts.net.conv_in.weight, state["input_blocks.0.0.weight"])


@pytest.mark.parametrize("name", list(UNETS))
def test_every_tensor_of_the_published_networks_has_an_official_name(name: str) -> None:
    from neural_rdm.surgery.unet import from_official

    tensors = {"LDM-4": 688, "LDM-8": 626, "LDM-4-unconditional": 368, "LDM-text-to-image": 686, "ADM-256": 567}
    arguments = {k: v for k, v in UNETS[name].items() if k != "image_size"}
    with torch.device("meta"):
        net = UNet.named(name, residual="resnet")
        state = OfficialUNet(**{"num_res_blocks": 2, **arguments}).state_dict()
    assert len(state) == tensors[name]
    assert {k: v.shape for k, v in from_official(state, net.net).items()} == {
        k: v.shape for k, v in net.net.state_dict().items()
    }


def test_folders_of_diffusers_and_files_of_ours(tmp_path: Path) -> None:
    x, t = inputs()
    torch.manual_seed(0)
    source = UNet(image_size=8, **SIZES)
    with torch.no_grad():
        for p in source.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    expected = source(x, t)
    again = load_official(UNet(image_size=8, **SIZES), source.state_dict())
    assert torch.equal(again(x, t), expected), "gates of our own are kept"
    plain = fold(source)
    plain.save_pretrained(tmp_path)
    net = load_official(UNet(image_size=8, **SIZES, residual="rezero"), tmp_path)
    assert torch.equal(net(x, t), plain(x, t).sample)
    old = dict(plain.state_dict())
    for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        old = {k.replace(f".{new}.", f".{former}."): v for k, v in old.items()}
    assert torch.equal(load_official(UNet(image_size=8, **SIZES), old)(x, t), plain(x, t).sample)


def test_a_folder_of_diffusers_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    plain = fold(UNet(image_size=8, **SIZES))
    diffusers.UNet2DModel(**{**plain.config, "flip_sin_to_cos": False, "freq_shift": 1}).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"flip_sin_to_cos=False \(here True\), freq_shift=1 \(here 0\)"):
        load_official(UNet(image_size=8, **SIZES), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_channels": 64}, "model_channels is 32 in the file, 64 here"),
        ({"in_channels": 4}, "channels are 3 in the file, 4 here; set backbone.in_channels"),
        ({"out_channels": 6}, "other outputs: channels are 3 in the file, 6 here"),
        ({"num_res_blocks": 1}, "another structure: compare backbone.num_res_blocks, channel_mult"),
        ({"channel_mult": [1, 2, 2]}, "another structure"),
    ],
)
def test_what_does_not_fit_is_one_message(changed: dict[str, Any], message: str) -> None:
    state = official().state_dict()
    net = UNet(image_size=8, **{**SIZES, **changed})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_official(net, state)
    assert message in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_other_networks_are_named() -> None:
    net = UNet(image_size=8, **SIZES)
    with pytest.raises(CheckpointError, match="weights of a U-ViT, and not of a U-Net"):
        load_official(net, {"in_blocks.0.norm1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="weights of a DiT or a Latte, and not of a U-Net"):
        load_official(net, {"blocks.0.attn.qkv.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="holds no U-Net of latent or guided diffusion"):
        load_official(net, {"features.0.weight": torch.zeros(1)})
    context = UNet(image_size=8, **SIZES, **TEXT, residual="resnet")
    state = official(**TEXT).state_dict()
    wider = {k: torch.cat([v, v], 1) if k.endswith("attn2.to_k.weight") else v for k, v in state.items()}
    with pytest.raises(CheckpointError, match=r"its width is 48 in the file, 24 here; set backbone\.context_dim"):
        load_official(context, wider)
