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
