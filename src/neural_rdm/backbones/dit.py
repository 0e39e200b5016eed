"""DiT (Peebles & Xie, "Scalable Diffusion Models with Transformers") on gated residual units: Neural-RDM-F for images.

Parameter names, initialisation and arithmetic are those of the official `models.py`; the residual additions go through
one `Unit` each, so any of the paper's five rules applies and a state dict is the official one plus the gates.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from neural_rdm.backbones import constraints
from neural_rdm.backbones.attention import CrossAttention
from neural_rdm.backbones.contract import Backbone, LastLayers
from neural_rdm.backbones.layers import (
    MLP,
    Blocks,
    FinalLayer,
    Float32Linear,
    Kernel,
    LabelEmbedder,
    Norm,
    PatchEmbed,
    Positions,
    Registers,
    Shift,
    Style,
    TimestepEmbedder,
    linear_layers,
    modulate,
    repeated,
    sincos_2d,
    unpatchify,
)
from neural_rdm.backbones.options import LongSkip, Options, Skip, Skips, draws, joined, thinned
from neural_rdm.core.arguments import Count, Fraction, Natural, Positive, checked
from neural_rdm.residual import Plan, Residual, Stream

#: hidden_size, depth and num_heads of the published sizes; the patch size (2, 4, 8) is the second half of their names
DIT_SIZES: dict[str, dict[str, int]] = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}

Text = tuple[Tensor, "Tensor | None"]  # context [B, L, E] and its mask [B, L]


class DiTBlock(nn.Module):
    """Two residual units, attention and MLP, whose branches are conditioned by adaLN-Zero; with a text a third, in
    between, that attends to it.

    Args:
        plan: the stack that its units are the next of.
        number: which block of the network it is.
        grid: the tokens along each axis that attend to one another: (side, side), or (frames,).
        gate_init: start of the adaLN gates.
        context_dim: width of the text's tokens, or None.
        shared: the network makes the modulation of all blocks, and each only shifts it (adaLN-single).
        options: what goes beside the residual rule.
        first: its attention is the first of its kind, whose values the others mix in.
        joins: a long skip ends in it.
    """

    #: the units whose branch it multiplies by a gate of its own
    own_gates = ("attn_unit", "mlp_unit")

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        plan: Plan,
        number: int,
        gate_init: float,
        grid: tuple[int, ...],
        context_dim: int | None = None,
        style: Style = Style(),  # noqa: B008 (frozen)
        shared: bool = False,
        options: Options = Options(),  # noqa: B008 (frozen)
        first: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.mixes_values, self.norm_scale = options.value_residual, options.norm_scale(number)
        self.attn_norm = style.norm_layer(hidden_size)
        self.attn = style.attention_layer(hidden_size, num_heads, grid, not first if options.value_residual else None)
        self.attn_unit = plan.unit("attn", number)
        if context_dim is not None:
            self.cross_norm = style.norm_layer(hidden_size)
            self.cross_attn = CrossAttention(hidden_size, context_dim, num_heads)
            self.cross_unit = plan.unit("cross", number)
        self.mlp_norm = style.norm_layer(hidden_size)
        self.mlp = style.mlp_layer(hidden_size, int(hidden_size * mlp_ratio))
        self.mlp_unit = plan.unit("mlp", number)
        # Index 1 keeps the official key; the SiLU before it is the same for every block, so the network applies it
        # once.
        last = Shift(6 * hidden_size) if shared else Float32Linear(hidden_size, 6 * hidden_size)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), last)
        self.skip_linear = LongSkip(hidden_size) if joins else None
        self.gate_init, self.closed = gate_init, plan.residual.closes_branch

    def forward(
        self,
        z: Stream,
        c: Tensor,
        e: Tensor,
        text: Text | None = None,
        repeat: int = 1,
        values: Tensor | None = None,
        skip: Skip | None = None,
        drawn: Tensor | None = None,
    ) -> tuple[Stream, Tensor | None]:
        """The stream, of tensors [B * repeat, N, D], behind this block, and the values of the first attention.

        Args:
            z: the stream in front of it.
            c: SiLU(condition) [B, D].
            e: timestep embedding [B, D].
            text: context [B, L, E] and its mask.
            repeat: rows of the stream that belong to one of c and e, in a row: the frames of a clip, say.
            values: of the first attention [B * repeat, heads, N, head_dim], behind it; None without value residual.
            skip: what a long skip joins to the stream.
            drawn: for stochastic depth, see `options.draws` [B, units].
        """
        e, drawn = repeated(e, repeat), None if drawn is None else repeated(drawn, repeat)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = repeated(self.adaLN_modulation(c), repeat).chunk(6, dim=1)
        held: list[Tensor] = [] if values is None else [values]

        def attend(h: Tensor) -> Tensor:
            h = modulate(self.norm_scale(self.attn_norm(h)), shift_a, scale_a)
            return thinned(self.attn(h, held) if self.mixes_values else self.attn(h), drawn, 0)

        def read_text(h: Tensor) -> Tensor:
            assert text is not None
            return thinned(self.cross_attn(self.norm_scale(self.cross_norm(h)), *text), drawn, 1)

        def transform(h: Tensor) -> Tensor:
            return thinned(self.mlp(modulate(self.norm_scale(self.mlp_norm(h)), shift_m, scale_m)), drawn, -1)

        if skip is not None and self.skip_linear is not None:
            z = joined(z, skip, self.skip_linear)
        z = self.attn_unit(z, attend, gate_a, e)
        if text is not None:
            z = self.cross_unit(z, read_text, None, e)
        return self.mlp_unit(z, transform, gate_m, e), held[0] if held else None

    @property
    def adaLN_bias(self) -> Tensor:
        """What the modulation is at a condition of zero [6 * D]: shift, scale, gate of attention, then of the MLP."""
        return self.adaLN_modulation.get_parameter("1.bias")

    def last_layers(self) -> LastLayers:
        """Every unit, in run order, with the last affine layer of its branch."""
        pairs: LastLayers = [(self.attn_unit, self.attn.proj), (self.mlp_unit, self.mlp.fc2)]
        if hasattr(self, "cross_unit"):
            pairs.insert(1, (self.cross_unit, self.cross_attn.proj))
        return pairs

    @torch.no_grad()
    def reset_branches(self) -> None:
        """adaLN-Zero: shifts, scales and gates start at 0, the gates at 1 where the rule starts at zero itself.

        Cross-attention has no adaLN gate: there the last projection starts at zero, unless the rule does.
        """
        for parameter in self.adaLN_modulation.parameters():
            nn.init.zeros_(parameter)
        self.adaLN_bias.view(6, -1)[[2, 5]] = self.gate_init
        if hasattr(self, "cross_unit") and not self.closed:
            nn.init.zeros_(self.cross_attn.proj.weight)


@checked(constraints.heads_divide, constraints.position_table, constraints.patches_fit, constraints.rope_turns)
class DiT(Backbone):
    """Diffusion transformer for square images or latents.

    Args:
        input_size: side of the input, in pixels or latent cells; a multiple of `patch_size`.
        patch_size: side of a token's patch.
        in_channels: channels of the input.
        hidden_size: width D of the residual stream; a multiple of `num_heads` and of 4 (position table).
        depth: blocks; each holds two residual units, three with a text.
        num_heads: attention heads.
        mlp_ratio: width of the MLP over D.
        class_dropout_prob: the rate at which it is trained without its condition; above 0 the label table has a null
            class, `num_classes`. The dropout itself belongs to the training step (`conditioning.labels`).
        num_classes: class labels; 0 builds a network without them.
        learn_sigma: predict the variance too: 2 * in_channels outputs.
        context_dim: width of the tokens of a text that every block attends to; None for no text.
        residual: the residual rule, by name or as a `Residual`.
        adaln_gate_init: start of the adaLN gates; None for 0 (adaLN-Zero), or 1 where the rule starts at zero itself.
        adaln: `block`, or `single`: one modulation network for all blocks, which only shift it (PixArt); saves a fifth
            of the parameters.
        qk_norm, norm, mlp, positions, register_tokens, attention: see `layers.Style`.
        value_residual, long_skip, lns, stochastic_depth: see `options.Options`.

    Raises:
        ValueError: sizes that do not divide, an unknown rule or option, two zero factors in series, long skips under a
            rule that cannot have them.
    """

    blocks: Blocks[DiTBlock]
    #: kinds of self-attention, in turns: each begins with a first one, whose values the others mix in
    kinds: ClassVar[int] = 1
    sizes = DIT_SIZES
    patches = (2, 4, 8)

    def __init__(
        self,
        input_size: Count = 32,
        patch_size: Count = 2,
        in_channels: Count = 4,
        hidden_size: Count = 1152,
        depth: Count = 28,
        num_heads: Count = 16,
        mlp_ratio: Positive = 4.0,
        class_dropout_prob: Fraction = 0.1,
        num_classes: Natural = 1000,
        learn_sigma: bool = True,
        *,
        context_dim: Count | None = None,
        residual: str | Residual = "gated",
        adaln_gate_init: float | None = None,
        adaln: Literal["block", "single"] = "block",
        qk_norm: bool = False,
        norm: Norm = "layer",
        mlp: MLP = "gelu",
        positions: Positions = "sincos",
        register_tokens: Natural = 0,
        attention: Kernel = "auto",
        value_residual: bool = False,
        long_skip: Positive | None = None,
        lns: bool = False,
        stochastic_depth: Fraction = 0.0,
    ) -> None:
        super().__init__()
        residual = Residual.of(residual)
        self.options = Options(value_residual, long_skip, lns, stochastic_depth)
        self.options.check(residual)
        self.input_size, self.patch_size, self.in_channels = input_size, patch_size, in_channels
        self.input_shape = in_channels, input_size, input_size
        self.hidden_size, self.depth, self.num_heads, self.mlp_ratio = hidden_size, depth, num_heads, mlp_ratio
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_classes, self.class_dropout_prob, self.learn_sigma = num_classes, class_dropout_prob, learn_sigma
        self.context_dim = context_dim
        self.residual, self.gate_init = residual, residual.gate_init(adaln_gate_init)
        self.style, self.shared = Style(qk_norm, norm, mlp, positions, register_tokens, attention), adaln == "single"

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size, bias=True)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if num_classes > 0:
            self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null=class_dropout_prob > 0)
        self.side = input_size // patch_size
        self.pos_embed = nn.Parameter(torch.zeros(1, self.side**2, hidden_size), requires_grad=False)
        self.registers = Registers(register_tokens, hidden_size) if register_tokens else nn.Identity()
        self.modulation = Float32Linear(hidden_size, 6 * hidden_size) if self.shared else nn.Identity()
        plan = residual.plan(self._units(depth), hidden_size, time_dim=hidden_size)
        self.stack, self.blocks = plan.stack, self._blocks(depth, plan)
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    def _units(self, depth: int) -> int:
        return depth * (2 if self.context_dim is None else 3)

    def _blocks(self, depth: int, plan: Plan) -> Blocks[DiTBlock]:
        return Blocks(self._block(plan, i, (self.side, self.side), self.context_dim) for i in range(depth))

    def _block(self, plan: Plan, number: int, grid: tuple[int, ...], context_dim: int | None) -> DiTBlock:
        sizes, style = (self.hidden_size, self.num_heads, self.mlp_ratio), (self.style, self.shared, self.options)
        joins = self.options.long_skip is not None and number >= self.depth - self.depth // 2
        return DiTBlock(*sizes, plan, number, self.gate_init, grid, context_dim, *style, number < self.kinds, joins)

    def _skips(self) -> Skips:
        k = self.options.long_skip
        return Skips(self.stack, 0) if k is None else Skips(self.stack, self.depth // 2, k)

    def initialize_weights(self) -> None:
        """The official initialisation: Xavier linears, N(0, 0.02) embedders, zeros where the output must start at 0."""
        for layer in linear_layers(self):
            if isinstance(layer, LongSkip):
                continue
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if self.style.positions == "sincos":
            with torch.no_grad():
                self.pos_embed.copy_(sincos_2d(self.hidden_size, self.side)[None])
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        assert projection.bias is not None
        nn.init.zeros_(projection.bias)
        if self.num_classes > 0:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in linear_layers(self.t_embedder):
            nn.init.normal_(layer.weight, std=0.02)
        if isinstance(self.registers, Registers):
            nn.init.normal_(self.registers.tokens, std=0.02)
        for layer in linear_layers(self.modulation):
            nn.init.zeros_(layer.weight)
        for block in self.blocks:
            block.reset_branches()
        for parameter in self.final_layer.parameters():  # its norm has none
            nn.init.zeros_(parameter)

    def conditioned(self, e: Tensor, y: Tensor | None, context: Tensor | None) -> Tensor:
        """SiLU of the timestep's embedding [B, D] plus that of labels [B]: what modulates the blocks."""
        return nn.functional.silu(e if y is None else e + self.y_embedder(y))

    def predict(self, x: Tensor, t: Tensor, y: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B, in_channels, input_size, input_size] -> [B, out_channels, input_size, input_size]."""
        z = self.registers(self.x_embedder(x) + self.pos_embed)
        e = self.t_embedder(t)
        c = self.conditioned(e, y, context)
        modulation, text = self.modulation(c), None if context is None else (context, mask)
        stream, skips = self.stack.open(z), self._skips()
        values: Tensor | None = None
        for block, drawn in zip(self.blocks, draws(self, self.blocks, len(x), x.device), strict=True):
            stream, values = block(stream, modulation, e, text, 1, values, skips.take(block), drawn)
            skips.keep(stream)
        z = self.stack.close(stream, e)[:, self.style.register_tokens :]
        return unpatchify(self.final_layer(z, c), self.patch_size, self.out_channels)
