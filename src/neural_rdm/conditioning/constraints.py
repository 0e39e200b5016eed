"""What the arguments of a text encoder must hold together. No torch (see `core.arguments`)."""

from __future__ import annotations

from neural_rdm.core.arguments import Problem


def has_path(kind: str, path: str | None) -> Problem | None:
    """Only one encoder comes as a package."""
    if path is not None or kind == "minilm":
        return None
    return Problem("path", f"is not set: give a hub name or a folder of a {kind} encoder")
