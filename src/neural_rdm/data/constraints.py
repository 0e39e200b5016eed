"""What the arguments of a data set must hold together. No torch: the preflight calls these (see `core.arguments`)."""

from __future__ import annotations

from collections.abc import Sequence

from neural_rdm.core.arguments import Problem


def images_follow_clips(num_frames: int, image_frames: int) -> Problem | None:
    """Joint training on clips and images needs clips."""
    if num_frames > 1 or not image_frames:
        return None
    return Problem("image_frames", "with num_frames=1: images follow clips only; pass {at}image_frames=0", image_frames)


def images_or_clips(shape: Sequence[int]) -> Problem | None:
    """Synthetic: the shape of one sample."""
    if len(shape) in (3, 4):
        return None
    return Problem("shape", f"{list(shape)} is neither [C,H,W] for images nor [F,C,H,W] for clips")
