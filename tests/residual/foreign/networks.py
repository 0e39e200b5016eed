"""A small configuration and inputs for the transformer classes of diffusers: two heads, one or two blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

B, TEXT = 2, 6

#: heads and blocks under the names that most classes have
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2}
FLUX = {**SMALL, "in_channels": 4, "num_single_layers": 2, "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4)}
WAN = {**SMALL, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16,
       "ffn_dim": 24}  # fmt: skip
HUNYUAN = {**SMALL, "in_channels": 4, "out_channels": 4, "num_refiner_layers": 1, "patch_size": 2, "text_embed_dim": 12,
           "pooled_projection_dim": 8, "rope_axes_dim": (2, 2, 4)}  # fmt: skip

Inputs = dict[str, Any]
NETWORKS: dict[str, tuple[dict[str, Any], Callable[[], Inputs]]] = {}


def network(name: str, **config: Any) -> Callable[[Callable[[], Inputs]], Callable[[], Inputs]]:
    """Decorator: these are inputs for the class of this name in this configuration."""

    def register(inputs: Callable[[], Inputs]) -> Callable[[], Inputs]:
        NETWORKS[name] = (config, inputs)
        return inputs

    return register


def t() -> Tensor:
    return torch.tensor([3, 500])


def image(channels: int = 4, size: int = 8) -> Tensor:
    return torch.randn(B, channels, size, size)


def video(channels: int = 4, frames: int = 2, size: int = 4) -> Tensor:
    return torch.randn(B, channels, frames, size, size)


def text(width: int = 12, length: int = TEXT) -> Tensor:
    return torch.randn(B, length, width)


def tokens(width: int = 4, length: int = 4) -> Tensor:
    return torch.randn(B, length, width)


def mask(length: int = TEXT) -> Tensor:
    return torch.ones(B, length, dtype=torch.long)


def ids(length: int, axes: int = 3) -> Tensor:
    return torch.arange(length).float()[:, None].repeat(1, axes)


@network("DiTTransformer2DModel", **SMALL, in_channels=4, sample_size=8, num_embeds_ada_norm=1000)
def _() -> Inputs:
    return {"hidden_states": image(), "timestep": t(), "class_labels": torch.tensor([1, 2])}


@network("PixArtTransformer2DModel", **SMALL, cross_attention_dim=16, caption_channels=12, sample_size=8)
def _() -> Inputs:
    size = {"resolution": None, "aspect_ratio": None}
    return {"hidden_states": image(), "encoder_hidden_states": text(), "timestep": t(), "added_cond_kwargs": size}


@network("SD3Transformer2DModel", **SMALL, in_channels=4, out_channels=4, sample_size=8, joint_attention_dim=12,
         caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8, dual_attention_layers=(0,),
         )  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(), "encoder_hidden_states": text(), "pooled_projections": torch.randn(B, 8),
        "timestep": t(),
    }  # fmt: skip


@network("SanaTransformer2DModel", **SMALL, in_channels=4, out_channels=4, num_cross_attention_heads=2,
         cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12, sample_size=4)  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": image(size=4), "encoder_hidden_states": text(), "timestep": t()}


@network("AuraFlowTransformer2DModel", sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1,
         attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
         pos_embed_max_size=64)  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": image(), "encoder_hidden_states": text(), "timestep": t() / 1000}


@network("HunyuanDiT2DModel", num_attention_heads=2, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8,
         hidden_size=16, num_layers=4, cross_attention_dim=8, cross_attention_dim_t5=16, pooled_projection_dim=8,
         text_len=4, text_len_t5=4)  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(), "timestep": t().float(), "encoder_hidden_states": text(8, 4),
        "text_embedding_mask": mask(4),
        "encoder_hidden_states_t5": text(16, 4), "text_embedding_mask_t5": mask(4),
        "image_meta_size": torch.ones(B, 6), "style": torch.zeros(B, dtype=torch.long),
        "image_rotary_emb": [torch.ones(16, 8), torch.zeros(16, 8)],
    }  # fmt: skip


@network("CogView3PlusTransformer2DModel", **SMALL, in_channels=4, out_channels=4, text_embed_dim=12, time_embed_dim=8,
         condition_dim=4, pos_embed_max_size=8, sample_size=8)  # fmt: skip
def _() -> Inputs:
    size = torch.tensor([[8, 8]] * B)
    return {
        "hidden_states": image(), "encoder_hidden_states": text(), "timestep": t(), "original_size": size,
        "target_size": size, "crop_coords": size * 0,
    }  # fmt: skip


@network("CogView4Transformer2DModel", **SMALL, in_channels=4, out_channels=4, text_embed_dim=12, time_embed_dim=8,
         condition_dim=4, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8))  # fmt: skip
def _() -> Inputs:
    size = torch.tensor([[8.0, 8.0]] * B)
    return {
        "hidden_states": image(), "encoder_hidden_states": text(), "timestep": t(), "original_size": size,
        "target_size": size, "crop_coords": size * 0,
    }  # fmt: skip


@network("GlmImageTransformer2DModel", **SMALL, in_channels=4, out_channels=4, text_embed_dim=12, time_embed_dim=8,
         condition_dim=4, prior_vq_quantizer_codebook_size=16)  # fmt: skip
def _() -> Inputs:
    size = torch.tensor([[8.0, 8.0]] * B)
    return {
        "hidden_states": image(), "encoder_hidden_states": text(), "timestep": t(), "target_size": size,
        "crop_coords": size * 0, "prior_token_id": torch.randint(0, 16, (B, 16)),
        "prior_token_drop": torch.zeros(B, 16, dtype=torch.bool),
    }  # fmt: skip


@network("Lumina2Transformer2DModel", sample_size=8, in_channels=4, hidden_size=24, num_layers=2, num_refiner_layers=1,
         num_attention_heads=2, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 4, 4), axes_lens=(16, 16, 16),
         cap_feat_dim=12)  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(), "timestep": torch.rand(B), "encoder_hidden_states": text(),
        "encoder_attention_mask": mask().bool(),
    }  # fmt: skip


@network("LuminaNextDiT2DModel", sample_size=8, hidden_size=16, num_layers=2, num_attention_heads=2, num_kv_heads=1,
         multiple_of=8, cross_attention_dim=12)  # fmt: skip
def _() -> Inputs:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina

    return {
        "hidden_states": image(), "timestep": torch.rand(B), "encoder_hidden_states": text(),
        "encoder_mask": mask(), "image_rotary_emb": get_2d_rotary_pos_embed_lumina(8, 8, 8),
        "cross_attention_kwargs": {},
    }  # fmt: skip


@network("PRXTransformer2DModel", in_channels=4, context_in_dim=12, hidden_size=16, num_heads=2, depth=2,
         axes_dim=[4, 4])  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": image(), "timestep": torch.rand(B), "encoder_hidden_states": text()}


@network("ErnieImageTransformer2DModel", hidden_size=16, num_attention_heads=2, num_layers=2, ffn_hidden_size=24,
         in_channels=4, out_channels=4, text_in_dim=12, rope_axes_dim=(2, 2, 4))  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": image(size=4), "timestep": t(), "text_bth": text(), "text_lens": torch.tensor([6, 4])}


@network("HiDreamImageTransformer2DModel", patch_size=2, in_channels=4, out_channels=4, num_layers=1,
         num_single_layers=1, attention_head_dim=8, num_attention_heads=2, caption_channels=[12, 12], text_emb_dim=8,
         num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(4, 2, 2), max_resolution=(16, 16),
         llama_layers=[0, 1])  # fmt: skip
def _() -> Inputs:
    return {
        "hidden_states": image(), "timesteps": t(), "encoder_hidden_states_t5": text(),
        "encoder_hidden_states_llama3": torch.randn(2, B, TEXT, 12), "pooled_embeds": torch.randn(B, 8),
    }  # fmt: skip


@network("ZImageTransformer2DModel", in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
         cap_feat_dim=12, axes_dims=[2, 2, 4], axes_lens=[128, 16, 16])  # fmt: skip
def _() -> Inputs:
    return {"x": [torch.randn(4, 1, 4, 4)] * B, "t": torch.rand(B), "cap_feats": [torch.randn(TEXT, 12)] * B}


@network("OmniGenTransformer2DModel", in_channels=4, hidden_size=16, num_attention_heads=2, num_key_value_heads=1,
         intermediate_size=24, num_layers=2, pad_token_id=0, vocab_size=20, time_step_dim=8,
         rope_scaling={"long_factor": [1, 1, 1, 1], "short_factor": [1, 1, 1, 1]})  # fmt: skip
def _() -> Inputs:
    length = TEXT + 1 + 16
    return {
        "hidden_states": image(), "timestep": torch.rand(B), "input_ids": torch.randint(1, 20, (B, TEXT)),
        "input_img_latents": [], "input_image_sizes": {}, "attention_mask": torch.ones(B, length, length),
        "position_ids": torch.arange(length)[None].repeat(B, 1),
    }  # fmt: skip


@network("LatteTransformer3DModel", **SMALL, in_channels=4, out_channels=4, patch_size=2, sample_size=4,
         cross_attention_dim=16, caption_channels=12, norm_type="ada_norm_single", num_embeds_ada_norm=1000,
         activation_fn="gelu-approximate", norm_elementwise_affine=False, video_length=2)  # fmt: skip
def _() -> Inputs:
    return {"hidden_states": video(), "timestep": t(), "encoder_hidden_states": text()}


@network("DreamLiteTransformer2DModel", **SMALL, in_channels=32, cross_attention_dim=12)
def _() -> Inputs:
    return {"hidden_states": image(32, 4), "encoder_hidden_states": text(), "return_dict": False}


@network("Transformer2DModel", **SMALL, in_channels=32, cross_attention_dim=12)
def _() -> Inputs:
    return {"hidden_states": image(32, 4), "encoder_hidden_states": text(), "return_dict": False}


@network("TransformerTemporalModel", **SMALL, in_channels=32)
def _() -> Inputs:
    return {"hidden_states": image(32, 4), "num_frames": 2}


@network("PriorTransformer", **SMALL, embedding_dim=8, num_embeddings=TEXT)
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 8), "timestep": t(), "proj_embedding": torch.randn(B, 8),
        "encoder_hidden_states": text(8),
    }  # fmt: skip


@network("Ideogram4Transformer2DModel", in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
         intermediate_size=24, adaln_dim=8, llm_features_dim=12, mrope_section=(2, 1, 1))  # fmt: skip
def _() -> Inputs:
    length = TEXT + 4
    from diffusers.models.transformers import transformer_ideogram4 as module

    kinds = [getattr(module, n) for n in ("LLM_TOKEN_INDICATOR", "OUTPUT_IMAGE_INDICATOR")]
    return {
        "hidden_states": tokens(4, length), "timestep": torch.rand(B), "encoder_hidden_states": text(12, length),
        "position_ids": torch.arange(length)[None, :, None].repeat(B, 1, 3),
        "segment_ids": torch.ones(B, length, dtype=torch.long),
        "indicator": torch.tensor([[kinds[0]] * TEXT + [kinds[1]] * 4] * B),
    }  # fmt: skip
