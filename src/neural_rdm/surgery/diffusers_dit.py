"""diffusers' DiT with the timestep frequencies of the official code. Importing this module imports diffusers."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

# ModelMixin: by this name in the module of a network diffusers' pipelines find how to load it
from diffusers import DiTTransformer2DModel, ModelMixin

__all__ = ["ModelMixin", "OfficialDiTTransformer2DModel"]


class OfficialDiTTransformer2DModel(DiTTransformer2DModel):
    """`DiTTransformer2DModel` that agrees with the official DiT for every t; see `surgery.dit`."""

    transformer_blocks: Any  # diffusers declares none of its attributes

    if not TYPE_CHECKING:  # mypy knows no decorated constructors

        @wraps(DiTTransformer2DModel.__init__)  # whose arguments are the keys of a saved configuration
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            for block in self.transformer_blocks:
                block.norm1.emb.time_proj.downscale_freq_shift = 0
