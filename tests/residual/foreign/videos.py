"""The same as `networks` for the classes that make videos and sounds."""

from __future__ import annotations

import torch

from tests.residual.foreign.networks import (
    HUNYUAN,
    SMALL,
    TEXT,
    B,
    Inputs,
    mask,
    network,
    t,
    text,
    tokens,
    video,
)


@network(
    "AllegroTransformer3DModel",
    **SMALL | {"attention_head_dim": 24},
    cross_attention_dim=48,
    sample_height=4,
    sample_width=4,
    sample_frames=2,
    caption_channels=12,
)
def _() -> Inputs:
    n = 8
    return {
        "hidden_states": video(),
        "timestep": t(),
        "encoder_hidden_states": text()[:, None],
        "attention_mask": torch.ones(B, 2, 4, 4),
        "encoder_attention_mask": mask()[:, None].float(),
        "image_rotary_emb": (
            tuple(torch.ones(B, n, 8) for _ in "thw"),
            tuple(torch.arange(n)[None].repeat(B, 1) for _ in "thw"),
        ),
    }


@network(
    "CogVideoXTransformer3DModel",
    **SMALL,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=12,
    sample_width=4,
    sample_height=4,
    sample_frames=5,
    max_text_seq_length=TEXT,
)
def _() -> Inputs:
    return {"hidden_states": video().transpose(1, 2), "timestep": t(), "encoder_hidden_states": text()}


@network(
    "ConsisIDTransformer3DModel",
    **SMALL,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=12,
    sample_width=4,
    sample_height=4,
    sample_frames=5,
    max_text_seq_length=TEXT,
)
def _() -> Inputs:
    return {"hidden_states": video().transpose(1, 2), "timestep": t(), "encoder_hidden_states": text()}


@network(
    "EasyAnimateTransformer3DModel",
    **SMALL | {"attention_head_dim": 16},
    in_channels=4,
    out_channels=4,
    patch_size=2,
    sample_width=4,
    sample_height=4,
    time_embed_dim=8,
    text_embed_dim=12,
    mmdit_layers=1,
    add_noise_in_inpaint_model=False,
)
def _() -> Inputs:
    return {"hidden_states": video(), "timestep": t(), "encoder_hidden_states": text()}


@network(
    "CosmosTransformer3DModel",
    **SMALL | {"attention_head_dim": 12},
    in_channels=4,
    out_channels=4,
    text_embed_dim=12,
    adaln_lora_dim=4,
    max_size=(4, 8, 8),
    concat_padding_mask=False,
)
def _() -> Inputs:
    return {"hidden_states": video(), "timestep": torch.rand(B), "encoder_hidden_states": text()}


@network("HunyuanVideoTransformer3DModel", **HUNYUAN, num_single_layers=2)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "pooled_projections": torch.randn(B, 8),
        "guidance": torch.ones(B) * 1000,
    }


@network(
    "HunyuanVideoFramepackTransformer3DModel",
    **HUNYUAN,
    num_single_layers=2,
    image_proj_dim=8,
    has_image_proj=True,
    has_clean_x_embedder=True,
)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "pooled_projections": torch.randn(B, 8),
        "guidance": torch.ones(B) * 1000,
        "image_embeds": torch.randn(B, 3, 8),
        "indices_latents": torch.tensor([3, 4]),
        "latents_clean": video(4, 1),
        "indices_latents_clean": torch.tensor([0]),
        "latents_history_2x": video(4, 2),
        "indices_latents_history_2x": torch.tensor([1, 2]),
        "latents_history_4x": video(4, 4),
        "indices_latents_history_4x": torch.tensor([0, 1, 2, 3]),
    }


@network(
    "HunyuanVideo15Transformer3DModel",
    **{k: v for k, v in HUNYUAN.items() if k not in ("patch_size", "pooled_projection_dim")},
    text_embed_2_dim=8,
    image_embed_dim=8,
    target_size=16,
    task_type="t2v",
)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t().float(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "encoder_hidden_states_2": text(8),
        "encoder_attention_mask_2": mask(),
        "image_embeds": torch.zeros(B, 2, 8),
    }


@network(
    "LTXVideoTransformer3DModel", **SMALL, in_channels=4, out_channels=4, cross_attention_dim=16, caption_channels=12
)
def _() -> Inputs:
    return {
        "hidden_states": tokens(4, 8),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "num_frames": 2,
        "height": 2,
        "width": 2,
    }


LTX2 = {
    **SMALL,
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 16,
    "audio_in_channels": 4,
    "audio_out_channels": 4,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4,
    "audio_cross_attention_dim": 8,
    "caption_channels": 12,
}


@network("LTX2VideoTransformer3DModel", **LTX2)
def _() -> Inputs:
    return {
        "hidden_states": tokens(4, 8),
        "audio_hidden_states": tokens(4, 3),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "audio_encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
        "audio_encoder_attention_mask": mask(),
        "num_frames": 2,
        "height": 2,
        "width": 2,
        "audio_num_frames": 3,
    }


@network("SanaWMLTX2RefinerTransformer3DModel", **LTX2)
def _() -> Inputs:
    return {
        "hidden_states": tokens(4, 8),
        "timestep": t().float(),
        "encoder_hidden_states": text(),
        "video_rotary_emb": (torch.ones(B, 8, 16), torch.zeros(B, 8, 16)),
    }


@network(
    "MochiTransformer3DModel", **SMALL, in_channels=4, pooled_projection_dim=8, text_embed_dim=16, time_embed_dim=8
)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t(),
        "encoder_hidden_states": text(16),
        "encoder_attention_mask": mask().bool(),
    }


@network(
    "MotifVideoTransformer3DModel",
    **SMALL,
    in_channels=4,
    out_channels=4,
    num_single_layers=2,
    num_decoder_layers=1,
    text_embed_dim=12,
    rope_axes_dim=(2, 2, 4),
    enable_text_cross_attention_dual=True,
    enable_text_cross_attention_single=True,
)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask(),
    }


@network(
    "SanaVideoTransformer3DModel",
    **SMALL | {"attention_head_dim": 12},
    in_channels=4,
    out_channels=4,
    num_cross_attention_heads=2,
    cross_attention_head_dim=12,
    cross_attention_dim=24,
    caption_channels=12,
    sample_size=4,
)
def _() -> Inputs:
    return {"hidden_states": video(), "timestep": t(), "encoder_hidden_states": text()}


@network(
    "SanaWMTransformer3DModel",
    in_channels=4,
    num_layers=2,
    hidden_size=24,
    num_attention_heads=2,
    linear_head_dim=12,
    caption_channels=12,
    image_size=128,
    chunk_plucker_channels=4,
    chunk_plucker_post_attn_blocks=1,
    softmax_every_n=2,
)
def _() -> Inputs:
    return {
        "hidden_states": video(),
        "timestep": t()[:, None, None].repeat(1, 1, 2),
        "encoder_hidden_states": text()[:, None],
        "mask": mask(),
    }


@network(
    "Kandinsky5Transformer3DModel",
    in_visual_dim=4,
    in_text_dim=12,
    in_text_dim2=8,
    time_dim=16,
    out_visual_dim=4,
    model_dim=16,
    ff_dim=24,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=(2, 2, 4),
)
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 2, 4, 4, 4),
        "timestep": t(),
        "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(B, 8),
        "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
        "text_rope_pos": torch.arange(TEXT),
    }


KANDINSKY = {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 8, "model_dim": 16, "ff_dim": 24,
             "num_visual_blocks": 1, "axes_dims": (2, 2, 4)}  # fmt: skip


@network("Kandinsky6SRTransformer3DModel", **KANDINSKY)
@network("Kandinsky6Transformer3DModel", **KANDINSKY, in_text_dim=12, in_text_dim2=8, num_text_blocks=1)
def _() -> Inputs:
    return {}  # they are refused
