"""Official weights into our networks: DiT (official and diffusers' layout), Latte, U-ViT and the U-Nets (see `ldm`).

Parameter names of the official code never change here, so loading is a comparison: the gates are what a file lacks, and
they are set so that every unit computes `z + F(z)`, which leaves the network's output as it was, to the last bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.unet import UNet
from neural_rdm.backbones.uvit import UViT
from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.weights import read_weights, unwrapped
from neural_rdm.residual import Unit, gate_names, plain_state
from neural_rdm.surgery import ldm
from neural_rdm.surgery.tables import TABLES, fitted, uvit_fitted

#: how the weights of each network give themselves away
NETWORKS = {
    "blocks.": "a DiT or a Latte",
    "x_embedder.": "a DiT or a Latte",
    "temporal_transformer_blocks.": (
        "diffusers' LatteTransformer3DModel, a text-to-video network of another architecture (shared modulation, "
        "cross-attention in every block) than the class-conditional Latte; use the official Latte files"
    ),
    "in_blocks.": "a U-ViT",
    "model.diffusion_model.": "a latent-diffusion U-Net",
    "input_blocks.": "a latent-diffusion or ADM U-Net",
    "down_blocks.": "a U-Net of diffusers",
    "adaln_single.": "a PixArt network of diffusers",
}


def load_official(model: nn.Module, source: str | Path | Mapping[str, Tensor], reinit: Iterable[str] = ()) -> nn.Module:
    """Load official weights into `model`, in place; afterwards every unit that they fill is plain, `rezero` too.

    Parts that the file cannot know and that change nothing keep their start: the gates (alpha 1, beta 0) and new
    cross-attention units, whose last projection (or, under `rezero`, whose alpha) is zero. An image Latte
    (num_frames = 1) takes the spatial blocks of a video checkpoint. A file of ours brings its own gates.

    Args:
        model: a DiT, Latte, UViT or UNet.
        source: a file, a folder (see `core.weights.read_weights`) or a state dict, whatever wrappers its names show.
        reinit: beginnings of parameter names that keep this network's own values, such as `y_embedder` (`label_emb`,
            `class_embedder`) for another number of classes; `pos_embed` (another resolution) and `temp_embed` (another
            number of frames) are interpolated instead.

    Returns:
        `model`.

    Raises:
        CheckpointError: the weights cannot be read or do not fit; one message names every key and what probably
            happened. The model is untouched.
    """
    state = unwrapped(source) if isinstance(source, Mapping) else read_weights(source)
    name = "the state dict" if isinstance(source, Mapping) else str(source)
    if isinstance(model, UNet) and not isinstance(source, Mapping) and Path(source).is_dir():
        ldm.check_folder(Path(source), model)
    own = model.state_dict()
    state = _official_layout(state, name, model, own)
    found = dict(state)
    if getattr(model, "num_frames", 2) == 1:
        state = {k: v for k, v in state.items() if not _temporal(k)}
    for start in reinit:
        matching = {k for k in {*own, *state} if k == start or k.startswith(f"{start}.")}
        if not matching:
            parts = ", ".join(sorted({k.split(".")[0] for k in own}))
            raise CheckpointError(
                f"pretrained.reinit: there is no {start!r} in this network or in {name}; parts: {parts}"
            )
        for key in matching & set(state):
            table = None
            if key in TABLES and key in own and isinstance(model, UViT):
                table = uvit_fitted(state[key], own[key], found, model)
            elif key in TABLES and key in own:
                table = fitted(state[key], own[key])
            state.pop(key)
            if table is not None:
                state[key] = table
        own_parts = matching & set(own)
        state |= {k: own[k] for k in own_parts if k not in state}

    state |= _gates(model, own, state, name)
    state |= {k: own[k] for k in _idle(model, own, state)}
    problems = {
        "missing": sorted(set(own) - set(state)),
        "unexpected": sorted(set(state) - set(own)),
        "misshaped": sorted(k for k in set(own) & set(state) if own[k].shape != state[k].shape),
    }
    if any(problems.values()):
        hints = _hints if isinstance(model, DiT) else _uvit_hints if isinstance(model, UViT) else ldm.hints
        raise CheckpointError(_message(name, problems, own, found, hints(problems, own, found)))
    model.load_state_dict(state)
    return model


def _official_layout(
    state: dict[str, Tensor], name: str, model: nn.Module, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict under our names; `own` lends a DiT the position table, which diffusers does not store."""
    starts: tuple[str, ...]
    if isinstance(model, UNet):
        starts, wanted = ("down_blocks.", "input_blocks.", "model.diffusion_model."), "a U-Net"
    elif isinstance(model, UViT):
        starts, wanted = ("in_blocks.",), "a U-ViT"
    else:
        starts, wanted = ("blocks.", "x_embedder."), "a DiT or a Latte"
        if any(k.startswith("transformer_blocks.0.norm1.emb.") for k in state):
            return from_diffusers(state, own)
    for start, network in NETWORKS.items():
        if start not in starts and any(k.startswith(start) for k in state):
            raise CheckpointError(f"{name} holds the weights of {network}, and not of {wanted}")
    if isinstance(model, UNet):
        return ldm.to_ours(state, model, name)
    if not any(k.startswith(starts) for k in state):
        shown = ", ".join(sorted(state)[:4])
        raise CheckpointError(f"{name} holds no weights of {wanted}: its first keys are {shown}")
    return state


def from_diffusers(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' DiTTransformer2DModel -> official names.

    diffusers copies the embedders of timestep and class into every block (the first one's is taken) and computes the
    position table anew (that of `own` is taken).
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for pattern, official in FROM_DIFFUSERS:
            match = re.fullmatch(pattern, key)
            if match:
                renamed[match.expand(official)] = tensor
                break
        else:
            if not re.match(
                r"transformer_blocks\.[1-9]\d*\.norm1\.emb\.|transformer_blocks\.\d+\.attn1\.to_[qkv]\.", key
            ):
                renamed[key] = tensor  # reported as unexpected
    blocks = {m[1] for k in state if (m := re.match(r"transformer_blocks\.(\d+)\.attn1\.to_q\.", k))}
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [state.get(f"transformer_blocks.{block}.attn1.to_{p}.{kind}") for p in "qkv"]
            if all(part is not None for part in parts):
                renamed[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    if "pos_embed" in own:
        renamed["pos_embed"] = own["pos_embed"]
    return renamed


FROM_DIFFUSERS = (
    (r"pos_embed\.proj\.(\w+)", r"x_embedder.proj.\1"),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_1\.(\w+)", r"t_embedder.mlp.0.\1"),
    (r"transformer_blocks\.0\.norm1\.emb\.timestep_embedder\.linear_2\.(\w+)", r"t_embedder.mlp.2.\1"),
    (r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.(.+)", r"y_embedder.\1"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear\.(\w+)", r"blocks.\1.adaLN_modulation.1.\2"),
    (r"transformer_blocks\.(\d+)\.attn1\.to_out\.0\.(\w+)", r"blocks.\1.attn.proj.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"proj_out_1\.(\w+)", r"final_layer.adaLN_modulation.1.\1"),
    (r"proj_out_2\.(\w+)", r"final_layer.linear.\1"),
)


def _temporal(key: str) -> bool:
    """Whether a Latte's key belongs to what only clips need."""
    block = re.match(r"blocks\.(\d+)\.", key)
    return key == "temp_embed" or (block is not None and int(block[1]) % 2 == 1)


def _new_units(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Unit]:
    """The units whose branch a file does not know, by name."""
    new: dict[str, Unit] = {}
    if not isinstance(model, DiT):
        return new
    for name, block in model.blocks.named_children():
        for unit, last in block.last_layers():
            branch = next(n for n, m in block.named_modules() if m is last)
            if f"blocks.{name}.{branch}.weight" not in state:
                new[f"blocks.{name}." + next(n for n, m in block.named_modules() if m is unit)] = unit
    return new


def _gates(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The parameters of the residual rule that a file lacks, at their plain values; those of units that it does not
    know at their own start.

    Raises:
        CheckpointError: the rule never computes what the file was trained for.
    """
    gates = gate_names(model)
    lacking = gates - set(state)
    if gates and not lacking:  # a file of ours
        return {}
    try:
        plain = plain_state(model)
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be loaded: {error}") from error
    new = _new_units(model, state)
    return {
        k: own[k] if k.rpartition(".")[0] in new else torch.as_tensor(plain[k]).to(own[k]).expand_as(own[k])
        for k in lacking
    }


def _idle(model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> set[str]:
    """The keys of new cross-attention branches that contribute nothing as they stand."""
    idle: set[str] = set()
    for name, unit in _new_units(model, state).items():
        if not name.endswith("cross_unit"):
            continue
        branch = name.replace("cross_unit", "cross_attn")
        silent = not own[f"{branch}.proj.weight"].any() and not own[f"{branch}.proj.bias"].any()
        if silent or (
            unit.start == "identity" and not any(own[f"{name}.{k}"].any() for k in unit.identity_values() or {})
        ):
            idle |= {k for k in own if k.startswith(f"{branch}.")}
    return idle


def _message(
    name: str,
    problems: Mapping[str, list[str]],
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    hints: list[str],
) -> str:
    """One message: every key, by kind, and what probably happened."""
    lines = [f"{name} does not fit this network:"]
    for kind, keys in problems.items():
        if not keys:
            continue
        shown = [
            f"{k} (file {list(found[k].shape)}, network {list(own[k].shape)})"
            if kind == "misshaped" and k in found
            else k
            for k in _shortened(keys)
        ]
        lines.append(f"  {kind} ({len(keys)}): {', '.join(shown)}")
    lines += [f"  {hint}" for hint in hints]
    return "\n".join(lines)


def _shortened(keys: list[str], most: int = 8) -> list[str]:
    """Every key, where blocks repeat one another the first block's."""
    first = {re.sub(r"(blocks|resnets|attentions)\.\d+\.", r"\1.N.", k): k for k in reversed(keys)}
    kept = sorted(first.values())
    return kept if len(kept) <= most else [*kept[:most], f"and {len(kept) - most} more of the kind"]


def _hints(problems: Mapping[str, list[str]], own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing, unexpected, misshaped = (set(problems[k]) for k in ("missing", "unexpected", "misshaped"))
    label, depth, file_depth = "y_embedder.embedding_table.weight", _depth(own), _depth(found)
    hints = []
    width = "t_embedder.mlp.2.bias"
    if width in misshaped:
        hints.append(
            f"another width: the file's hidden_size is {len(found[width])}, the network's {len(own[width])}; "
            "choose the backbone that the file was made for"
        )
        return hints
    if file_depth != depth and any(k.startswith("blocks.") for k in missing | unexpected):
        hints.append(
            f"another depth: the file has {file_depth} blocks, the network {depth}; pass backbone.depth={file_depth} "
            "(and deepen it afterwards with python -m neural_rdm.deepen)"
        )
    if label in misshaped:
        hints.append(
            f"another number of classes: {len(found[label])} rows against {len(own[label])} (one may be the null "
            "class of class_dropout_prob > 0); pass pretrained.reinit=[y_embedder] for a fresh table"
        )
    if label in unexpected:
        hints.append("a class-conditional file for a network without labels: pass pretrained.reinit=[y_embedder]")
    if label in missing:
        hints.append("an unconditional file for a network with labels: pass pretrained.reinit=[y_embedder]")
    if "x_embedder.proj.weight" in misshaped:
        (_, c, p, _), (_, own_c, own_p, _) = found["x_embedder.proj.weight"].shape, own["x_embedder.proj.weight"].shape
        hints.append(
            f"another input: the file's patches are {p} x {p} of {c} channels, the network's {own_p} x {own_p} of "
            f"{own_c}; set backbone.patch_size and in_channels, or pass pretrained.reinit=[x_embedder,final_layer]"
        )
    elif "final_layer.linear.weight" in misshaped:
        hints.append("other outputs: probably backbone.learn_sigma; the official files have learn_sigma=true")
    if "pos_embed" in misshaped:
        hints.append(
            "another resolution: pass pretrained.reinit=[pos_embed] to interpolate the position table, or set "
            "backbone.input_size"
        )
    if "temp_embed" in misshaped:
        hints.append("another number of frames: pass pretrained.reinit=[temp_embed] to interpolate their table")
    if "temp_embed" in missing:
        hints.append("a file of images (a DiT?) for a network of clips: Latte's odd blocks are temporal, DiT's are not")
    if "temp_embed" in unexpected:
        hints.append("a file of clips for a network of images: use backbone=latte with backbone.num_frames=1")
    if any(re.search(r"unit\.\w+$", k) for k in unexpected):
        hints.append("the file holds gates of another residual rule; choose the one that it was trained with")
    if any("cross_attn" in k for k in missing) or any(k.startswith("registers.") for k in missing):
        hints.append("parts that are new here and not silent: name them in pretrained.reinit to start them afresh")
    if any(k.endswith(("q_norm.weight", "fc1_g.weight")) or k.startswith("modulation.") for k in missing):
        hints.append("the file is of the plain network: leave qk_norm, mlp and adaln at their defaults")
    return hints


def _uvit_hints(problems: Mapping[str, list[str]], own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    missing, unexpected, misshaped = (set(problems[k]) for k in ("missing", "unexpected", "misshaped"))
    hints, depth, file_depth = [], 2 * _depth(own, "in_blocks"), 2 * _depth(found, "in_blocks")
    if "norm.weight" in misshaped:
        width, own_width = len(found["norm.weight"]), len(own["norm.weight"])
        return [f"another width: the file's embed_dim is {width}, the network's {own_width}; set backbone.embed_dim"]
    if depth != file_depth:
        hints.append(
            f"another depth: the file has {file_depth} blocks, the network {depth}; pass backbone.depth={file_depth}"
        )
    if "label_emb.weight" in misshaped:
        hints.append(
            f"another number of classes: {len(found['label_emb.weight'])} rows against {len(own['label_emb.weight'])}; "
            "pass pretrained.reinit=[label_emb] for a fresh table, or set backbone.num_classes"
        )
    if "label_emb.weight" in missing | unexpected:
        hints.append("one of both has classes and the other has none: pass pretrained.reinit=[label_emb,pos_embed]")
    if "patch_embed.proj.weight" in misshaped:
        hints.append("another input: set backbone.patch_size and in_chans")
    if "pos_embed" in misshaped and "label_emb.weight" not in missing | unexpected:
        hints.append("another resolution: pass pretrained.reinit=[pos_embed] to interpolate the position table, or set "
                     "backbone.img_size")  # fmt: skip
    for key, option in (("final_layer.weight", "conv"), ("time_embed.0.weight", "mlp_time_embed"),
                        ("context_embed.weight", "clip_dim and num_clip_token")):  # fmt: skip
        if key in missing | unexpected | misshaped:
            hints.append(f"{key} differs: set backbone.{option} as the file's")
    if any(k.endswith("qkv.bias") for k in missing | unexpected):
        hints.append("the bias of queries, keys and values differs: set backbone.qkv_bias")
    if any(re.search(r"unit\.\w+$", k) for k in unexpected):
        hints.append("the file holds gates of another residual rule; choose the one that it was trained with")
    return hints


def _depth(state: Mapping[str, Tensor], blocks: str = "blocks") -> int:
    return 1 + max((int(m[1]) for k in state if (m := re.match(rf"{blocks}\.(\d+)\.", k))), default=-1)
