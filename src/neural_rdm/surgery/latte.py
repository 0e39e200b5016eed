"""Latte: DiT's weights with temporal blocks between, growth by pairs of a spatial and a temporal block."""

from __future__ import annotations

import re

from torch import Tensor

from neural_rdm.backbones.latte import Latte
from neural_rdm.surgery.adapter import Problems, State, adapts
from neural_rdm.surgery.dit import TransformerAdapter


@adapts(Latte)
class LatteAdapter(TransformerAdapter[Latte]):
    """Clips, and images with `num_frames=1`: those take the spatial blocks of a network of clips."""

    step = 2
    tables = ("pos_embed", "temp_embed")
    options = (*TransformerAdapter.options, "num_frames", "extras")

    def no_growth(self, placement: str, operator: str) -> str | None:
        """Its first temporal block, and the numbers of an image network's blocks, stay as they are."""
        if self.model.num_frames == 1:
            return "an image Latte keeps the numbers of its spatial blocks; grow it as a DiT or as clips"
        if placement == "prepend":
            return (
                "with placement=prepend: its frames get their table before its first temporal block, which must stay "
                "the first; use interleave, middle or append"
            )
        return super().no_growth(placement, operator)

    def kept(self, state: State) -> dict[str, Tensor]:
        """Without what only clips need, where it is a network of images."""
        return {k: v for k, v in state.items() if self.model.num_frames > 1 or not _temporal(k)}

    def hints(self, problems: Problems, own: State, found: State) -> list[str]:
        """DiT's, and what the table of the frames tells."""
        hints = super().hints(problems, own, found)
        if "temp_embed" in problems["misshaped"]:
            hints.append("another number of frames: pass pretrained.reinit=[temp_embed] to interpolate their table")
        if "temp_embed" in problems["missing"]:
            hints.append(
                "a file of images (a DiT?) for a network of clips: Latte's odd blocks are temporal, DiT's are not"
            )
        return hints


def _temporal(key: str) -> bool:
    """Whether a key belongs to what only clips need."""
    block = re.match(r"blocks\.(\d+)\.", key)
    return key == "temp_embed" or (block is not None and int(block[1]) % 2 == 1)
