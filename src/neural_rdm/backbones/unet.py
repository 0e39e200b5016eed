"""The U-Nets of latent diffusion (LDM) and guided diffusion (ADM) on gated residual units: Neural-RDM-U.

The networks are diffusers' `UNet2DConditionModel` (with a context) and `UNet2DModel`, which compute exactly what the
official `UNetModel` does; the arguments are the official ones. Every ResBlock, self-attention, cross-attention and
feed-forward addition and the transformers' outer ones are units, so that the read-in branch (the way down), the middle
and the read-out branch (the way up) each carry their own gates (theory, section 1, Eq. 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from neural_rdm.backbones import constraints
from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.layers import Float32Linear, linear_layers
from neural_rdm.core.arguments import Count, Fraction, Positive, checked
from neural_rdm.residual import Residual, Unit
from neural_rdm.residual.gating import gate

#: the published networks (their parameters without gates and class embedder: 400.9, 395.0, 274.1, 872.3, 553.8 M)
UNETS: dict[str, dict[str, Any]] = {
    "LDM-4": {
        "image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 192, "channel_mult": (1, 2, 3, 5),
        "attention_resolutions": (8, 4, 2), "num_heads": 1, "use_spatial_transformer": True, "context_dim": 512,
    },
    "LDM-8": {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 256, "channel_mult": (1, 2, 4),
        "attention_resolutions": (4, 2, 1), "num_head_channels": 32, "use_spatial_transformer": True,
        "context_dim": 512,
    },
    "LDM-4-unconditional": {
        "image_size": 64, "in_channels": 3, "out_channels": 3, "model_channels": 224, "channel_mult": (1, 2, 3, 4),
        "attention_resolutions": (8, 4, 2), "num_head_channels": 32,
    },
    "LDM-text-to-image": {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "channel_mult": (1, 2, 4, 4),
        "attention_resolutions": (4, 2, 1), "num_heads": 8, "use_spatial_transformer": True, "context_dim": 1280,
    },
    "ADM-256": {
        "image_size": 256, "in_channels": 3, "out_channels": 6, "model_channels": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4), "attention_resolutions": (32, 16, 8), "num_head_channels": 64,
        "num_classes": 1000, "use_scale_shift_norm": True, "resblock_updown": True,
    },
}  # fmt: skip


@checked(constraints.levels_fit, constraints.one_condition, constraints.no_options_beside_rules)
class UNet(Backbone):
    """U-Net for square images or latents.

    Args:
        image_size: side of the input; a multiple of 2 to the number of levels less one.
        in_channels, out_channels: channels of input and output; twice as many out as in is a learned variance.
        model_channels: width of the first level.
        attention_resolutions: the downsampling factors (1, 2, 4, ...) at which there is attention; the middle always
            has it.
        num_res_blocks: ResBlocks of each level on the way down; one more on the way up.
        channel_mult: width of each level over `model_channels`.
        num_heads, num_head_channels: attention heads, or channels of each; give one of them.
        use_spatial_transformer: transformer blocks that attend to a context, instead of bare self-attention.
        transformer_depth: transformer blocks of each spatial transformer.
        context_dim: width of the context's tokens; needs `use_spatial_transformer`.
        num_classes: classes whose embedding is added to the timestep's (ADM); None for none.
        use_scale_shift_norm: the timestep scales and shifts the second norm of a ResBlock (ADM).
        resblock_updown: ResBlocks change the resolution (ADM), instead of convolutions.
        dropout: rate inside the ResBlocks.
        residual: the residual rule, by name or as a `Residual`.
        num_context_classes: classes whose embedding is the one token of the context (LDM's class embedder); None where
            the context comes from outside.
        class_dropout_prob: the rate at which it is trained without its condition; above 0 a class table has one more
            row, the null class.
        norm_num_groups: groups of every group norm.
        use_new_attention_order: how official files of bare attention order queries, keys and values: for each head in
            turn, or (true: ADM's 64 x 64 model) all queries first. It matters to loading alone: no file tells.
        value_residual, long_skip, lns, stochastic_depth: options of transformers, refused here, each with its reason.

    Raises:
        ValueError: sizes that do not fit, options that the two networks do not have together.
    """

    #: a UNet2DConditionModel or a UNet2DModel with gates; diffusers does not declare what they hold
    net: Any
    u_shaped = True
    #: its blocks are diffusers', which hand on one tensor and no timestep embedding
    of_diffusers = True
    sizes = UNETS

    def __init__(
        self,
        image_size: Count,
        in_channels: Count,
        out_channels: Count,
        model_channels: Count,
        attention_resolutions: Sequence[int],
        num_res_blocks: Count = 2,
        channel_mult: Sequence[Count] = (1, 2, 4, 8),
        num_heads: Count | None = None,
        num_head_channels: Count | None = None,
        use_spatial_transformer: bool = False,
        transformer_depth: Count = 1,
        context_dim: Count | None = None,
        num_classes: Count | None = None,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        dropout: Fraction = 0.0,
        residual: str | Residual = "gated",
        *,
        num_context_classes: Count | None = None,
        class_dropout_prob: Fraction = 0.0,
        norm_num_groups: Count = 32,
        use_new_attention_order: bool = False,
        value_residual: bool = False,
        long_skip: Positive | None = None,
        lns: bool = False,
        stochastic_depth: Fraction = 0.0,
    ) -> None:
        super().__init__()
        residual = Residual.of(residual)
        widths = [model_channels * m for m in channel_mult]
        null = class_dropout_prob > 0
        attends = [2**level in attention_resolutions for level in range(len(widths))]
        common: dict[str, Any] = {
            "sample_size": image_size, "in_channels": in_channels, "out_channels": out_channels,
            "block_out_channels": tuple(widths), "layers_per_block": num_res_blocks, "dropout": dropout,
            "norm_num_groups": norm_num_groups, "norm_eps": 1e-5,
            "num_class_embeds": None if num_classes is None else num_classes + null,
            "resnet_time_scale_shift": "scale_shift" if use_scale_shift_norm else "default",
        }  # fmt: skip
        if use_spatial_transformer:
            plain = _conditional(common, attends, widths, num_heads, num_head_channels, transformer_depth, context_dim)
        else:
            plain = _unconditional(common, attends, widths, num_heads, num_head_channels, resblock_updown)
        self.net = gate(plain, residual, plain=False)
        for layer in linear_layers(self.net.time_embedding):
            layer.__class__ = Float32Linear
        self.class_embedder: ClassEmbedder | None = None
        if num_context_classes is not None:
            assert context_dim is not None
            self.class_embedder = ClassEmbedder(num_context_classes + null, context_dim)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.input_shape = in_channels, image_size, image_size
        self.num_classes = num_classes or num_context_classes or 0
        self.class_dropout_prob, self.learn_sigma = class_dropout_prob, out_channels == 2 * in_channels
        #: of a context from outside
        self.context_dim = context_dim if num_context_classes is None else None
        self.residual = residual
        self.use_new_attention_order = use_new_attention_order
        self.initialize_weights()

    @property
    def blocks(self) -> list[nn.Module]:
        """What is compiled and sharded as one: the levels on the way down, the middle, the levels on the way up."""
        return [*self.net.down_blocks, self.net.mid_block, *self.net.up_blocks]

    def unit_order(self) -> Iterator[tuple[str, Unit]]:
        """(name, unit) in run order: down, middle, up; outer units before the ones inside them."""
        for name, unit in self.net.unit_order():
            yield f"net.{name}", unit

    def initialize_weights(self) -> None:
        """The official zeros: the last convolution of every ResBlock, the last projection of every attention and of
        every spatial transformer start at 0 (where the rule itself starts at 0 they do not: two zeros in series would
        never learn), and so does the network's last convolution.
        """
        from neural_rdm.residual.diffusers_blocks import GatedBasicTransformerBlock, gated_blocks

        if not self.residual.closes_branch:
            for _, _, block in gated_blocks(self.net):
                if isinstance(block, GatedBasicTransformerBlock):
                    continue
                for _, last in block.last_layers():
                    for parameter in last.parameters():
                        nn.init.zeros_(parameter)
        nn.init.zeros_(self.net.conv_out.weight)
        nn.init.zeros_(self.net.conv_out.bias)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, in_channels, image_size, image_size] -> [B, out_channels, image_size, image_size]."""
        if self.class_embedder is not None:
            context, y = self.class_embedder(y), None
        if context is None:
            return self.net(x, t, class_labels=y, return_dict=False)[0]
        return self.net(
            x, t, encoder_hidden_states=context, encoder_attention_mask=mask, class_labels=y, return_dict=False
        )[0]


class ClassEmbedder(nn.Module):
    """Labels [B] -> a context of one token [B, 1, D]: LDM's ClassEmbedder, trained with the network."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding(y)[:, None]


def _conditional(
    common: dict[str, Any],
    attends: list[bool],
    widths: list[int],
    num_heads: int | None,
    num_head_channels: int | None,
    transformer_depth: int,
    context_dim: int | None,
) -> nn.Module:
    from diffusers import UNet2DConditionModel

    heads = tuple(num_heads if num_heads is not None else width // (num_head_channels or 1) for width in widths)
    net: Any = UNet2DConditionModel(
        **common,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=heads,  # diffusers' misnomer: it is the number of heads
        transformer_layers_per_block=transformer_depth,
        cross_attention_dim=context_dim,
    )
    return net


def _unconditional(
    common: dict[str, Any],
    attends: list[bool],
    widths: list[int],
    num_heads: int | None,
    num_head_channels: int | None,
    resblock_updown: bool,
) -> nn.Module:
    from diffusers import UNet2DModel

    if num_head_channels is None and num_heads != 1 and len(set(widths)) > 1:
        raise ValueError(
            f"num_heads={num_heads} without a spatial transformer, on levels of different widths: diffusers' network "
            "knows only num_head_channels there (it cannot be ADM's 128 x 128 model)"
        )
    kind = "Resnet{}sampleBlock2D" if resblock_updown else "{}Block2D"
    net: Any = UNet2DModel(
        **common,
        down_block_types=tuple("AttnDownBlock2D" if a else kind.format("Down") for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else kind.format("Up") for a in reversed(attends)),
        attention_head_dim=num_head_channels or (None if num_heads == 1 else widths[0] // (num_heads or 1)),
        attn_norm_num_groups=common["norm_num_groups"],
        downsample_type="resnet" if resblock_updown else "conv",
        upsample_type="resnet" if resblock_updown else "conv",
    )
    return net
