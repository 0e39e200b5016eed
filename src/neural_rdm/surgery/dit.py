"""DiT: official weights, diffusers' layout, growth by single blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.layers import linear_layers
from neural_rdm.backbones.options import option_of
from neural_rdm.residual import gate_names
from neural_rdm.surgery.adapter import NOT_IN_DIFFUSERS, Adapter, Problems, State, adapts, depth_in

if TYPE_CHECKING:
    from diffusers import ModelMixin

Transformer = TypeVar("Transformer", bound=DiT)
#: official modules and diffusers': outside of the blocks, embedders (of which every block there has a copy), in a block
_OUTSIDE = (
    ("x_embedder.proj", "pos_embed.proj"),
    ("final_layer.adaLN_modulation.1", "proj_out_1"),
    ("final_layer.linear", "proj_out_2"),
)
_EMBEDDERS = (
    ("t_embedder.mlp.0", "timestep_embedder.linear_1"),
    ("t_embedder.mlp.2", "timestep_embedder.linear_2"),
    ("y_embedder", "class_embedder"),
)
_INSIDE = (
    ("adaLN_modulation.1", "norm1.linear"),
    ("attn.proj", "attn1.to_out.0"),
    ("mlp.fc1", "ff.net.0.proj"),
    ("mlp.fc2", "ff.net.2"),
)
#: parts that the official networks have not; `modulation` is of adaln=single
_NEW = {"cross_attn", "registers", "modulation", "fc1_g", "q_norm", "k_norm"}


class TransformerAdapter(Adapter[Transformer], Generic[Transformer]):
    """What DiT and Latte have in common."""

    no_official = None
    no_diffusers: str | None = NOT_IN_DIFFUSERS
    kind = "a DiT or a Latte"
    signs = {"blocks.": "a DiT or a Latte", "x_embedder.": "a DiT or a Latte"}
    tables: ClassVar[tuple[str, ...]] = ("pos_embed",)
    options: ClassVar[tuple[str, ...]] = (
        "input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio",
        "class_dropout_prob", "num_classes", "learn_sigma",
    )  # fmt: skip

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        gates = gate_names(model)
        new = (k for k in model.state_dict() if k not in gates and not _NEW.isdisjoint(k.split(".")))
        if self.no_official is None and (key := next(new, None)) is not None:
            self.no_official = f"the official network has no {key}, only the default options"

    def no_growth(self, placement: str, operator: str) -> str | None:
        """A new unit must receive a gradient: the adaLN gate in series with its zero must not be zero, too."""
        shared = [layer.weight for layer in linear_layers(self.model.modulation)]
        for name, block in self.model.blocks.named_children():
            made = [*shared, *block.adaLN_modulation.parameters()]
            gated = any(parameter.unflatten(0, (6, -1))[[2, 5]].any() for parameter in made)
            if operator in ("identity", "halved") and not gated:
                return (
                    f"the adaLN gates of block {name} are all zero, as in a network that has not been trained: copies "
                    "would never receive a gradient. Grow a trained network"
                )
        return None

    def plain(self) -> nn.Module:
        """Its adaLN gates would start as they do under the plain rule."""
        self.model.gate_init = 0.0
        return super().plain()

    def to_ours(self, state: State, name: str) -> dict[str, Tensor]:
        """The official names, or diffusers' of a DiTTransformer2DModel."""
        if any(key.startswith("transformer_blocks.0.norm1.emb.") for key in state):
            return from_diffusers(state) | {"pos_embed": self.model.pos_embed.detach()}  # which diffusers computes anew
        return super().to_ours(state, name)

    def idle(self, state: State) -> set[str]:
        """Also new cross-attention whose last projection, or whose gate, is zero."""
        own, idle = self.model.state_dict(), super().idle(state)
        for name, unit in self.new_units(state).items():
            if not name.endswith("cross_unit"):
                continue
            branch = name.replace("cross_unit", "cross_attn")
            silent = not own[f"{branch}.proj.weight"].any() and not own[f"{branch}.proj.bias"].any()
            closed = not any(own[f"{name}.{gate}"].any() for gate in unit.identity_values() or {})
            if silent or (unit.start == "identity" and closed):
                idle |= {k for k in own if k.startswith(f"{branch}.")}
        return idle

    def hints(self, problems: Problems, own: State, found: State) -> list[str]:
        """What the keys tell of width, depth, classes, input, output, resolution and options."""
        missing, unexpected, misshaped = (set(problems[k]) for k in ("missing", "unexpected", "misshaped"))
        label, depth, file_depth = "y_embedder.embedding_table.weight", depth_in(own), depth_in(found)
        hints, width = [], "t_embedder.mlp.2.bias"
        if width in misshaped:
            return [
                f"another width: the file's hidden_size is {len(found[width])}, the network's {len(own[width])}; "
                "choose the backbone that the file was made for"
            ]
        if file_depth != depth and any(k.startswith("blocks.") for k in missing | unexpected):
            hints.append(
                f"another depth: the file has {file_depth} blocks, the network {depth}; pass "
                f"backbone.depth={file_depth} (and deepen it afterwards with python -m neural_rdm.deepen)"
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
        if (key := "x_embedder.proj.weight") in misshaped:
            (_, c, p, _), (_, own_c, own_p, _) = found[key].shape, own[key].shape
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
        for option in sorted({option for key in unexpected if (option := option_of(key))}):
            hints.append(f"the file was trained with backbone.{option}: set it as the file's run did")
        if "temp_embed" in unexpected:
            hints.append("a file of clips for a network of images: use backbone=latte with backbone.num_frames=1")
        if any("cross_attn" in k for k in missing) or any(k.startswith("registers.") for k in missing):
            hints.append("parts that are new here and not silent: name them in pretrained.reinit to start them afresh")
        if any(k.endswith(("q_norm.weight", "fc1_g.weight")) or k.startswith("modulation.") for k in missing):
            hints.append("the file is of the plain network: leave qk_norm, mlp and adaln at their defaults")
        return hints


@adapts(DiT)
class DiTAdapter(TransformerAdapter[DiT]):
    """Images: diffusers has the class-conditional one."""

    def __init__(self, model: DiT) -> None:
        super().__init__(model)
        self.no_diffusers = NOT_IN_DIFFUSERS if model.null_class is None else self.no_official

    def to_diffusers(self, plain: nn.Module) -> ModelMixin:
        """diffusers' DiT with one number put right: it divides the exponents of the timestep's frequencies by `half -
        1`, the official code by `half`. A stock DiTTransformer2DModel is off by a percent at t = 1 and useless at
        t = 500 for such weights; the class returned here says so in the `_class_name` of its saved configuration.
        """
        from neural_rdm.surgery.diffusers_dit import OfficialDiTTransformer2DModel

        model = self.model
        network: Any = OfficialDiTTransformer2DModel(  # diffusers does not declare its methods
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
        network.load_state_dict(_diffusers_names(plain.state_dict()))
        official: ModelMixin = network.eval()
        return official


def _places(depth: int) -> Iterator[tuple[str, str]]:
    """(official module, diffusers') of every module but queries, keys and values."""
    yield from _OUTSIDE
    for i in range(depth):
        yield from ((ours, f"transformer_blocks.{i}.norm1.emb.{theirs}") for ours, theirs in _EMBEDDERS)
        yield from ((f"blocks.{i}.{ours}", f"transformer_blocks.{i}.{theirs}") for ours, theirs in _INSIDE)


def from_diffusers(state: State) -> dict[str, Tensor]:
    """diffusers' DiTTransformer2DModel -> official names; unknown keys stay.

    diffusers copies the embedders of timestep and class into every block: the first one's is taken.
    """
    rest, renamed, depth = dict(state), dict[str, Tensor](), depth_in(state, "transformer_blocks")
    for ours, theirs in _places(depth):
        for key in [k for k in rest if k.startswith(f"{theirs}.")]:
            renamed.setdefault(f"{ours}{key.removeprefix(theirs)}", rest.pop(key))
    for i in range(depth):
        for kind in ("weight", "bias"):
            parts = [f"transformer_blocks.{i}.attn1.to_{part}.{kind}" for part in "qkv"]
            if all(part in rest for part in parts):
                renamed[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([rest.pop(part) for part in parts])
    return renamed | rest


def _diffusers_names(state: State) -> dict[str, Tensor]:
    """Official names -> diffusers'."""
    renamed, depth = {}, depth_in(state)
    for ours, theirs in _places(depth):
        for key in [k for k in state if k.startswith(f"{ours}.")]:
            renamed[f"{theirs}{key.removeprefix(ours)}"] = state[key]
    for i in range(depth):
        for kind in ("weight", "bias"):
            for part, tensor in zip("qkv", state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3), strict=True):
                renamed[f"transformer_blocks.{i}.attn1.to_{part}.{kind}"] = tensor
    return renamed
