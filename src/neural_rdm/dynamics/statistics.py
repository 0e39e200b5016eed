"""What each unit does to the stream, beside its sensitivity: from the same forward and backward pass, by noise level.

    watching = Statistics(model, num_timesteps=1000, bins=4)
    with watching:
        watching.at(t)                    # the timesteps [B] of the batch that follows
        loss = objective(model(x, t))
        loss.backward()                   # inside: activation checkpointing runs the units once more
    records = watching.records()

Like the probe's, the measurements are gradients of zeros: no hook, no host synchronisation, outputs and parameter
gradients stay bit-equal. A measured step keeps one more tensor of the stream's size for each unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.residual import units
from neural_rdm.residual.taps import WATCHED


@dataclass(frozen=True)
class UnitRecord:
    """What one unit did to the samples whose timesteps lie in [t_low, t_high): means over them, see `taps.watch`."""

    unit: int
    name: str
    t_low: float
    t_high: float
    samples: int
    rms: float
    growth: float
    write_ratio: float
    write_cos: float
    redundancy: float
    mean_share: float | None  # None where the stream has one token only
    # what the unit's write adds to the mean loss of these samples, to first order: below 0 where the unit
    # helps
    importance: float


class Statistics:
    """Measures every unit of a network while the context is open.

    Args:
        model: the network.
        num_timesteps: T; timesteps lie in [0, T].
        bins: equally wide bins of t.

    Raises:
        ValueError: no bins.
    """

    def __init__(self, model: nn.Module, num_timesteps: float = 1000, bins: int = 4) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins} must be at least 1")
        self._units = list(units(model))
        first = next(model.parameters())
        like: dict[str, Any] = {"dtype": torch.promote_types(first.dtype, torch.float32), "device": first.device}
        self.edges = [num_timesteps * i / bins for i in range(bins + 1)]
        self.rows = torch.zeros(len(self._units), bins, len(WATCHED), **like, requires_grad=True)
        self.counts = torch.zeros(bins, **like)

    def at(self, t: Tensor) -> None:
        """Say at which timesteps [B] the samples of the next forward pass are."""
        bins = len(self.counts)
        index = (t.to(self.counts.device).float() * (bins / self.edges[-1])).long().clamp(0, bins - 1)
        one_hot = nn.functional.one_hot(index, bins).to(self.counts.dtype)
        self.counts += one_hot.sum(dim=0)
        for (_, unit), row in zip(self._units, self.rows.unbind(), strict=True):
            unit.watched = row, one_hot

    def __enter__(self) -> Statistics:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Switch the measurements off."""
        for _, unit in self._units:
            unit.watched = None

    def sums(self) -> Tensor:
        """What the backward passes have added up so far: [units + 1, bins, 7]; the last holds the numbers of samples.

        Sums over micro-batches and ranks may be added up.
        """
        assert self.rows.grad is not None, "no backward pass has reached the units"
        counts = self.counts.unsqueeze(1).expand(-1, len(WATCHED))
        return torch.cat([self.rows.grad, counts[None]])

    def records(self, sums: Tensor | None = None) -> list[UnitRecord]:
        """One record for each unit, in run order, and each bin that holds a sample.

        Args:
            sums: `sums()`, added up over ranks, of the loss averaged over the global batch; by default this process's.
        """
        values = (self.sums() if sums is None else sums).double().cpu()
        counts, total = values[-1, :, 0], values[-1, :, 0].sum()
        means = values[:-1] / counts.clamp(min=1).unsqueeze(1)
        means[..., -1] *= (
            total  # the loss is a mean over all samples: of one sample, importance is `total` times as much
        )
        return [
            UnitRecord(i, name, self.edges[b], self.edges[b + 1], int(counts[b]), *_one_token(means[i, b].tolist()))
            for i, (name, _) in enumerate(self._units)
            for b in range(len(counts))
            if counts[b] > 0
        ]


def _one_token(values: list[Any]) -> list[Any]:
    """NaN stays NaN, except where it says that there is one token only."""
    share = WATCHED.index("mean_share")
    if values[share] != values[share] and values[0] == values[0]:
        values[share] = None
    return values
