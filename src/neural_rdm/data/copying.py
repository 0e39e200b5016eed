"""Batches on their way to a device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any

import torch


def moved(batch: Mapping[str, Any], names: Collection[str], device: torch.device) -> dict[str, Any]:
    """A batch with some of its tensors on a device.

    A GPU copies them beside what it computes: the copy is queued on a stream of its own, so that it begins while the
    steps before are still worked on, and what is queued next waits for it. The host waits for nothing where the batch
    is in pinned memory, as loaders' batches are there.

    Args:
        names: of the tensors, where the batch has them.
    """
    chosen = {name: value for name, value in batch.items() if name in names}
    if device.type != "cuda":
        return {**batch, **{name: value.to(device, non_blocking=True) for name, value in chosen.items()}}
    copies = _copies(device)
    with torch.cuda.stream(copies):
        there = {name: value.to(device, non_blocking=True) for name, value in chosen.items()}
    computes = torch.cuda.current_stream(device)
    computes.wait_stream(copies)
    for value in there.values():
        value.record_stream(computes)  # or its memory were free for the next copy while a step still reads it
    return {**batch, **there}


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device that copies batches."""
    return torch.cuda.Stream(device)
