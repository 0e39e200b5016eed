"""Our networks out: the official state dict, and diffusers' networks, where the gates allow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.unet import UNet
from neural_rdm.backbones.uvit import UViT
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import gate_names
from neural_rdm.surgery.folding import fold

if TYPE_CHECKING:
    from diffusers import ModelMixin


@torch.no_grad()
def to_official(model: DiT | UViT | UNet) -> dict[str, Tensor]:
    """The state dict of the official DiT, Latte or U-ViT that computes what `model` computes (see `fold`).

    Raises:
        ConfigError: a gate that the plain network cannot express, naming the unit, parts that it does not have, or a
            U-Net, which is diffusers' network.
    """
    if isinstance(model, UNet):
        raise ConfigError("this U-Net is diffusers' network: export it with to=diffusers")
    if isinstance(model, DiT) and (new := [k for k in model.state_dict() if k not in gate_names(model) and _ours(k)]):
        raise ConfigError(f"the official network has no {new[0]}: only one with the default options can be exported")
    return fold(model).state_dict()


def _ours(key: str) -> bool:
    """Whether the official networks have no such parameter."""
    new = ("cross_attn", "registers", "modulation", "fc1_g", "q_norm", "k_norm")  # `modulation`: of adaln=single
    return any(part in new for part in key.split("."))


@torch.no_grad()
def to_diffusers(model: DiT | UViT | UNet) -> ModelMixin:
    """A U-Net or a DiT as diffusers' network, whose output agrees.

    A U-Net is diffusers' own already: its gates are folded. (LDM's class embedder is not part of that network.) The
    scheduler that goes with it is `diffusion.scheduler_config`'s; `python -m neural_rdm.convert` writes all of them.

    diffusers divides the exponents of the timestep's frequencies by `half - 1`, the official code by `half`: stock
    DiTTransformer2DModel is off by a percent at t = 1 and useless at t = 500 for such weights. The class returned here
    is diffusers' with that one number put right, and says so in the `_class_name` of its saved configuration.

    Raises:
        ConfigError: neither a U-Net nor a class-conditional DiT with label dropout, or see `to_official`.
    """
    if isinstance(model, UNet):
        return fold(model).eval()
    from neural_rdm.surgery.diffusers_dit import OfficialDiTTransformer2DModel

    if not isinstance(model, DiT) or isinstance(model, Latte) or model.null_class is None:
        raise ConfigError(
            "diffusers has U-Nets and the class-conditional DiT alone: this network is not one, or was trained without "
            "class_dropout_prob; export it with to=official"
        )
    state = to_official(model)
    network = OfficialDiTTransformer2DModel(
        num_attention_heads=model.num_heads,
        attention_head_dim=model.hidden_size // model.num_heads,
        in_channels=model.in_channels,
        out_channels=model.out_channels,
        num_layers=len(model.blocks),
        sample_size=model.input_size,
        patch_size=model.patch_size,
        num_embeds_ada_norm=model.num_classes,
        norm_eps=1e-6,
    )
    network.load_state_dict(_diffusers_names(state, len(model.blocks)))
    return network.eval()


def _diffusers_names(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Official names -> diffusers', whose every block holds a copy of the embedders."""
    renamed = {
        f"{new}.{kind}": state[f"{old}.{kind}"]
        for old, new in (
            ("x_embedder.proj", "pos_embed.proj"),
            ("final_layer.adaLN_modulation.1", "proj_out_1"),
            ("final_layer.linear", "proj_out_2"),
        )
        for kind in ("weight", "bias")
    }
    for i in range(depth):
        ours, theirs = f"blocks.{i}", f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            renamed[f"{theirs}.norm1.emb.timestep_embedder.linear_1.{kind}"] = state[f"t_embedder.mlp.0.{kind}"]
            renamed[f"{theirs}.norm1.emb.timestep_embedder.linear_2.{kind}"] = state[f"t_embedder.mlp.2.{kind}"]
            renamed[f"{theirs}.norm1.linear.{kind}"] = state[f"{ours}.adaLN_modulation.1.{kind}"]
            for part, tensor in zip("qkv", state[f"{ours}.attn.qkv.{kind}"].chunk(3), strict=True):
                renamed[f"{theirs}.attn1.to_{part}.{kind}"] = tensor
            renamed[f"{theirs}.attn1.to_out.0.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            renamed[f"{theirs}.ff.net.0.proj.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            renamed[f"{theirs}.ff.net.2.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
        table = "embedding_table.weight"
        renamed[f"{theirs}.norm1.emb.class_embedder.{table}"] = state[f"y_embedder.{table}"]
    return renamed


def constructor(model: DiT | UViT) -> dict[str, object]:
    """The official constructor's arguments, for a JSON file beside exported weights."""
    if isinstance(model, UViT):
        options = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
        attention, out = model.mid_block.attn, model.out_blocks[0] if len(model.out_blocks) else model.mid_block
        return {
            "network": "UViT",
            **{name: getattr(model, name) for name in options},
            "qkv_bias": attention.qkv.bias is not None,
            "mlp_time_embed": not isinstance(model.time_embed, nn.Identity),
            "num_classes": model.label_emb.num_embeddings if model.num_classes else -1,
            "conv": not isinstance(model.final_layer, nn.Identity),
            "skip": out.skip_linear is not None,
            "clip_dim": model.context_dim,
            "num_clip_token": model.num_clip_token,
        }
    arguments: dict[str, object] = {
        "input_size": model.input_size,
        "patch_size": model.patch_size,
        "in_channels": model.in_channels,
        "hidden_size": model.hidden_size,
        "depth": len(model.blocks),
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "class_dropout_prob": model.class_dropout_prob,
        "num_classes": model.num_classes,
        "learn_sigma": model.learn_sigma,
    }
    if isinstance(model, Latte):
        arguments |= {"num_frames": model.num_frames, "extras": model.extras}
    return {"network": type(model).__name__, **arguments}
