"""What the arguments of a first stage must hold together. No torch (see `core.arguments`)."""

from __future__ import annotations

from neural_rdm.core.arguments import Problem


def has_tiles(tile: bool, tiles: bool) -> Problem | None:
    """`tiles` is a constant of the class."""
    return (
        Problem("tile", "only a KL autoencoder has tiles; pass {at}tile=false and a smaller chunk")
        if tile > tiles
        else None
    )
