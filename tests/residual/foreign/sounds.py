"""The same as `networks` for the classes that make sounds, molecules, and several kinds of data at once."""

from __future__ import annotations

import torch

from tests.residual.foreign.networks import TEXT, B, Inputs, mask, network, t, text, tokens


@network(
    "AceStepTransformer1DModel",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    in_channels=12,
    audio_acoustic_hidden_dim=4,
    encoder_hidden_size=12,
)
def _() -> Inputs:
    return {
        "hidden_states": tokens(4, 8),
        "timestep": torch.rand(B),
        "timestep_r": torch.rand(B),
        "encoder_hidden_states": text(),
        "context_latents": tokens(8, 8),
    }


@network(
    "StableAudioDiTModel",
    sample_size=8,
    in_channels=4,
    num_layers=2,
    attention_head_dim=8,
    num_attention_heads=2,
    num_key_value_attention_heads=1,
    out_channels=4,
    cross_attention_dim=8,
    time_proj_dim=8,
    global_states_input_dim=8,
    cross_attention_input_dim=12,
)
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 4, 8),
        "timestep": t().float(),
        "encoder_hidden_states": text(),
        "global_hidden_states": torch.randn(B, 1, 8),
        "rotary_embedding": (torch.ones(9, 4), torch.zeros(9, 4)),
    }


@network(
    "StableAudio3DiTModel",
    io_channels=4,
    embed_dim=16,
    depth=2,
    num_heads=2,
    cond_token_dim=12,
    global_cond_dim=8,
    local_add_cond_dim=4,
    timestep_features_dim=8,
    num_memory_tokens=2,
)
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 4, 8),
        "timestep": torch.rand(B),
        "encoder_hidden_states": text(),
        "global_hidden_states": torch.randn(B, 8),
        "local_add_cond": torch.randn(B, 4, 8),
    }


@network("LongCatAudioDiTTransformer", dit_dim=16, dit_depth=2, dit_heads=2, dit_text_dim=12, latent_dim=4)
def _() -> Inputs:
    return {
        "hidden_states": tokens(4, 8),
        "encoder_hidden_states": text(),
        "encoder_attention_mask": mask().bool(),
        "timestep": torch.rand(B),
        "attention_mask": mask(8).bool(),
        "latent_cond": tokens(4, 8),
    }


@network("T5FilmDecoder", input_dims=4, targets_length=8, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=24)
def _() -> Inputs:
    return {
        "encodings_and_masks": [(text(16), mask())],
        "decoder_input_tokens": tokens(4, 8),
        "decoder_noise_time": torch.rand(B),
    }


@network(
    "MiniMaxMusic3Transformer1DModel",
    in_channels=4,
    condition_dim=12,
    num_layers=2,
    num_attention_heads=2,
    attention_head_dim=8,
    ff_inner_dim=24,
    rotary_dim=4,
    fourier_embedding_dim=8,
)
def _() -> Inputs:
    return {
        "hidden_states": torch.randn(B, 4, 8),
        "timestep": torch.rand(B),
        "encoder_hidden_states": torch.randn(B, 8, 12),
    }


@network(
    "MiniMaxMusic3RVQDepthDecoder",
    hidden_size=16,
    num_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    audio_vocab_size=10,
    num_codebooks=2,
)
def _() -> Inputs:
    return {"inputs_embeds": tokens(16, 4)}


@network(
    "MiniMaxH3Transformer3DModel",
    num_attention_heads=2,
    attention_head_dim=16,
    hidden_size=32,
    num_layers=2,
    num_refiner_layers=1,
    ffn_dim=24,
    in_channels=4,
    audio_in_channels=4,
    text_dim=12,
    freq_dim=8,
    time_embed_hidden_dim=16,
    time_embed_dim=8,
    rope_freq_dim=2,
)
def _() -> Inputs:
    rows = torch.arange(TEXT + 4 + 3)
    return {
        "hidden_states": tokens(16, 4),
        "audio_hidden_states": tokens(4, 3),
        "encoder_hidden_states": text(),
        "timestep": torch.rand(1),
        "timestep_indices": rows * 0,
        "token_tags": torch.tensor([1] * TEXT + [0] * 4 + [2] * 3),
        "position_ids": rows[:, None].repeat(1, 3),
        "text_indices": rows[:TEXT],
        "video_indices": rows[TEXT:-3],
        "audio_indices": rows[-3:],
    }


@network(
    "Cosmos3OmniTransformer",
    head_dim=8,
    hidden_size=16,
    intermediate_size=24,
    latent_channel=4,
    patch_latent_dim=16,
    num_attention_heads=2,
    num_hidden_layers=2,
    num_key_value_heads=1,
    vocab_size=20,
    rope_axes_dim=(2, 1, 1),
    dtype="float32",
)
def _() -> Inputs:
    rows = torch.arange(TEXT + 8)
    return {
        "input_ids": torch.arange(TEXT),
        "text_indexes": rows[:TEXT],
        "position_ids": rows[None].repeat(3, 1),
        "und_len": TEXT,
        "sequence_length": TEXT + 8,
        "vision_tokens": [torch.randn(1, 4, 2, 4, 4)],
        "vision_token_shapes": [(2, 2, 2)],
        "vision_sequence_indexes": rows[TEXT:],
        "vision_mse_loss_indexes": rows[TEXT:],
        "vision_timesteps": torch.full((8,), 500.0),
        "vision_noisy_frame_indexes": [torch.arange(2)],
    }


@network(
    "RFD4ProteinaTransformer", nlayers=2, token_dim=16, nheads=2, dim_cond=8, pair_repr_dim=8, latent_dim=4,
    t_emb_dim=8, tri_mult_c=8, feats_seq=["xt_bb_ca", "xt_local_latents"], feats_cond_seq=["time_emb_bb_ca"],
    feats_pair_repr=["xt_bb_ca_pair_dists"], feats_pair_cond=["time_emb_bb_ca"],
)  # fmt: skip
def _() -> Inputs:
    return {
        "bb_ca": tokens(3),
        "local_latents": tokens(),
        "bb_ca_time": torch.rand(B),
        "local_latents_time": torch.rand(B),
        "padding_mask": torch.ones(B, 4, dtype=torch.bool),
        "conditioning": {"is_in_context_conditioning": torch.zeros(B, 4), "supports_local_latent": torch.ones(B, 4)},
    }
