"""diffusers' DiT with the timestep frequencies of the official code. Importing this module imports diffusers."""

from __future__ import annotations

from typing import Any

from diffusers import DiTTransformer2DModel
from diffusers.configuration_utils import register_to_config


class OfficialDiTTransformer2DModel(DiTTransformer2DModel):
    """`DiTTransformer2DModel` that agrees with the official DiT for every t; see `surgery.dit`."""

    transformer_blocks: Any  # diffusers declares none of its attributes

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 72,
        in_channels: int = 4,
        out_channels: int | None = None,
        num_layers: int = 28,
        sample_size: int = 32,
        patch_size: int = 2,
        num_embeds_ada_norm: int = 1000,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        attention_bias: bool = True,
        activation_fn: str = "gelu-approximate",
        upcast_attention: bool = False,
        norm_type: str = "ada_norm_zero",
        norm_elementwise_affine: bool = False,
    ) -> None:
        super().__init__(
            num_attention_heads=num_attention_heads,
            attention_head_dim=attention_head_dim,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            sample_size=sample_size,
            patch_size=patch_size,
            num_embeds_ada_norm=num_embeds_ada_norm,
            norm_eps=norm_eps,
            dropout=dropout,
            norm_num_groups=norm_num_groups,
            attention_bias=attention_bias,
            activation_fn=activation_fn,
            upcast_attention=upcast_attention,
            norm_type=norm_type,
            norm_elementwise_affine=norm_elementwise_affine,
        )
        for block in self.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
