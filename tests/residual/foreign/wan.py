"""The same as `networks` for the classes of the Wan family."""

from __future__ import annotations

import torch

from tests.residual.foreign.networks import (
    TEXT,
    WAN,
    B,
    Inputs,
    network,
    t,
    text,
    video,
)


def wan() -> Inputs:
    return {"hidden_states": video(), "timestep": t(), "encoder_hidden_states": text()}


for name, more in {
    "WanTransformer3DModel": {},
    "ChronoEditTransformer3DModel": {},
    "SkyReelsV2Transformer3DModel": {},
    "HeliosTransformer3DModel": {
        "rope_dim": (4, 4, 4),
        "has_multi_term_memory_patch": False,
        "zero_history_timestep": False,
        "guidance_cross_attn": False,
    },
}.items():
    network(name, **WAN, **more)(wan)


@network("AnyFlowTransformer3DModel", **WAN)
def _() -> Inputs:
    return {
        **wan(),
        "hidden_states": video().transpose(1, 2),
        "timestep": torch.rand(B, 2),
        "r_timestep": torch.rand(B, 2),
    }


@network("AnyFlowFARTransformer3DModel", **WAN, chunk_partition=(1, 1))
def _() -> Inputs:
    return {
        **wan(),
        "hidden_states": video().transpose(1, 2),
        "timestep": torch.rand(B, 2),
        "r_timestep": torch.rand(B, 2),
        "chunk_partition": [1, 1],
    }


@network("WanVACETransformer3DModel", **WAN, vace_layers=[0], vace_in_channels=4)
def _() -> Inputs:
    return {**wan(), "control_hidden_states": video(), "control_hidden_states_scale": torch.ones(1)}


@network(
    "WanAnimateTransformer3DModel",
    **WAN | {"in_channels": 12},
    latent_channels=4,
    image_dim=8,
    motion_encoder_size=16,
    motion_style_dim=8,
    motion_dim=4,
    motion_encoder_dim=8,
    face_encoder_hidden_dim=8,
    face_encoder_num_heads=2,
    inject_face_latents_blocks=1,
    motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
)
def _() -> Inputs:
    return {
        "hidden_states": video(12, 3), "timestep": t(), "encoder_hidden_states": text(),
        "encoder_hidden_states_image": torch.randn(B, 5, 8),
        "pose_hidden_states": video(4, 2), "face_pixel_values": torch.randn(B, 3, 5, 16, 16),
    }  # fmt: skip


@network(
    "WanAnimate2Transformer3DModel", in_dim=8, dim=24, ffn_dim=24, freq_dim=16, text_dim=12, out_dim=4, num_heads=2,
    num_layers=2, use_img_emb=False, text_len=TEXT,
)  # fmt: skip
def _() -> Inputs:
    """Its pass over the reference: the other one attends in a way that a CPU only does compiled."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    return {
        "hidden_states": list(video()),
        "timestep": t(),
        "encoder_hidden_states": list(text()),
        "condition_latents": list(video()),
        "kv_cache": WanAnimate2KVCache(2),
        "kv_cache_mode": "extract",
        "seq_len": 8,
        "offset_grid_sizes": torch.full((B, 3), 2),
    }
