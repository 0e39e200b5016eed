"""Pipelines of diffusers built from configuration: a few thousand parameters, latents of 4 x 4 cells, grey pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from neural_rdm.data.builtin.digits_text import HELD_OUT, PHRASINGS, WORDS, caption

#: what is said of a digit anywhere
SAID = sorted({word for said in (*PHRASINGS, *HELD_OUT) for d in range(10) for word in caption(said, d).split()})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *SAID, *(w for w in WORDS if w not in SAID)]
LENGTH = 12
NAMES = ("sd", "pixart", "sd3", "flux", "dit")


def tokenizer() -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]",
        model_max_length=LENGTH,
    )  # fmt: skip


def clip(projected: bool = False) -> Any:
    """A random text encoder of CLIP's kind, 16 wide."""
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=LENGTH, eos_token_id=3, bos_token_id=2, pad_token_id=0, projection_dim=8,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def t5() -> Any:
    """A random text encoder of T5's kind, 32 wide."""
    import transformers

    config = transformers.T5Config(vocab_size=len(VOCABULARY), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def vae(width: int = 16, colours: int = 1) -> Any:
    """A random autoencoder: pixels 8 x 8 to 4 channels of 4 x 4 cells."""
    import diffusers

    return diffusers.AutoencoderKL(
        in_channels=colours, out_channels=colours, latent_channels=4, block_out_channels=(width, width),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=8,
        scaling_factor=0.5, shift_factor=0.0,
    )  # fmt: skip


def pipeline(
    name: str,
    autoencoder: Any = None,
    width: int = 16,
    depth: int = 2,
    predicts: str = "v_prediction",
    classes: int = 10,
) -> Any:
    """A random pipeline of a family.

    Args:
        autoencoder: its first stage; None for a random one.
        width: of the network; a multiple of 16.
        depth: its blocks.
        predicts: what the U-Net of Stable Diffusion predicts, in the scheduler's words.
        classes: of DiT's table.
    """
    import diffusers as d

    d.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    first_stage = vae() if autoencoder is None else autoencoder
    small: dict[str, Any] = {"num_attention_heads": width // 8, "attention_head_dim": 8, "num_layers": depth}
    if name == "sd":
        levels = {"block_out_channels": (width, 2 * width), "layers_per_block": 1, "norm_num_groups": 4}
        unet = d.UNet2DConditionModel(
            sample_size=4, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=2, **levels,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        scheduler = d.DDIMScheduler(**betas, steps_offset=1, clip_sample=False, prediction_type=predicts)
        return d.StableDiffusionPipeline(
            vae=first_stage, text_encoder=clip(), tokenizer=tokenizer(), unet=unet, scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    if name == "pixart":
        network = d.PixArtTransformer2DModel(
            **small, in_channels=4, out_channels=8, cross_attention_dim=width, caption_channels=32, sample_size=4,
            patch_size=1,
        )  # fmt: skip
        return d.PixArtAlphaPipeline(tokenizer(), t5(), first_stage, network, d.DPMSolverMultistepScheduler())
    if name == "sd3":
        joint = d.SD3Transformer2DModel(
            **small, in_channels=4, out_channels=4, sample_size=4, joint_attention_dim=32, pos_embed_max_size=8,
            caption_projection_dim=width, pooled_projection_dim=16, patch_size=1,
        )  # fmt: skip
        return d.StableDiffusion3Pipeline(
            joint, d.FlowMatchEulerDiscreteScheduler(shift=3.0), first_stage, clip(True), tokenizer(), clip(True),
            tokenizer(), t5(), tokenizer(),
        )  # fmt: skip
    if name == "flux":
        flux = d.FluxTransformer2DModel(
            **small, in_channels=16, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        )  # fmt: skip
        return d.FluxPipeline(
            d.FlowMatchEulerDiscreteScheduler(), first_stage, clip(), tokenizer(), t5(), tokenizer(), flux
        )
    assert name == "dit"
    dit = d.DiTTransformer2DModel(
        **small, in_channels=4, out_channels=8, sample_size=4, patch_size=1, num_embeds_ada_norm=classes,
        norm_type="ada_norm_zero",
    )  # fmt: skip
    return d.DiTPipeline(dit, first_stage, d.DDIMScheduler(clip_sample=False))


def saved(name: str, folder: Path, **options: Any) -> Path:
    """The folder of a random pipeline."""
    pipeline(name, **options).save_pretrained(folder)
    return folder
