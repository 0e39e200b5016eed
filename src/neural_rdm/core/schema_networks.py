"""The configuration keys of the backbones: the part of `schema` that describes networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from neural_rdm.core.fields import Problem, at_least, between, one_of, positive

# OmegaConf 2.3 reads the annotations of these classes at run time and does not know `X | None`.


@dataclass
class DiT:
    _target_: str
    input_size: int = positive()
    patch_size: int = positive()
    in_channels: int = positive()
    hidden_size: int = positive()
    depth: int = positive()
    num_heads: int = positive()
    mlp_ratio: float = positive()
    class_dropout_prob: float = between(0, 1)
    num_classes: int = at_least(0)
    learn_sigma: bool = field()
    context_dim: Optional[int] = positive()
    adaln_gate_init: Optional[float] = field()
    adaln: str = one_of("block", "single")
    qk_norm: bool = field()
    norm: str = one_of("layer", "rms")
    mlp: str = one_of("gelu", "swiglu")
    positions: str = one_of("sincos", "rope")
    register_tokens: int = at_least(0)
    attention: str = one_of("auto", "math", "flash", "efficient", "cudnn")

    def check(self) -> list[Problem]:
        problems = []
        if self.hidden_size % self.num_heads:
            divisors = [h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]
            nearest = min(divisors, key=lambda h: abs(h - self.num_heads))
            problem = (
                f"{self.num_heads} does not divide hidden_size={self.hidden_size}; the nearest that does is {nearest}"
            )
            problems.append(("num_heads", problem))
        if self.hidden_size % 4:
            above = math.ceil(self.hidden_size / 4) * 4
            problem = f"{self.hidden_size} is not a multiple of 4, which the position table needs; nearest: {above}"
            problems.append(("hidden_size", problem))
        if self.input_size % self.patch_size:
            problems.append(("patch_size", f"{self.patch_size} does not divide input_size={self.input_size}"))
        if self.positions == "rope" and (self.hidden_size // self.num_heads) % 4:
            problem = f"rope turns a head's channels in fours; {self.hidden_size} / {self.num_heads} has none"
            problems.append(("positions", problem))
        return problems


@dataclass
class Latte(DiT):
    num_frames: int = positive()
    extras: Any = one_of("unconditional", "class", "text", 1, 2, 78)

    def check(self) -> list[Problem]:
        problems = super().check()
        if self.depth % 2:
            problem = f"{self.depth} is odd; spatial and temporal blocks take turns: pass {self.depth + 1}"
            problems.append(("depth", problem))
        if self.extras in ("text", 78) and self.context_dim is not None:
            problems.append(("context_dim", "extras=text reads its own text; pass context_dim=null"))
        return problems


@dataclass
class UNet:
    _target_: str
    image_size: int = positive()
    in_channels: int = positive()
    out_channels: int = positive()
    model_channels: int = positive()
    attention_resolutions: list[int] = field()
    num_res_blocks: int = positive()
    channel_mult: list[int] = field()
    num_heads: Optional[int] = positive()
    num_head_channels: Optional[int] = positive()
    use_spatial_transformer: bool = field()
    transformer_depth: int = positive()
    context_dim: Optional[int] = positive()
    num_classes: Optional[int] = positive()
    num_context_classes: Optional[int] = positive()
    class_dropout_prob: float = between(0, 1)
    use_scale_shift_norm: bool = field()
    resblock_updown: bool = field()
    dropout: float = between(0, 1)
    norm_num_groups: int = positive()
    use_new_attention_order: bool = field()

    def check(self) -> list[Problem]:
        problems = []
        levels, widths = len(self.channel_mult), [self.model_channels * m for m in self.channel_mult]
        if self.image_size % 2 ** (levels - 1):
            problem = f"{self.image_size} is not a multiple of {2 ** (levels - 1)}: channel_mult has {levels} levels"
            problems.append(("image_size", problem))
        if (self.num_heads is None) == (self.num_head_channels is None):
            problems.append(("num_heads", "give one of num_heads and num_head_channels, and null for the other"))
        for width in widths:
            if width % self.norm_num_groups:
                problems.append(("norm_num_groups", f"{self.norm_num_groups} does not divide a level of {width}"))
            elif width % (self.num_heads or self.num_head_channels or 1):
                key = "num_heads" if self.num_heads else "num_head_channels"
                problems.append((key, f"a level of {width} channels does not split by it"))
        if self.use_spatial_transformer != (self.context_dim is not None):
            problems.append(("context_dim", "use_spatial_transformer=true and context_dim go together"))
        if self.num_classes is not None and self.num_context_classes is not None:
            problems.append(("num_context_classes", "num_classes (ADM) is set too; one of them must be null"))
        if self.num_context_classes is not None and self.context_dim is None:
            problems.append(("num_context_classes", "a class as context needs use_spatial_transformer and context_dim"))
        if self.use_spatial_transformer and self.resblock_updown:
            problems.append(("resblock_updown", "true is ADM's, which has no spatial transformer"))
        return problems


@dataclass
class UViT:
    _target_: str
    img_size: int = positive()
    patch_size: int = positive()
    in_chans: int = positive()
    embed_dim: int = positive()
    depth: int = positive()
    num_heads: int = positive()
    mlp_ratio: float = positive()
    qkv_bias: bool = field()
    mlp_time_embed: bool = field()
    num_classes: int = at_least(-1)
    conv: bool = field()
    skip: bool = field()
    clip_dim: Optional[int] = positive()
    num_clip_token: Optional[int] = positive()
    class_dropout_prob: float = between(0, 1)

    def check(self) -> list[Problem]:
        problems = []
        if self.embed_dim % self.num_heads or self.embed_dim % 2:
            problem = f"{self.embed_dim} must be even and a multiple of num_heads={self.num_heads}"
            problems.append(("embed_dim", problem))
        if self.img_size % self.patch_size:
            problems.append(("patch_size", f"{self.patch_size} does not divide img_size={self.img_size}"))
        if self.depth % 2:
            problems.append(("depth", f"{self.depth} is odd; blocks go in and out in pairs: pass {self.depth + 1}"))
        if (self.clip_dim is None) != (self.num_clip_token is None):
            problems.append(("num_clip_token", "clip_dim and num_clip_token go together; null for both is no text"))
        return problems
