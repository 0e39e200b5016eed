"""A pipeline's own encoding of prompts, by its own method: its tokenizers and text encoders, however many it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neural_rdm.conditioning.text import TextEncoder
from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import CheckpointError, first_line
from neural_rdm.pipelines.folder import INDEX, read_folder
from neural_rdm.pipelines.network import packed


@checked()
class PipelineText(TextEncoder):
    """Captions as a pipeline encodes them. Where it hands its network a pooled text too, that is the last row, see
    `network.packed`.

    Args:
        path: the folder of the pipeline.
        dim: width of a row.
        max_length: tokens of its T5, or else of its CLIP. Fewer than the pipeline itself takes save time where captions
            are short.
        cache: see `TextEncoder`.

    Raises:
        ConfigError: no folder of a pipeline that is known here.
    """

    def __init__(self, path: str, dim: Count, max_length: Count = 77, cache: str | None = None) -> None:
        super().__init__("t5", path, dim, max_length, cache, keep_padding=True)
        self.folder = read_folder(path, "condition.path")
        self.kind = self.folder.pipeline or ""  # type: ignore[assignment]  # part of what the cache's files are named by

    @property
    def rows(self) -> int:
        """Rows of an encoded text."""
        kind = self.folder.family.network
        if kind == "SD3Transformer2DModel":
            return self.folder.clip_tokens + self.max_length + 1
        return self.max_length + (kind == "FluxTransformer2DModel")

    @torch.no_grad()
    def _run(self, captions: list[str]) -> list[Tensor]:
        """The rows [length, dim] of each caption, computed."""
        pipe: Any = self._load()[1]
        pipe.to("cuda" if torch.cuda.is_available() else "cpu")
        kind, length = self.folder.family.network, self.max_length
        if kind == "UNet2DConditionModel":
            tokens, _ = pipe.encode_prompt(captions, pipe.device, 1, False)
            return list(tokens.float().cpu())
        if kind == "PixArtTransformer2DModel":
            tokens, mask, *_ = pipe.encode_prompt(captions, False, max_sequence_length=length)
            return [t[m.bool()] for t, m in zip(tokens.float().cpu(), mask.cpu(), strict=True)]
        if kind == "SD3Transformer2DModel":
            tokens, _, pooled, _ = pipe.encode_prompt(
                captions, None, None, do_classifier_free_guidance=False, max_sequence_length=length
            )
        else:
            tokens, pooled, _ = pipe.encode_prompt(captions, None, max_sequence_length=length)
        return list(packed(tokens, pooled).float().cpu())

    def _load(self) -> tuple[Any, Any]:
        """The tokenizer of the longest text, and the pipeline without its network and autoencoder."""
        if self._loaded is not None:
            return self._loaded
        import diffusers

        dropped = ("transformer", "unet", "vae", "safety_checker", "feature_extractor", "image_encoder")
        without = {name: None for name in dropped if name in self.folder.parts}
        kind = getattr(diffusers, str(self.folder.pipeline))
        try:
            pipe = kind.from_pretrained(self.path, local_files_only=True, low_cpu_mem_usage=False, **without)
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(
                f"condition.path={self.path}: cannot load the text encoders ({first_line(error)})"
            ) from error
        pipe.set_progress_bar_config(disable=True)
        names = [name for name in ("tokenizer_3", "tokenizer_2", "tokenizer") if getattr(pipe, name, None) is not None]
        self._loaded = getattr(pipe, names[0]), pipe
        return self._loaded

    def _identity(self) -> str:
        """What the files of the tokenizers and text encoders look like."""
        if self._files is None:
            assert self.path is not None
            names = [n for n in self.folder.parts if n.startswith(("tokenizer", "text_encoder"))]
            files = sorted(p for n in names for p in (Path(self.path) / n).iterdir() if p.is_file())
            self._files = [f"{p.parent.name}/{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
        return "|".join([str((Path(str(self.path)) / INDEX).resolve()), *self._files])
