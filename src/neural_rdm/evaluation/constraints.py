"""What the arguments of metrics must hold together. No torch (see `core.arguments`)."""

from __future__ import annotations

from typing import get_args

from neural_rdm.config.primary import ClipFeatures, known_weights
from neural_rdm.core.arguments import Problem

__all__ = ["frames_of_clips", "known_reference", "known_weights"]


def known_reference(reference: str | None, features: str) -> Problem | None:
    """FeatureReport: distances are to something."""
    if reference is not None:
        return None
    said = "has no value: pass the statistics of real samples, a file that"
    return Problem("reference", f"{said} `python -m neural_rdm.stats data=... features={features}` writes")


def frames_of_clips(
    features: str, frame_features: str | None, frame_reference: str | None, clip: str | None
) -> Problem | None:
    """FeatureReport: what is of clips alone, and of images alone."""
    of_clips = features in get_args(ClipFeatures)
    if (frame_features is None) != (frame_reference is None):
        said = "goes with frame_reference, the statistics of real frames: pass both or none"
        return Problem("frame_features", said)
    if frame_features is not None and not of_clips:
        said = f"measures the frames of clips, and features={features} is of images; pass {{at}}frame_features=null"
        return Problem("frame_features", f"{said} {{at}}frame_reference=null", frame_features)
    if clip is not None and of_clips:
        return Problem("clip", f"compares images with texts; pass {{at}}clip=null with features={features}", clip)
    return None
