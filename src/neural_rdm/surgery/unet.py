"""The U-Nets of latent diffusion and guided diffusion: official weights under the names of diffusers' networks.

Both codes build the same `UNetModel`. The names follow from the structure: a diffusers network is walked in the order
in which the official one was built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from neural_rdm.backbones.unet import UNet
from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.given import read_json
from neural_rdm.surgery.adapter import Adapter, Problems, State, adapts

if TYPE_CHECKING:
    from diffusers import ModelMixin

#: parts of a ResBlock
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
#: parts of a bare attention
_ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}
#: what diffusers called the parts of an attention before
_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_FORMER = re.compile(r"(?<=\.)(query|key|value|proj_attn)(?=\.\w+$)")
#: settings of diffusers that change what a network computes, and no name or shape
_SILENT = (
    "flip_sin_to_cos", "freq_shift", "norm_eps", "act_fn", "center_input_sample", "resnet_time_scale_shift",
    "attention_head_dim", "num_attention_heads", "norm_num_groups", "downsample_padding", "mid_block_scale_factor",
    "resnet_out_scale_factor", "resnet_skip_time_act", "time_embedding_type", "only_cross_attention",
)  # fmt: skip
_LDM, _EMA, _CLASSES = "model.diffusion_model.", "model_ema.", "cond_stage_model.embedding.weight"


@adapts(UNet)
class UNetAdapter(Adapter[UNet]):
    """diffusers' network with gates; its class embedder (LDM) is none of it."""

    kind = "a U-Net"
    signs = {
        "model.diffusion_model.": "a latent-diffusion U-Net",
        "input_blocks.": "a latent-diffusion or ADM U-Net",
        "down_blocks.": "a U-Net of diffusers",
    }
    no_official = "this U-Net is diffusers' network: export it with to=diffusers"
    no_diffusers = None

    def no_growth(self, placement: str, operator: str) -> str | None:
        """No block fits anywhere else."""
        return "its blocks change width and join long skips, so none fits anywhere else; DiT, Latte and UViT can be"

    def plain(self) -> nn.Module:
        """diffusers' network."""
        return self.model.net

    def to_diffusers(self, plain: nn.Module) -> ModelMixin:
        """The folded network as it is."""
        return plain.eval()  # type: ignore[return-value]  # see `plain`

    def beside(self) -> dict[str, State]:
        """LDM's class embedder: of its rows [classes, context_dim] one is the context that the network reads."""
        if self.model.class_embedder is None:
            return {}
        return {"class_embedder": self.model.class_embedder.state_dict()}

    def notes(self) -> list[str]:
        """How to use the class embedder."""
        note = "row y of class_embedder.safetensors, [B, 1, D], is the encoder_hidden_states of class y"
        return [note] if self.beside() else []

    def check_folder(self, folder: Path) -> None:
        """Compare the configuration in a folder of diffusers with the network's: what weights alone do not tell."""
        try:
            theirs = read_json(folder / "config.json")
        except (OSError, ValueError):
            return
        config, differences = self.model.net.config, []
        levels = len(config["block_out_channels"])
        for key in _SILENT:
            found, own = theirs.get(key), config.get(key)
            if found is None or own is None:
                continue
            # a single number stands for every level
            found, own = ((list(v) if isinstance(v, list | tuple) else [v] * levels) for v in (found, own))
            if found != own:
                shown = [v[0] if len(set(v)) == 1 else v for v in (found, own)]
                differences.append(f"{key}={shown[0]} (here {shown[1]})")
        if differences:
            raise CheckpointError(f"{folder} holds a network that computes something else: {', '.join(differences)}")

    def to_ours(self, state: State, name: str) -> dict[str, Tensor]:
        """Our names (without the gates that a file does not hold) from any layout of these networks.

        Read are: latent diffusion's Lightning checkpoints (the averaged weights where there are any, and the class
        embedder of the conditioning stage), bare official state dicts, diffusers' U-Nets, and our own.
        """
        self.refuse_others(state, name)
        if any(k.startswith("net.") for k in state):
            return dict(state)
        if "conv_in.weight" in state:
            return {f"net.{_FORMER.sub(lambda m: _NAMES[m[1]], k)}": v for k, v in state.items()}
        found: dict[str, Tensor] = {}
        if any(k.startswith(_LDM) for k in state):
            if _CLASSES in state and self.model.class_embedder is not None:
                found["class_embedder.embedding.weight"] = state[_CLASSES]
            state = _averaged({k.removeprefix(_LDM): v for k, v in state.items() if k.startswith(_LDM)}, state)
        if "input_blocks.0.0.weight" not in state:
            shown = ", ".join(sorted(state)[:4])
            raise CheckpointError(f"{name} holds no U-Net of latent or guided diffusion: its first keys are {shown}")
        named = from_official(state, self.model.net, self.model.use_new_attention_order)
        return found | {f"net.{k}": v for k, v in named.items()}

    def hints(self, problems: Problems, own: State, found: State) -> list[str]:
        """What the keys tell of width, channels, context, classes and structure."""
        misshaped, lines = set(problems["misshaped"]), []

        def sizes(key: str, axis: int) -> str:
            return f"{found[key].shape[axis]} in the file, {own[key].shape[axis]} here"

        if (key := "net.time_embedding.linear_1.weight") in misshaped:
            lines.append(f"another width: model_channels is {sizes(key, 1)}; set backbone.model_channels")
            return lines
        if (key := "net.conv_in.weight") in misshaped:
            lines.append(f"another input: channels are {sizes(key, 1)}; set backbone.in_channels")
        if (key := "net.conv_out.weight") in misshaped:
            lines.append(f"other outputs: channels are {sizes(key, 0)}; set backbone.out_channels (twice in_channels: "
                         "a learned variance)")  # fmt: skip
        if keys := [k for k in misshaped if k.endswith("attn2.to_k.weight")]:
            fresh = "pretrained.reinit='[*.attn2.to_k,*.attn2.to_v]' to read another"
            lines.append(
                f"another context: its width is {sizes(keys[0], 1)}; set backbone.context_dim, or pass {fresh}"
            )
        table = "class_embedder.embedding.weight"
        if table in misshaped:
            lines.append(f"another number of classes: rows are {sizes(table, 0)} (one may be the null class of "
                         "class_dropout_prob > 0); pass pretrained.reinit=[class_embedder]")  # fmt: skip
        if table in problems["missing"]:
            lines.append("the file has no class embedder: pass pretrained.reinit=[class_embedder] for a fresh one")
        if any("blocks." in k for k in {*problems["missing"], *problems["unexpected"]}):
            lines.append("another structure: compare backbone.num_res_blocks, channel_mult, attention_resolutions, "
                         "use_spatial_transformer, transformer_depth and resblock_updown")  # fmt: skip
        return lines


def _averaged(state: dict[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights, whose names have lost their dots, where a checkpoint holds them."""
    return {k: whole.get(_EMA + f"diffusion_model{k.replace('.', '')}", v) for k, v in state.items()}


def from_official(state: Mapping[str, Tensor], net: nn.Module, new_order: bool = False) -> dict[str, Tensor]:
    """Official names -> those of `net`, a UNet2DConditionModel or UNet2DModel, gated or not; unknown keys stay.

    Args:
        new_order: see `UNet`, use_new_attention_order.
    """
    rest, renamed = dict(state), {}
    for official, ours, attention in _places(net):
        for key in [k for k in rest if k.startswith(f"{official}.")]:
            tail = key.removeprefix(official)
            if attention is None:
                renamed[f"{ours}{tail}"] = rest.pop(key)
            else:
                renamed |= {
                    f"{ours}.{k}": v for k, v in _attention(tail[1:], rest.pop(key), attention, new_order).items()
                }
    return renamed | rest


def _attention(name: str, tensor: Tensor, heads: int, new_order: bool) -> dict[str, Tensor]:
    """A parameter of the official bare AttentionBlock: 1 x 1 convolutions, queries, keys and values head by head
    (QKVAttentionLegacy) or one after the other (QKVAttention).
    """
    part, _, kind = name.rpartition(".")
    tensor = tensor.squeeze(-1) if kind == "weight" and part != "norm" else tensor
    if part == "qkv":
        split = tensor.chunk(3) if new_order else tensor.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
        return {f"to_{letter}.{kind}": rows for letter, rows in zip("qkv", split, strict=True)}
    return {f"{_ATTENTION.get(part, part)}.{kind}": tensor}


def _places(net: Any) -> Iterator[tuple[str, str, int | None]]:
    """(official module, ours, heads of a bare attention or None) of every module with parameters."""
    yield from (("time_embed.0", "time_embedding.linear_1", None), ("time_embed.2", "time_embedding.linear_2", None))
    yield from (("label_emb", "class_embedding", None), ("input_blocks.0.0", "conv_in", None))
    number = 1
    for i, level in enumerate(net.down_blocks):
        for j in range(len(level.resnets)):
            yield from _pair(level, f"down_blocks.{i}", j, f"input_blocks.{number}")
            number += 1
        for sampler in level.downsamplers or []:
            yield from _sampler(sampler, f"down_blocks.{i}.downsamplers.0", f"input_blocks.{number}.0", "op")
            number += 1
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _attend(net.mid_block.attentions[0], "middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    number = 0
    for i, level in enumerate(net.up_blocks):
        for j in range(len(level.resnets)):
            yield from _pair(level, f"up_blocks.{i}", j, f"output_blocks.{number}")
            if j == len(level.resnets) - 1:
                at = f"output_blocks.{number}.{1 + bool(getattr(level, 'attentions', None))}"
                for sampler in level.upsamplers or []:
                    yield from _sampler(sampler, f"up_blocks.{i}.upsamplers.0", at, "conv")
            number += 1
    yield from (("out.0", "conv_norm_out", None), ("out.2", "conv_out", None))


def _pair(level: Any, ours: str, j: int, official: str) -> Iterator[tuple[str, str, int | None]]:
    yield from _resnet(f"{official}.0", f"{ours}.resnets.{j}")
    attentions = getattr(level, "attentions", None)
    if attentions:
        yield from _attend(attentions[j], f"{official}.1", f"{ours}.attentions.{j}")


def _attend(attention: Any, official: str, ours: str) -> Iterator[tuple[str, str, int | None]]:
    # a spatial transformer has diffusers' own names
    yield official, ours, attention.heads if hasattr(attention, "group_norm") else None


def _resnet(official: str, ours: str) -> Iterator[tuple[str, str, int | None]]:
    yield from ((f"{official}.{part}", f"{ours}.{name}", None) for part, name in _RESNET.items())


def _sampler(sampler: Any, ours: str, official: str, convolution: str) -> Iterator[tuple[str, str, int | None]]:
    if hasattr(sampler, "conv1"):  # ADM's ResBlocks that change the resolution
        yield from _resnet(official, ours)
    else:
        yield f"{official}.{convolution}", f"{ours}.conv", None
