"""What a network's own noisy batches say of every unit: sensitivity, stream, and what is lost without it.

reading = Thermometer(gate(pipe.transformer))
with reading.batch(timesteps):
    loss(...).mean().backward()
with torch.no_grad():
    reading.look(500, lambda: loss(...).mean())
reading.write("folder")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neural_rdm.core.files import write_text
from neural_rdm.dynamics.lens import each_left_out, stopped_early
from neural_rdm.dynamics.probe import Sensitivity, probe, sensitivities
from neural_rdm.dynamics.statistics import Statistics, UnitRecord
from neural_rdm.reports.depth import plot_depth
from neural_rdm.reports.figures import attempt
from neural_rdm.reports.plots import plot_sensitivity
from neural_rdm.reports.tables import csv_text, markdown_table
from neural_rdm.reports.units import plot_units
from neural_rdm.residual import units

#: units in the table of the least important ones
SHOWN = 10


@dataclass
class Looked:
    """Losses at one time, means over the batches so far."""

    batches: int = 0
    stopped: list[float] = field(default_factory=list)  # with the first 0 ... N units, [N + 1]
    without: list[float] = field(default_factory=list)  # without one unit, [N]

    def add(self, stopped: list[float], without: list[float]) -> None:
        """Take one more batch into the means."""
        self.batches += 1
        for mean, new in ((self.stopped, stopped), (self.without, without)):
            old = mean or [0.0] * len(new)
            mean[:] = [a + (b - a) / self.batches for a, b in zip(old, new, strict=True)]


class Thermometer:
    """Measures the units of a network with gates, ours or diffusers', batch by batch.

    Args:
        model: the network, its units plain or trained.
        num_timesteps: T; the timesteps that it is told lie in [0, T].
        bins: equally wide bins of t.

    Raises:
        ValueError: a network without units.
    """

    def __init__(self, model: nn.Module, num_timesteps: float = 1000, bins: int = 4) -> None:
        self.model, self.num_timesteps, self.bins = model, num_timesteps, bins
        self.names = [name for name, _ in units(model)]
        if not self.names:
            raise ValueError(f"this {type(model).__name__} has no residual units; gate(model) puts them into it")
        self.sensitivity: list[list[Sensitivity]] = []
        self.levels: dict[float, Looked] = {}
        self._sums: Tensor | None = None
        self._samples = 0

    @contextmanager
    def batch(self, t: Tensor) -> Iterator[None]:
        """Measure one forward and backward pass, both inside of the context, of the mean loss of a batch.

        Args:
            t: the timesteps [B] of its samples.
        """
        statistics = Statistics(self.model, self.num_timesteps, self.bins)
        with statistics, probe(self.model) as rows:
            statistics.at(t)
            yield
        if rows.grad is None:
            raise ValueError("no backward pass was made inside of the context, or it did not reach the units")
        self.sensitivity.append(sensitivities(self.model, rows.grad))
        sums = statistics.sums().detach().double().cpu()
        sums[:-1, :, -1] *= len(t)  # of the loss averaged over this batch
        self._sums = sums if self._sums is None else self._sums + sums
        self._samples += len(t)

    @torch.no_grad()
    def look(self, t: float, loss: Callable[[], Tensor], advance: Callable[[], None] = lambda: None) -> None:
        """What the loss becomes if the network stops behind each unit, and if one alone is left out: two passes a unit.

        Args:
            t: the time that it is looked at, which names the line of the plot.
            loss: runs the network on the same samples every time, and returns their mean loss [].
            advance: called after each pass.
        """

        def value(result: Tensor) -> float:
            advance()
            return result.item()

        stopped = [value(result) for result in stopped_early(self.model, loss)]
        without = [value(result) for result in each_left_out(self.model, loss)]
        self.levels.setdefault(t, Looked()).add(stopped, without)

    @property
    def records(self) -> list[UnitRecord]:
        """What every unit did to the stream, over all batches, by bins of t."""
        if self._sums is None:
            return []
        sums = self._sums.clone()
        sums[:-1, :, -1] /= self._samples
        return Statistics(self.model, self.num_timesteps, self.bins).records(sums)

    def ranked(self) -> list[dict[str, Any]]:
        """A row for each unit, the least important first: by the loss that leaving it out adds (means over the times);
        where `look` was not called, by the size of its first-order importance.
        """
        count = max(1, len(self.sensitivity))
        writes, importance = [0.0] * len(self.names), [0.0] * len(self.names)
        for record in self.records:
            share = record.samples / self._samples
            writes[record.unit] += share * record.write_ratio
            importance[record.unit] += share * record.importance
        rows: list[dict[str, Any]] = []
        for i, name in enumerate(self.names):
            row: dict[str, Any] = {"unit": i, "name": name}
            if self.levels:
                row["left_out"] = _mean(level.without[i] - level.stopped[-1] for level in self.levels.values())
            if self.sensitivity:
                row["first_order"] = -importance[i]
                row["write_ratio"] = writes[i]
                row["sensitivity"] = sum(batch[i].normalized or 0.0 for batch in self.sensitivity) / count
            rows.append(row)
        key = "left_out" if self.levels else "first_order"
        return sorted(rows, key=lambda row: row[key] if self.levels else abs(row[key]))

    def write(self, folder: str | Path) -> list[Path]:
        """Write what was measured and draw it; returns the paths.

        | file                           | what it holds                                                              |
        |--------------------------------|----------------------------------------------------------------------------|
        | `sensitivity.{csv,png}`        | `||s_i||` and gain of every unit, batch by batch                           |
        | `units.{csv,png}`              | what it does to the stream, by bins of t                                   |
        | `depth.{csv,png}`, `left_out.csv` | loss with the first n units, and without one of them, by t              |
        | `importance.{csv,md}`          | every unit, the least important first; the table has the first ten         |

        Raises:
            ValueError: nothing was measured.
        """
        folder = Path(folder)
        if not self.sensitivity and not self.levels:
            raise ValueError("nothing was measured: call batch, look, or both")
        written: list[Path] = []

        def put(name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
            write_text(folder / name, csv_text(rows))
            written.append(folder / name)
            return written[-1]

        pictures: list[Callable[[], Path]] = []
        if self.sensitivity:
            rows = [{"step": n, **asdict(s)} for n, batch in enumerate(self.sensitivity, 1) for s in batch]
            pictures.append(partial(plot_sensitivity, put("sensitivity.csv", rows), folder / "sensitivity.png"))
            rows = [{"step": len(self.sensitivity), **asdict(r)} for r in self.records]
            pictures.append(partial(plot_units, put("units.csv", rows), folder / "units.png"))
        if self.levels:
            depth = put("depth.csv", [row for t, level in self.levels.items() for row in self._depth(t, level)])
            alone = put("left_out.csv", [row for t, level in self.levels.items() for row in self._alone(t, level)])
            pictures.append(partial(plot_depth, depth, alone, folder / "depth.png"))
        ranked = self.ranked()
        put("importance.csv", ranked)
        write_text(folder / "importance.md", self._table(ranked))
        return [*written, folder / "importance.md", *(path for draw in pictures for path in attempt(draw))]

    def _depth(self, t: float, level: Looked) -> Iterator[Mapping[str, Any]]:
        for kept, error in enumerate(level.stopped):
            yield {"t": t, "units": kept, "last_unit": self.names[kept - 1] if kept else "", "error": error}

    def _alone(self, t: float, level: Looked) -> Iterator[Mapping[str, Any]]:
        for i, loss in enumerate(level.without):
            yield {"t": t, "unit": i, "name": self.names[i], "left_out": loss - level.stopped[-1]}

    def _table(self, ranked: list[dict[str, Any]]) -> str:
        by = "the loss that leaving it out adds" if self.levels else "the size of its first-order importance"
        head = f"# The least important of {len(self.names)} units\n\nBy {by}; importance.csv has all of them.\n\n"
        return head + markdown_table(ranked[:SHOWN])


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
