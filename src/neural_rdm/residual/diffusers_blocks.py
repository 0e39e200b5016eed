"""diffusers' blocks with their residual additions in units: the only module that knows how diffusers writes them.

Imported where diffusers is used (it subclasses its classes). A block that holds units says in `last_layers` which
affine layer ends each unit's branch: folding reads that table.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TypeAlias

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from neural_rdm.residual.foreign import blocks, order
from neural_rdm.residual.unit import Unit

#: dim, dim_out, channel_axis, time_dim and role of a `Place`
Slot = tuple[int, int, int, None, str]
Slots = list[tuple[str, Slot]]
LastLayers = list[tuple[Unit, nn.Module]]


class GatedResnetBlock2D(ResnetBlock2D):
    """A convolution block: one unit on maps [B, C, H, W], whose shortcut may resample and change the width."""

    unit: Unit

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        resample = self.upsample or self.downsample
        plain = resample is None and self.conv_shortcut is None
        return self.unit(input_tensor, lambda z: self.branch(z, temb), shortcut=None if plain else self.shortcut)

    def branch(self, z: Tensor, temb: Tensor | None) -> Tensor:
        """F: norm, SiLU, resampling, convolution, the timestep, norm, SiLU, dropout, convolution."""
        h = self.conv1(self._resampled(self.nonlinearity(self.norm1(z))))
        if self.time_emb_proj is not None and temb is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))[:, :, None, None]
        if self.time_embedding_norm == "scale_shift":
            assert temb is not None
            scale, shift = temb.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h if temb is None else h + temb)
        return self.conv2(self.dropout(self.nonlinearity(h)))

    def shortcut(self, z: Tensor) -> Tensor:
        """S: what the stream itself goes through where the block changes its size or its width."""
        z = self._resampled(z)
        return z if self.conv_shortcut is None else self.conv_shortcut(z.contiguous() if self.training else z)

    def _resampled(self, z: Tensor) -> Tensor:
        resample = self.upsample or self.downsample
        return z if resample is None else resample(z)

    def slots(self) -> Slots:
        """The units of this block and their sizes, in run order."""
        return [("unit", (self.in_channels, self.out_channels, 1, None, "conv"))]

    def last_layers(self) -> LastLayers:
        """Every unit with the last affine layer of its branch."""
        return [(self.unit, self.conv2)]


class GatedAttention(Attention):
    """Self-attention with a residual connection of its own (UNet2DModel, autoencoders): one unit on maps."""

    unit: Unit

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attend = super().forward
        out = self.unit(hidden_states, lambda z: attend(z, *args, **kwargs))
        # the layout that diffusers' own sum has here: what comes next then adds up in the same order
        return out.contiguous(memory_format=torch.channels_last)

    def slots(self) -> Slots:
        """The units of this block and their sizes, in run order."""
        return [("unit", (self.out_dim, self.out_dim, 1, None, "attn"))]

    def last_layers(self) -> LastLayers:
        """Every unit with the last affine layer of its branch."""
        return [(self.unit, self.to_out[0])]


class GatedBasicTransformerBlock(BasicTransformerBlock):
    """Self-attention, cross-attention and feed-forward: two or three units on tokens [B, N, D]."""

    attn1_unit: Unit
    attn2_unit: Unit
    ff_unit: Unit

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        options, z = cross_attention_kwargs or {}, hidden_states
        context = encoder_hidden_states
        z = self.attn1_unit(
            z,
            lambda h: self.attn1(
                self._placed(self.norm1(h)),
                encoder_hidden_states=context if self.only_cross_attention else None,
                attention_mask=attention_mask,
                **options,
            ),
        )
        if self.attn2 is not None:
            z = self.attn2_unit(
                z,
                lambda h: self.attn2(
                    self._placed(self.norm2(h)),
                    encoder_hidden_states=context,
                    attention_mask=encoder_attention_mask,
                    **options,
                ),
            )
        return self.ff_unit(z, lambda h: self.ff(self.norm3(h)))

    def _placed(self, h: Tensor) -> Tensor:
        return h if self.pos_embed is None else self.pos_embed(h)

    def slots(self) -> Slots:
        """The units of this block and their sizes, in run order."""
        roles = {"attn1_unit": "attn", "attn2_unit": "cross", "ff_unit": "mlp"}
        names = [name for name in roles if name != "attn2_unit" or self.attn2 is not None]
        return [(name, (self.dim, self.dim, -1, None, roles[name])) for name in names]

    def last_layers(self) -> LastLayers:
        """Every unit with the last affine layer of its branch."""
        pairs: LastLayers = [(self.attn1_unit, self.attn1.to_out[0]), (self.ff_unit, self.ff.net[2])]
        if self.attn2 is not None:
            pairs.insert(1, (self.attn2_unit, self.attn2.to_out[0]))
        return pairs


class GatedTransformer2DModel(Transformer2DModel):
    """The spatial transformer: one outer unit on maps, whose branch holds the units of its transformer blocks."""

    unit: Unit

    def forward(self, hidden_states: Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        transform: Any = partial(super().forward, return_dict=False)
        out = self.unit(hidden_states, lambda z: transform(z, *args, **kwargs)[0])
        if not return_dict:
            return (out,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=out)

    def _get_output_for_continuous_inputs(self, hidden_states: Tensor, residual: Any, *a: Any, **kw: Any) -> Tensor:
        """The branch alone: its residual is the unit's."""
        return super()._get_output_for_continuous_inputs(hidden_states, 0, *a, **kw)

    def slots(self) -> Slots:
        """The units of this block and their sizes, in run order."""
        assert self.in_channels is not None
        return [("unit", (self.in_channels, self.in_channels, 1, None, "outer"))]

    def last_layers(self) -> LastLayers:
        """Every unit with the last affine layer of its branch."""
        return [(self.unit, self.proj_out)]


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    ResnetBlock2D: GatedResnetBlock2D,
    BasicTransformerBlock: GatedBasicTransformerBlock,
    Transformer2DModel: GatedTransformer2DModel,
    Attention: GatedAttention,
}
GATED = (GatedResnetBlock2D, GatedBasicTransformerBlock, GatedTransformer2DModel, GatedAttention, blocks.Written)
GatedBlock: TypeAlias = (
    GatedResnetBlock2D | GatedBasicTransformerBlock | GatedTransformer2DModel | GatedAttention | blocks.Written
)


def gated_class(module: nn.Module) -> type[nn.Module] | None:
    """The subclass written by hand that a module is swapped for; None for one that has none."""
    match module:
        case Attention(residual_connection=False) | Transformer2DModel(is_input_continuous=False):
            return None
        case BasicTransformerBlock(norm_type=norm_type) if norm_type != "layer_norm":
            return None
    return _CLASSES.get(type(module))


def refusal(module: nn.Module) -> str | None:
    """Why a block of a known class has residuals of another form, in a few words; None where it has not."""
    if isinstance(module, ResnetBlock2D) and module.output_scale_factor != 1:
        return f"output_scale_factor={module.output_scale_factor:g} behind the sum"
    if type(module) is Attention and module.residual_connection and module.rescale_output_factor != 1:
        return f"rescale_output_factor={module.rescale_output_factor:g} behind the sum"
    if isinstance(module, BasicTransformerBlock) and module.norm_type == "layer_norm":
        if module._chunk_size is not None:
            return "a chunked feed-forward; switch it off with set_chunk_feed_forward(None)"
        if hasattr(module, "fuser"):
            return "a gate of its own (GLIGEN)"
    return None


def swap(module: nn.Module) -> bool:
    """Make a block of diffusers a gated one, in place; False for a module that adds to no stream.

    Raises:
        ValueError: an addition that is not understood, in words that follow the block's name.
    """
    new = gated_class(module)
    if new is None:
        if isinstance(module, ModelMixin) or not (found := blocks.units_of(module)):
            return False
        blocks.swap(module, found)
        return True
    module.__class__ = new
    if isinstance(module, GatedAttention):
        module.residual_connection = False  # the unit's
    return True


def unswap(module: nn.Module) -> None:
    """Make a gated block diffusers' own again, without its units."""
    if isinstance(module, blocks.Written):
        return blocks.unswap(module)
    assert isinstance(module, GATED)
    for name, _ in module.slots():
        module._modules.pop(name, None)
    if isinstance(module, GatedAttention):
        module.residual_connection = True
    module.__class__ = type(module).__mro__[1]
    return None


# -- run order


def gated_blocks(module: nn.Module, name: str = "", outer: str = "") -> Iterator[tuple[str, str, GatedBlock]]:
    """(module name, name of the unit that holds it or "", block) of every gated block, in run order.

    A U-Net registers its up blocks before its middle one, and all convolution blocks of a level before its attentions;
    for any other network see `foreign.order`.
    """
    if isinstance(module, GATED):
        yield name, outer, module
        if isinstance(module, GatedTransformer2DModel):
            for i, block in enumerate(module.transformer_blocks):
                yield from gated_blocks(block, f"{name}.transformer_blocks.{i}", f"{name}.unit")
        if not isinstance(module, blocks.Written):
            return
    for child_name, child in _children(module):
        yield from gated_blocks(child, f"{name}.{child_name}" if name else child_name, outer)


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = dict(module.named_children())
    levels = [name for name in ("down_blocks", "mid_block", "up_blocks") if children.get(name) is not None]
    if levels:
        first = [n for n in children if n not in levels]
        yield from ((n, children[n]) for n in [*first, *levels])
        return
    if "resnets" in children:
        # by turns; in a middle block, which has one attention less, the first convolution block stands alone
        resnets: list[Any] = list(children.pop("resnets").children())
        attentions: list[Any] = list(children.pop("attentions", nn.Module()).children())
        late = len(attentions) - len(resnets)  # 0 or -1
        for i, resnet in enumerate(resnets):
            before = [i + late] if late == -1 else []
            after = [i] if late == 0 else []
            yield from ((f"attentions.{k}", attentions[k]) for k in before if k >= 0 and attentions[k] is not None)
            yield f"resnets.{i}", resnet
            yield from ((f"attentions.{k}", attentions[k]) for k in after if attentions[k] is not None)
        yield from ((n, child) for n, child in children.items() if child is not None)
        return
    yield from order.children(module)


def slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Slot]]:
    """(unit name, block, attribute, where it stands) of every unit, in run order; a unit inside another is
    called `outer/inner`.
    """
    for name, outer, found in gated_blocks(model):
        block: Any = found
        for attribute, slot in block.slots():
            unit = f"{name}.{attribute}" if name else attribute
            if outer:
                unit = f"{outer}/" + unit.removeprefix(outer.removesuffix(".unit")).lstrip(".")
            yield unit, block, attribute, slot
