"""The same as `networks` for the classes that take images as packed tokens."""

from __future__ import annotations

from typing import Any

import torch

from tests.residual.foreign.networks import (
    FLUX,
    SMALL,
    TEXT,
    B,
    Inputs,
    ids,
    image,
    mask,
    network,
    t,
    text,
    tokens,
    video,
)


def flux(**more: Any) -> Inputs:
    return {
        "hidden_states": tokens(), "encoder_hidden_states": text(), "timestep": torch.rand(B), "img_ids": ids(4),
        "txt_ids": ids(TEXT) * 0, **more,
    }  # fmt: skip


@network("FluxTransformer2DModel", **FLUX, pooled_projection_dim=8)
def _() -> Inputs:
    return flux(pooled_projections=torch.randn(B, 8))


@network("Flux2Transformer2DModel", **FLUX | {"axes_dims_rope": (2, 2, 2, 2)}, timestep_guidance_channels=8)
def _() -> Inputs:
    return flux(guidance=torch.ones(B), img_ids=ids(4, 4), txt_ids=ids(TEXT, 4))


@network("Flux3Transformer2DModel", **FLUX | {"axes_dims_rope": (2, 2, 2, 2)}, cond_in_channels=4, timestep_channels=8)
def _() -> Inputs:
    return flux(
        img_ids=ids(4, 4), txt_ids=ids(TEXT, 4), image_cond_hidden_states=tokens(), image_cond_ids=ids(4, 4)
    )  # fmt: skip


@network("ChromaTransformer2DModel", **FLUX, approximator_num_channels=8, approximator_hidden_dim=16,
         approximator_layers=1)  # fmt: skip
def _() -> Inputs:
    return flux()


@network("BriaTransformer2DModel", **FLUX, pooled_projection_dim=8)
def _() -> Inputs:
    return flux()


@network("BriaFiboTransformer2DModel", **FLUX, text_encoder_dim=6)
def _() -> Inputs:
    return flux(text_encoder_layers=[text(6) for _ in range(4)])


@network("BriaFibo2Transformer2DModel", in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2,
         cap_feat_dim=12, injection_layer_ids=(1,), perceiver_num_layers=1, min_num_gist_tokens=2,
         max_num_gist_tokens=4, gist_step=1, gist_min_text_len=2, gist_max_text_len=8, axes_dims=(2, 2, 4),
         axes_lens=(64, 16, 16))  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(4, 4), "timestep": torch.rand(B), "encoder_hidden_states": torch.randn(B, 2, TEXT, 12),
    }  # fmt: skip


@network("LongCatImageTransformer2DModel", **FLUX, pooled_projection_dim=8)
def _() -> Inputs:
    return flux()


@network("OvisImageTransformer2DModel", **FLUX, out_channels=4)
def _() -> Inputs:
    return flux()


@network("QwenImageTransformer2DModel", **SMALL, in_channels=4, out_channels=1, joint_attention_dim=12,
         axes_dims_rope=(2, 2, 4))  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": tokens(), "encoder_hidden_states": text(), "encoder_hidden_states_mask": mask(),
        "timestep": torch.rand(B), "img_shapes": [[(1, 2, 2)]] * B,
    }  # fmt: skip


@network("QwenImage21Transformer2DModel", **SMALL, in_channels=4, out_channels=4, context_in_dim=12,
         axes_dims_rope=(2, 2, 4))  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": tokens(), "encoder_hidden_states": text(), "encoder_hidden_states_mask": mask(),
        "timestep": torch.rand(B), "img_shapes": [[(1, 2, 2)]] * B,
        "img_mask": torch.tensor([[False] * TEXT + [True]] * B),
    }  # fmt: skip


@network("NucleusMoEImageTransformer2DModel", **SMALL, in_channels=4, out_channels=1, joint_attention_dim=12,
         axes_dims_rope=(2, 2, 4), num_experts=2, moe_intermediate_dim=8, moe_enabled=True, capacity_factors=2.0,
         dense_moe_strategy="leave_first_block_dense")  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": tokens(), "encoder_hidden_states": text(), "encoder_hidden_states_mask": mask(),
        "timestep": torch.rand(B), "img_shapes": [(1, 2, 2)] * B,
    }  # fmt: skip


@network("HunyuanImageTransformer2DModel", **SMALL, in_channels=4, out_channels=4, num_single_layers=2,
         num_refiner_layers=1, text_embed_dim=12, rope_axes_dim=(4, 4))  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(size=4), "timestep": t().float(), "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
    }  # fmt: skip


@network("Krea2Transformer2DModel", in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
         num_key_value_heads=1, intermediate_size=24, timestep_embed_dim=8, text_hidden_dim=12, num_text_layers=2,
         text_num_attention_heads=2, text_num_key_value_heads=1, text_intermediate_size=16,
         num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 2, 2))  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": tokens(), "encoder_hidden_states": torch.randn(B, TEXT, 2, 12), "timestep": torch.rand(B),
        "position_ids": torch.arange(TEXT + 4)[:, None].repeat(1, 3),
    }  # fmt: skip


@network("JoyImageEditTransformer3DModel", in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=12,
         num_layers=2, rope_dim_list=[2, 2, 4])  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": video(), "timestep": t(), "encoder_hidden_states": text()}


@network("JoyImageEditPlusTransformer3DModel", in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=12,
         num_layers=2, rope_dim_list=[2, 2, 4])  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 8, 4, 1, 2, 2), "timestep": t(), "encoder_hidden_states": text(),
        "shape_list": [[(2, 2, 2)]] * B,
    }  # fmt: skip
