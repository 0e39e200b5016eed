"""Latent diffusion's own autoencoder files as diffusers' networks: architecture and names follow from the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.weights import read_weights

_PREFIX = "first_stage_model."  # inside a diffusion model's checkpoint
_RESNET = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def autoencoder(path: str | Path, kind: str) -> Any:
    """The autoencoder in an official file, as diffusers' `AutoencoderKL` or `VQModel`.

    Raises:
        CheckpointError: a file that cannot be read, is no autoencoder, or one of the other kind.
    """
    import diffusers

    state = read_weights(path)
    if any(k.startswith(_PREFIX) for k in state):
        state = {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}
    if kind == "AutoencoderTiny" or "encoder.conv_in.weight" not in state or "decoder.conv_in.weight" not in state:
        shown = ", ".join(sorted(state)[:3])
        raise CheckpointError(
            f"first_stage.path={path} holds no autoencoder of latent diffusion (its first keys are {shown}); pass such "
            "a file for first_stage=kl_f8 or vq_f4, or a folder in diffusers' layout"
        )
    quantised = "quantize.embedding.weight" in state
    if quantised != (kind == "VQModel"):
        found, choice = ("a VQ", "vq_f4") if quantised else ("a KL", "kl_f8")
        raise CheckpointError(f"first_stage.path={path} is {found} autoencoder; choose first_stage={choice}")
    network = getattr(diffusers, kind)(**_architecture(state, quantised))
    renamed = dict(_renamed(state, len(network.config.block_out_channels)))
    missing, unexpected = network.load_state_dict(renamed, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"first_stage.path={path} is an autoencoder of an unknown form: "
            + ", ".join([f"no {k}" for k in missing[:4]] + [f"unknown {k}" for k in unexpected[:4]])
        )
    return network


def _architecture(state: Mapping[str, Tensor], quantised: bool) -> dict[str, Any]:
    levels = 1 + max(int(k.split(".")[2]) for k in state if k.startswith("encoder.down."))
    attends = [any(k.startswith(f"encoder.down.{i}.attn.") for k in state) for i in range(levels)]
    down = tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends)
    up = tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends))
    arguments: dict[str, Any] = {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "block_out_channels": tuple(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
        "layers_per_block": 1 + max(int(k.split(".")[4]) for k in state if k.startswith("encoder.down.0.block.")),
        "down_block_types": down,
        "up_block_types": up,
        "latent_channels": state["decoder.conv_in.weight"].shape[1],
    }
    if quantised:
        arguments["num_vq_embeddings"], arguments["vq_embed_dim"] = state["quantize.embedding.weight"].shape
    return arguments


def _renamed(state: Mapping[str, Tensor], levels: int) -> Iterator[tuple[str, Tensor]]:
    """Official names -> diffusers'; what belongs to the training of the autoencoder is left out."""
    for key, tensor in state.items():
        half, _, rest = key.partition(".")
        if half in ("quant_conv", "post_quant_conv", "quantize"):
            yield key, tensor
        if half not in ("encoder", "decoder"):
            continue
        part, _, inner = rest.partition(".")
        if part in ("conv_in", "conv_out"):
            yield key, tensor
        elif part == "norm_out":
            yield f"{half}.conv_norm_out.{inner}", tensor
        elif part == "mid":
            name, inner = inner.split(".", 1)
            group = "attentions.0" if name == "attn_1" else f"resnets.{int(name[-1]) - 1}"
            yield _inside(f"{half}.mid_block.{group}", inner, tensor, attention=name == "attn_1")
        else:
            level, group, inner = inner.split(".", 2)
            number = int(level) if part == "down" else levels - 1 - int(level)
            prefix = f"{half}.{part}_blocks.{number}"
            if group in ("downsample", "upsample"):
                yield f"{prefix}.{group}rs.0.{inner}", tensor
            else:
                index, inner = inner.split(".", 1)
                name = "attentions" if group == "attn" else "resnets"
                yield _inside(f"{prefix}.{name}.{index}", inner, tensor, attention=group == "attn")


def _inside(prefix: str, inner: str, tensor: Tensor, attention: bool) -> tuple[str, Tensor]:
    name, _, kind = inner.rpartition(".")
    if not attention:
        return f"{prefix}.{_RESNET.get(name, name)}.{kind}", tensor
    tensor = tensor.flatten(1) if kind == "weight" and name != "norm" else tensor  # 1 x 1 convolutions
    return f"{prefix}.{_ATTENTION.get(name, name)}.{kind}", tensor
