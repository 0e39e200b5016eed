"""DiT (Peebles & Xie, "Scalable Diffusion Models with Transformers") on gated residual units: Neural-RDM-F for images.

Parameter names, initialisation and arithmetic are those of the official `models.py`; the residual additions go through
one `Unit` each, so any of the paper's five rules applies and a state dict is the official one plus the gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.backbones.layers import (
    Attention,
    FinalLayer,
    LabelEmbedder,
    Mlp,
    PatchEmbed,
    TimestepEmbedder,
    modulate,
    sincos_2d,
    unpatchify,
)
from neural_rdm.residual import Residual

#: hidden_size, depth and num_heads of the published sizes; the patch size (2, 4, 8) is the second half of their names
DIT_SIZES: dict[str, dict[str, int]] = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}


class DiTBlock(nn.Module):
    """Two residual units, attention and MLP, whose branches are conditioned by adaLN-Zero."""

    def __init__(
        self, hidden_size: int, num_heads: int, mlp_ratio: float, residual: Residual, gate_init: float
    ) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(hidden_size, num_heads=num_heads, qkv_bias=True)
        self.attn_unit = residual.unit(hidden_size, time_dim=hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(hidden_size, int(hidden_size * mlp_ratio), act_layer=lambda: nn.GELU(approximate="tanh"))
        self.mlp_unit = residual.unit(hidden_size, time_dim=hidden_size)
        # Index 1 keeps the official key; the SiLU before it is the same for every block, so DiT.forward applies it
        # once.
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(hidden_size, 6 * hidden_size))
        self.gate_init = gate_init

    def forward(self, z: Tensor, c: Tensor, e: Tensor) -> Tensor:
        """z [B, N, D], c = SiLU(condition) [B, D], e = timestep embedding [B, D] -> [B, N, D]."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        z = self.attn_unit(z, lambda h: self.attn(modulate(self.attn_norm(h), shift_a, scale_a)), gate_a, e)
        return self.mlp_unit(z, lambda h: self.mlp(modulate(self.mlp_norm(h), shift_m, scale_m)), gate_m, e)

    def reset_modulation(self) -> None:
        """adaLN-Zero: shifts, scales and gates start at 0; the gates at 1 where the rule starts at zero itself."""
        linear = self.adaLN_modulation[1]
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        with torch.no_grad():
            gates = linear.bias.view(6, -1)[[2, 5]]
            linear.bias.view(6, -1)[[2, 5]] = torch.full_like(gates, self.gate_init)


class DiT(nn.Module):
    """Diffusion transformer for square images or latents.

    Args:
        input_size: side of the input, in pixels or latent cells; a multiple of `patch_size`.
        patch_size: side of a token's patch.
        in_channels: channels of the input.
        hidden_size: width D of the residual stream; a multiple of `num_heads` and of 4 (position table).
        depth: blocks; each holds two residual units.
        num_heads: attention heads.
        mlp_ratio: width of the MLP over D.
        class_dropout_prob: the rate of label dropout it is trained with; above 0 the table has a null class,
            `num_classes`. The dropout itself belongs to the training step (`conditioning.labels`).
        num_classes: class labels; 0 builds an unconditional network.
        learn_sigma: predict the variance too: 2 * in_channels outputs.
        residual: the residual rule, by name or as a `Residual`.
        adaln_gate_init: start of the adaLN gates; None for 0 (adaLN-Zero), or 1 where the rule starts at zero itself.

    Raises:
        ValueError: sizes that do not divide, an unknown rule, two zero factors in series.
    """

    def __init__(
        self,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        class_dropout_prob: float = 0.1,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        *,
        residual: str | Residual = "gated",
        adaln_gate_init: float | None = None,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads} and of 4")
        if input_size % patch_size:
            raise ValueError(f"input_size={input_size} must be a multiple of patch_size={patch_size}")
        residual = Residual.of(residual)
        gate_init = residual.gate_init(adaln_gate_init)
        self.input_size, self.patch_size, self.in_channels, self.hidden_size = (
            input_size,
            patch_size,
            in_channels,
            hidden_size,
        )
        self.out_channels = in_channels * 2 if learn_sigma else in_channels
        self.num_classes, self.class_dropout_prob, self.learn_sigma = num_classes, class_dropout_prob, learn_sigma
        self.rule = residual.unit_class

        self.x_embedder = PatchEmbed(input_size, patch_size, in_channels, hidden_size, bias=True)
        self.t_embedder = TimestepEmbedder(hidden_size)
        if num_classes > 0:
            self.y_embedder = LabelEmbedder(num_classes, hidden_size, has_null=class_dropout_prob > 0)
        tokens = (input_size // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, hidden_size), requires_grad=False)
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, residual, gate_init) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_size, self.out_channels)
        self.initialize_weights()

    @classmethod
    def named(cls, name: str, **arguments: Any) -> DiT:
        """A published size by its name, e.g. `DiT.named("DiT-XL/2", input_size=32)`.

        Raises:
            ValueError: no such size.
        """
        size, _, patch = name.removeprefix("DiT-").partition("/")
        if size not in DIT_SIZES or patch not in ("2", "4", "8"):
            raise ValueError(f"{name!r} is not DiT-{{{','.join(DIT_SIZES)}}}/{{2,4,8}}")
        return cls(patch_size=int(patch), **DIT_SIZES[size], **arguments)

    @property
    def null_class(self) -> int | None:
        """The label that stands for "no class" in guidance, or None where the network has none."""
        return self.num_classes if self.num_classes > 0 and self.class_dropout_prob > 0 else None

    def initialize_weights(self) -> None:
        """The official initialisation: Xavier linears, N(0, 0.02) embedders, zeros where the output must start at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.pos_embed.copy_(sincos_2d(self.hidden_size, self.input_size // self.patch_size)[None])
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.zeros_(projection.bias)
        if self.num_classes > 0:
            nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for block in self.blocks:
            block.reset_modulation()
        for linear in (self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predict the noise (and, with `learn_sigma`, the variance's interpolation) of a noisy batch.

        Args:
            x: [B, in_channels, input_size, input_size].
            t: timesteps [B], 0 to 999.
            y: class labels [B], 0 to num_classes (the null class); None for an unconditional network.

        Returns:
            [B, out_channels, input_size, input_size].
        """
        if (y is None) != (self.num_classes <= 0):
            raise ValueError(
                f"DiT with num_classes={self.num_classes} was called {'without' if y is None else 'with'} labels y"
            )
        z = self.x_embedder(x) + self.pos_embed
        e = self.t_embedder(t)
        c = nn.functional.silu(e if y is None else e + self.y_embedder(y))
        z = self.rule.open(z)
        for block in self.blocks:
            z = block(z, c, e)
        z = self.rule.close(z)
        return unpatchify(self.final_layer(z, c), self.patch_size, self.out_channels)
