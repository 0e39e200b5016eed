"""Logs the sensitivity of every residual unit, and what it writes, while a network trains (paper, Sec. 3.3, Fig. 5)."""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl

from neural_rdm.core.arguments import Count, between, checked
from neural_rdm.core.records import StepRecords, read_rows
from neural_rdm.dynamics.probe import Sensitivity, sensitivities
from neural_rdm.dynamics.statistics import Statistics, UnitRecord
from neural_rdm.reports.figures import attempt
from neural_rdm.reports.plots import plot_sensitivity
from neural_rdm.reports.units import plot_gates, plot_heatmap, plot_units
from neural_rdm.residual import units
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.logging import CSVLogger
from neural_rdm.training.callbacks.steps import Order
from neural_rdm.training.callbacks.supervision import Measurement, Supervision, Tapped
from neural_rdm.training.held import callbacks_of
from neural_rdm.training.scaling import loss_scale

COLUMNS = ("step", "unit", "name", "norm", "normalized", "gain", "alpha_mean", "alpha_std", "beta_norm")
UNIT_COLUMNS = (
    "step", "unit", "name", "t_low", "t_high", "samples",
    "rms", "growth", "write_ratio", "write_cos", "redundancy", "mean_share", "importance",
)  # fmt: skip
ALARM_COLUMNS = ("step", "unit", "name", "quantity", "largest_before", "now")
#: quantities whose sudden growth announces trouble: an exploding gradient or stream, a collapse into the token mean
WATCHED_FOR_JUMPS = ("norm", "rms", "write_ratio", "mean_share")
#: records before the first alarm: a network that has just begun changes by orders of magnitude anyway
CALM = 3


@checked()
class SensitivityLog(Tapped):
    """`sensitivity/{sensitivity,units}.csv` and their plots, from ordinary training steps.

    The norms are those of the gradient of the loss averaged over the whole global batch. Where the sensitivity is
    supervised as well, its measurement is used; else there is one of its own. Both files and all plots can be read at
    any time; a resumed run appends to them.

    Cost: the taps add less than 1 % to a measured step, and `units.csv` one tensor of the stream's size for each unit
    and the arithmetic on it (benchmarks/supervision.py); other steps cost nothing.

    Args:
        every_n_steps: optimizer steps between two measurements; the last step is measured too. (The first step of a
            DiT says nothing: its last layer starts at zero, so no gradient reaches any unit.)
        time_bins: bins of the timestep in `units.csv`; 0 for no such file.
        alarm: print a line, and write it to `alarms.csv`, when a unit's norm, stream, write or token-mean share is more
            than so many times the largest recorded before, once the learning rate has warmed up; None for no alarms.
    """

    order = Order.TAP

    def __init__(
        self,
        every_n_steps: Count = 1000,
        time_bins: Annotated[int, between(0, 64)] = 4,
        alarm: Annotated[float, between(1, 1e9)] | None = 4.0,
    ) -> None:
        self.every_n_steps, self.time_bins, self.alarm = every_n_steps, time_bins, alarm
        self._supervision: Supervision | None = None
        self._measurement: Measurement | None = None
        self._statistics: Statistics | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Open the files (a resumed run appends to them)."""
        self.folder = Path(trainer.default_root_dir) / "sensitivity"
        self._records = StepRecords(self.folder / "sensitivity.csv", COLUMNS)
        self._units = StepRecords(self.folder / "units.csv", UNIT_COLUMNS)
        self._alarms = StepRecords(self.folder / "alarms.csv", ALARM_COLUMNS)
        self._supervision = next(iter(callbacks_of(trainer, Supervision)), None)
        self._gated = any(unit.has_alpha for _, unit in units(pl_module.net))
        self._largest = Largest(_read(self.folder / "sensitivity.csv"), _read(self.folder / "units.csv"))

    def drop(self, pl_module: Any) -> None:
        """Also tell nobody of timesteps any more."""
        if self._measurement is not None:
            self._measurement.close()
        if self._statistics is not None:
            self._statistics.close()
        self._measurement = self._statistics = pl_module.on_timesteps = None

    def _due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step + 1
        return step == trainer.max_steps or step % self.every_n_steps == 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Switch the taps on for every micro-step of an optimizer step that is measured."""
        if not self._due(trainer):
            return
        if self._supervision is None and self._measurement is None:
            self._measurement = Measurement(pl_module, branches=False)
        if self.time_bins and self._statistics is None:
            timesteps = pl_module.objective.process.num_timesteps
            self._statistics = Statistics(pl_module.net, timesteps, self.time_bins)
            pl_module.on_timesteps = self._statistics.at

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """All micro-batches are done: write the rows of this step."""
        if not self._due(trainer):
            return
        if self._supervision is not None:
            squared = self._supervision.squared(trainer)
        else:
            assert self._measurement is not None
            (squared, _), self._measurement = self._measurement.read(trainer), None
        found, records = sensitivities(pl_module.net, squared), self._unit_records(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        step = trainer.global_step + 1
        self._records.append([{"step": step, **asdict(sensitivity)} for sensitivity in found])
        if records:
            self._units.append([{"step": step, **asdict(record)} for record in records])
        self._warn(step, found, records, calm=step <= pl_module.optimizer.warmup_steps)
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # which has them in a file of their own
                logger.log_metrics(_named(found), step=step)

    def _unit_records(self, trainer: pl.Trainer, pl_module: Any) -> list[UnitRecord]:
        """What the units wrote in this step, over all ranks; every rank must call it."""
        if self._statistics is None:
            return []
        statistics, self._statistics, pl_module.on_timesteps = self._statistics, None, None
        statistics.close()
        copies = parallel.copies(trainer)
        sums = parallel.sum_over_ranks(statistics.sums().clone()) / copies
        # each rank's loss is the mean of its own share, and carries the loss scale
        sums[:-1, :, -1] /= trainer.world_size / copies * loss_scale(trainer, sums)
        return statistics.records(sums)

    def _warn(self, step: int, found: Sequence[Sensitivity], records: Sequence[UnitRecord], calm: bool) -> None:
        now = _values([asdict(s) for s in found], [asdict(r) for r in records])
        names = {s.unit: s.name for s in found}
        jumps = self._largest.jumps(now, self.alarm) if self.alarm is not None and not calm else []
        for (unit, quantity), before in jumps:
            name, value = names[unit], now[unit, quantity]
            told = f"is {value:.3g}, {value / before:.1f} times the largest recorded before"
            print(f"step {step}: {quantity} of unit {unit} ({name}) {told}", flush=True)
            row = (step, unit, name, quantity, before, value)
            self._alarms.append([dict(zip(ALARM_COLUMNS, row, strict=True))])
        self._largest.add(now)

    def finish(self) -> list[Path]:
        """Draw all that has been recorded; pictures without anything to show are left out, saying why."""
        sensitivity, by_time = self.folder / "sensitivity.csv", self.folder / "units.csv"
        pictures: list[tuple[Callable[..., Path], Path, str]] = []
        if sensitivity.is_file():
            pictures += [(plot_sensitivity, sensitivity, "sensitivity.png"), (plot_heatmap, sensitivity, "heatmap.png")]
            if self._gated:
                pictures.append((plot_gates, sensitivity, "gates.png"))
        if by_time.is_file():
            pictures.append((plot_units, by_time, "units.png"))
        return [p for draw, source, name in pictures for p in attempt(partial(draw, source, self.folder / name))]


Values = dict[tuple[int, str], float]  # (unit, quantity) -> value


class Largest:
    """The largest value of every quantity of every unit so far.

    Args:
        sensitivity, units: rows of the files of a run that goes on, by which it knows what it has seen.
    """

    def __init__(self, sensitivity: Iterable[dict[str, Any]] = (), units: Iterable[dict[str, Any]] = ()) -> None:
        self.records = 0
        self._largest: Values = {}
        steps: dict[str, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
        for place, rows in enumerate((sensitivity, units)):
            for row in rows:
                steps[row["step"]][place].append(row)
        for parts in steps.values():
            with contextlib.suppress(KeyError, ValueError):  # a damaged row says nothing of what is usual
                self.add(_values(*parts))

    def jumps(self, now: Values, factor: float) -> list[tuple[tuple[int, str], float]]:
        """What is more than `factor` times its largest value so far, or no number any more, with that value; nothing in
        the first records.
        """
        if self.records < CALM:
            return []
        before = self._largest
        return [
            (key, before[key]) for key, v in now.items() if before.get(key, 0) > 0 and not v <= factor * before[key]
        ]

    def add(self, now: Values) -> None:
        """Remember a record."""
        self.records += 1
        for key, value in now.items():
            if math.isfinite(value):
                self._largest[key] = max(value, self._largest.get(key, 0.0))


def _values(sensitivity: Iterable[dict[str, Any]], units: Iterable[dict[str, Any]]) -> Values:
    """The quantities of one step that are watched for jumps; those that have bins of t as means over the samples."""
    sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for rows, weighed in ((sensitivity, False), (units, True)):
        for row in rows:
            for name in WATCHED_FOR_JUMPS:
                if row.get(name) not in (None, ""):
                    weight = float(row["samples"]) if weighed else 1.0
                    pair = sums[int(row["unit"]), name]
                    pair[0] += weight * float(row[name])
                    pair[1] += weight
    return {key: total / weight for key, (total, weight) in sums.items()}


def _read(path: Path) -> list[dict[str, str]]:
    return read_rows(path) if path.is_file() else []


def _named(found: Sequence[Sensitivity]) -> dict[str, float]:
    """What a logger is told: the norm and the gain of every unit that has one."""
    norms = {f"sensitivity/norm/{s.name}": s.norm for s in found}
    return norms | {f"sensitivity/gain/{s.name}": s.gain for s in found if s.gain is not None}
