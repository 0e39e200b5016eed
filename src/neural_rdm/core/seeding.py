"""Randomness that is a function of names, not of history.

Every random draw of the project is keyed by (seed, what it is for, position): a training sample's *position* is its
ordinal number in the whole run, `optimizer step * global batch + micro-step * (global batch / micro-steps) + index in
the global micro-batch`. So noise, timesteps, label dropout, augmentation and data order do not depend on the number of
ranks, on the batch's split into micro-steps, on workers, or on where a run was killed and resumed.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64: every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        x = x + _MIX[0]
        x = (x ^ (x >> np.uint64(30))) * _MIX[1]
        x = (x ^ (x >> np.uint64(27))) * _MIX[2]
        return x ^ (x >> np.uint64(31))


def keys(seed: int, purpose: str, positions: ArrayLike | Tensor) -> NDArray[np.uint64]:
    """One 64-bit key per position [B] for the draw called `purpose` ("noise", "timestep", ...) of a run with `seed`."""
    if isinstance(positions, Tensor):
        positions = positions.cpu().numpy()
    x = np.asarray(positions, dtype=np.int64).astype(np.uint64)
    stream = _splitmix(
        np.asarray([seed], dtype=np.int64).astype(np.uint64)
        ^ _splitmix(np.asarray([zlib.crc32(purpose.encode())], dtype=np.uint64))
    )
    return _splitmix(x ^ stream)


def uniform(seed: int, purpose: str, positions: ArrayLike | Tensor) -> NDArray[np.float64]:
    """One float64 in [0, 1) per position [B]."""
    return (keys(seed, purpose, positions) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def normal(
    seed: int, purpose: str, positions: ArrayLike | Tensor, shape: Sequence[int], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise [B, *shape] (float32), one independent sample per position [B], drawn on `device`.

    Equal on every machine of one kind of device; CPU and GPU generators differ from each other.
    """
    seeds = (keys(seed, purpose, positions) >> np.uint64(1)).tolist()
    out = torch.empty(len(seeds), *shape, device=device)
    generator = torch.Generator(device=device)
    for row, key in zip(out, seeds, strict=True):
        row.normal_(generator=generator.manual_seed(key))
    return out


def choice(seed: int, purpose: str, position: int, count: int) -> int:
    """One of 0 ... count - 1 for a position."""
    return int(keys(seed, purpose, [position])[0] % np.uint64(count))


def generator(seed: int, purpose: str, position: int = 0) -> torch.Generator:
    """A CPU generator for draws that do not fit the functions above (a permutation, a crop)."""
    return torch.Generator().manual_seed(int(keys(seed, purpose, [position])[0] >> np.uint64(1)))
