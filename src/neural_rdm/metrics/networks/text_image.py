"""The CLIP model of the CLIP score: images and texts in one space, through transformers."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError, ConfigError, first_line
from neural_rdm.core.extras import install
from neural_rdm.core.hub import from_hub
from neural_rdm.metrics.networks.base import full_precision


class CLIP(nn.Module):
    """A pretrained CLIP, frozen, in full float32; images are resized and cropped as its own processor says.

    Args:
        path: a hub name (`openai/clip-vit-large-patch14` in most publications) or a local folder of transformers, with
            weights as safetensors.

    Attributes:
        name: the model's own name, part of the metric's: scores of different models cannot be compared.
        weights_hash: sha256 over its weights.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: no model there, or one that is not CLIP.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(f"the CLIP score needs transformers: {install('text')}") from error
        try:
            net, self._tokens, self._pixels = from_hub(
                path,
                lambda local: (
                    transformers.CLIPModel.from_pretrained(path, use_safetensors=True, local_files_only=local),
                    transformers.AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=False),
                    transformers.CLIPImageProcessor.from_pretrained(path, local_files_only=local),
                ),
            )
            self.net = net.eval().requires_grad_(False)
        except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"metric.clip={path}: cannot load a CLIP model ({first_line(error)}). Pass a local folder in "
                "transformers' layout, or leave metric.clip=null"
            ) from error
        self.name = re.sub(r"[^a-z0-9]+", "_", Path(path).name.lower()).strip("_")
        digest = hashlib.sha256()
        for name, tensor in sorted(self.net.state_dict().items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        self.weights_hash = digest.hexdigest()

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Images uint8 [B, 3, H, W] and a text for each -> their features, float32 [B, E] twice."""
        device = next(self.net.parameters()).device
        tokens: Any = self._tokens(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.net.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        pixels = self._pixels(images=list(images.cpu()), return_tensors="pt").pixel_values
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # training on a GPU may have allowed TF32
        with full_precision(device), contextlib.ExitStack() as stack:
            stack.callback(torch.set_float32_matmul_precision, before)
            out = self.net(
                input_ids=tokens.input_ids.to(device),
                attention_mask=tokens.attention_mask.to(device),
                pixel_values=pixels.to(device),
            )
        return out.image_embeds.float(), out.text_embeds.float()

    def train(self, mode: bool = True) -> CLIP:
        """Stay in evaluation mode."""
        return super().train(False)
