"""U-ViT (Bao et al., "All are Worth Words") on gated residual units: Neural-RDM-U as a transformer.

Everything is a token: the timestep, the class or the words of a text, the patches. Every block of the second half first
joins the stream of its partner in the first half (a long skip). Parameter names, initialisation and arithmetic are
those of the official `libs/uvit.py` and `libs/uvit_t2i.py`; both additions of a block go through one `Unit` each, so
that the read-in and the read-out branch carry their own gates (theory, section 1, Eq. 3).
"""

from __future__ import annotations

from typing import Annotated

import torch
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from neural_rdm.backbones import constraints
from neural_rdm.backbones.attention import SelfAttention
from neural_rdm.backbones.contract import Backbone, LastLayers
from neural_rdm.backbones.layers import Blocks, Float32Linear, PatchEmbed, frequencies, linear_layers, unpatchify, waves
from neural_rdm.backbones.options import Options, Skip, Skips, draws, joined, thinned
from neural_rdm.core.arguments import Count, Fraction, Positive, at_least, checked
from neural_rdm.residual import Plan, Residual, Stream

#: embed_dim, depth and num_heads of the published sizes; the patch size (2, 4) is the second half of their names
UVIT_SIZES: dict[str, dict[str, int]] = {
    "S": {"embed_dim": 512, "depth": 12, "num_heads": 8},
    "S-Deep": {"embed_dim": 512, "depth": 16, "num_heads": 8},
    "M": {"embed_dim": 768, "depth": 16, "num_heads": 12},
    "L": {"embed_dim": 1024, "depth": 20, "num_heads": 16},
    "H": {"embed_dim": 1152, "depth": 28, "num_heads": 16},
}


class UViTBlock(nn.Module):
    """Two residual units, attention and MLP; a block of the second half first mixes its skip into the stream."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        skip: bool,
        plan: Plan,
        number: int,
        options: Options,
    ) -> None:
        super().__init__()
        self.mixes_values, self.norm_scale = options.value_residual, options.norm_scale(number)
        self.norm1 = nn.LayerNorm(dim)
        if options.value_residual:
            self.attn: Attention = SelfAttention(dim, num_heads, mixes=number > 0, qkv_bias=qkv_bias)
        else:
            self.attn = Attention(dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.attn_unit = plan.unit("attn", number)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.mlp_unit = plan.unit("mlp", number)
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def mixed(self, z: Tensor, skip: Tensor) -> Tensor:
        """z and its long skip, each [B, N, D], joined into [B, N, D]; only where the block has a skip."""
        assert self.skip_linear is not None
        return self.skip_linear(torch.cat([z, skip], dim=-1)).to(z.dtype)  # the stream stays float32 under autocast

    def forward(
        self,
        z: Stream,
        e: Tensor,
        values: Tensor | None = None,
        skip: Skip | None = None,
        drawn: Tensor | None = None,
    ) -> tuple[Stream, Tensor | None]:
        """The stream, of tensors [B, N, D], behind this block, and the values of the first attention; e = timestep
        embedding [B, D], the others as in `dit.DiTBlock`.
        """
        held: list[Tensor] = [] if values is None else [values]

        def attend(h: Tensor) -> Tensor:
            h = self.norm_scale(self.norm1(h))
            return thinned(self.attn(h, held) if self.mixes_values else self.attn(h), drawn, 0)

        if skip is not None:
            z = joined(z, skip, self.mixed)
        z = self.attn_unit(z, attend, None, e)
        z = self.mlp_unit(z, lambda h: thinned(self.mlp(self.norm_scale(self.norm2(h))), drawn, 1), None, e)
        return z, held[0] if held else None

    def last_layers(self) -> LastLayers:
        """Every unit, in run order, with the last affine layer of its branch."""
        return [(self.attn_unit, self.attn.proj), (self.mlp_unit, self.mlp.fc2)]


@checked(
    constraints.tokens_fit,
    constraints.pairs_of_blocks,
    constraints.one_text,
    constraints.null_row,
    constraints.own_skips,
)
class UViT(Backbone):
    """U-ViT for square images or latents: unconditional, with class labels, or with a text (`clip_dim`).

    Args:
        img_size: side of the input, in pixels or latent cells; a multiple of `patch_size`.
        patch_size: side of a token's patch.
        in_chans: channels of input and output.
        embed_dim: width D of the residual stream; even, and a multiple of `num_heads`.
        depth: blocks beside the middle one, half of them before it and half behind it, rounded down to pairs.
        num_heads: attention heads.
        mlp_ratio: width of the MLP over D.
        qkv_bias: biases in the projections to queries, keys and values.
        mlp_time_embed: the timestep's embedding goes through an MLP.
        num_classes: rows of the label table, the null class among them (1001 for ImageNet); -1 for no labels. The
            attribute of this name holds the classes of the data.
        conv: a 3 x 3 convolution behind the patches.
        skip: long skips between the two halves.
        clip_dim: width of the tokens of a text; None for no text.
        num_clip_token: how many tokens every text has; goes with `clip_dim`.
        class_dropout_prob: the rate at which it is trained without its condition; above 0 the last row of the label
            table is the null class. The dropout itself belongs to the training step (`conditioning.labels`).
        residual: the residual rule, by name or as a `Residual`.
        value_residual, lns, stochastic_depth: see `options.Options`.
        long_skip: refused: `skip` is this network's own.

    Raises:
        ValueError: sizes that do not divide, labels together with a text, an unknown rule.
    """

    u_shaped = True
    sizes = UVIT_SIZES
    patches = (2, 4)

    def __init__(
        self,
        img_size: Count = 224,
        patch_size: Count = 16,
        in_chans: Count = 3,
        embed_dim: Count = 768,
        depth: Count = 12,
        num_heads: Count = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = False,
        mlp_time_embed: bool = False,
        num_classes: Annotated[int, at_least(-1)] = -1,
        conv: bool = True,
        skip: bool = True,
        clip_dim: Count | None = None,
        num_clip_token: Count | None = None,
        *,
        class_dropout_prob: Fraction = 0.1,
        residual: str | Residual = "gated",
        value_residual: bool = False,
        long_skip: Positive | None = None,
        lns: bool = False,
        stochastic_depth: Fraction = 0.0,
    ) -> None:
        super().__init__()
        residual = Residual.of(residual)
        self.options = Options(value_residual, long_skip, lns, stochastic_depth)
        self.img_size, self.patch_size, self.in_chans, self.out_channels = img_size, patch_size, in_chans, in_chans
        self.input_shape = in_chans, img_size, img_size
        self.embed_dim, self.depth, self.num_heads, self.mlp_ratio = embed_dim, depth, num_heads, mlp_ratio
        self.class_dropout_prob = class_dropout_prob
        self.num_classes = max(num_classes, 0) - (num_classes > 0 and class_dropout_prob > 0)
        self.context_dim, self.context_length = clip_dim, num_clip_token
        self.residual = residual
        if skip and (reason := residual.unit_class.no_reopening):
            raise ValueError(f"residual={residual.rule!r} cannot be had in a U-ViT with long skips: {reason}")
        #: tokens in front of the patches: the timestep's, and a label's or a text's
        self.extras = 1 + (num_classes > 0) + (num_clip_token or 0)

        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim, bias=True)
        self.time_embed: nn.Module = nn.Identity()
        if mlp_time_embed:
            self.time_embed = nn.Sequential(
                Float32Linear(embed_dim, 4 * embed_dim), nn.SiLU(), Float32Linear(4 * embed_dim, embed_dim)
            )
        if num_classes > 0:
            self.label_emb = nn.Embedding(num_classes, embed_dim)
        if clip_dim is not None:
            self.context_embed = nn.Linear(clip_dim, embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.extras + (img_size // patch_size) ** 2, embed_dim))

        half = depth // 2
        plan = residual.plan(2 * (2 * half + 1), embed_dim, time_dim=embed_dim)

        def block(number: int, skip: bool = False) -> UViTBlock:
            return UViTBlock(embed_dim, num_heads, mlp_ratio, qkv_bias, skip, plan, number, self.options)

        self.stack = plan.stack
        self.in_blocks: Blocks[UViTBlock] = Blocks(block(i) for i in range(half))
        self.mid_block = block(half)
        self.out_blocks: Blocks[UViTBlock] = Blocks(block(half + 1 + i, skip) for i in range(half))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1) if conv else nn.Identity()
        self.initialize_weights()

    @property
    def blocks(self) -> list[UViTBlock]:
        """Every block, in run order."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    def initialize_weights(self) -> None:
        """The official initialisation: position table and linear layers truncated N(0, 0.02), biases 0."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for layer in linear_layers(self):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, in_chans, img_size, img_size] -> the same.

        The mask is not used: the official network knows none and attends to padding like to any other token. It was
        trained on the encoder's states there (`TextEncoder`, keep_padding=True).
        """
        e = self.time_embed(waves(t, frequencies(self.embed_dim, t.device)).to(self.pos_embed.dtype))
        tokens = [e[:, None], self.patch_embed(x)]
        if y is not None:
            tokens.insert(0, self.label_emb(y)[:, None])
        if context is not None:
            tokens.insert(1, self.context_embed(context))
        stream = self.stack.open(torch.cat(tokens, dim=1) + self.pos_embed)
        values: Tensor | None = None
        skips = Skips(self.stack, sum(block.skip_linear is not None for block in self.out_blocks))
        for block, drawn in zip(self.blocks, draws(self, self.blocks, len(x), x.device), strict=True):
            stream, values = block(stream, e, values, skips.take(block), drawn)
            skips.keep(stream)
        patches = self.decoder_pred(self.norm(self.stack.close(stream, e)))[:, self.extras :]
        return self.final_layer(unpatchify(patches, self.patch_size, self.in_chans))
