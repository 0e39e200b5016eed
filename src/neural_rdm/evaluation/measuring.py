"""What is measured: the samples of a network, drawn as a report asks for them, and the report of their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from neural_rdm.backbones.contract import Backbone
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.base import DataModule
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.latents.first_stage import Autoencoder, Identity
from neural_rdm.reports.tables import write_metrics

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder
    from neural_rdm.evaluation.sample_files import SampleFiles

#: use(x, positions): a batch of finished samples (latents or pixels, float32, where they were drawn) and their numbers
Use = Callable[[Tensor, range], None]
#: rows of a table, the protocol line, and the same as facts
Measured = tuple[list[dict[str, Any]], str, dict[str, Any]]


class Draw(Protocol):
    """Draws samples of a network; sample i depends on (seed, i) alone."""

    def __call__(
        self, sampler: Sampler, condition: dict[str, Tensor], positions: range, use: Use | None = None
    ) -> Tensor:
        """Samples [N, *shape], float32 on the CPU; with `use` every batch is handed to it, and nothing is kept.

        With several ranks every one must call it: each draws its share, hands its own samples to `use`, and gets all
        of them as the result.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """A network whose samples are measured."""

    # the network, its text encoder or None, its data module (set up)
    net: Backbone
    text: TextEncoder | None
    data: DataModule
    draws: Draw  # see `Draw`
    # of the samples; weights are "ema", "ema-DECAY" or "raw"
    sampler: Sampler
    weights: str
    step: int
    seed: int
    decode: Callable[[Tensor], Tensor] | None  # latents -> pixels; None where the network works on the data as they are
    device: torch.device  # where samples are drawn
    first_stage: str  # the words for it in a protocol line
    precision: str = "32-true"  # what the network computes in, as `trainer.precision` names it
    writes: bool = True  # whether this process writes the report (rank 0)

    def draw(self, condition: dict[str, Tensor], positions: range, use: Use | None = None) -> Tensor:
        """See `Draw`."""
        return self.draws(self.sampler, condition, positions, use)

    def protocol(self, count: str) -> str:
        """How the samples were made, in one line; `count` says how many of what."""
        s = self.sampler
        return (
            f"Sampler {s.name}, {s.steps} steps, cfg_scale {s.cfg_scale:g} on channels {s.channels}, interval "
            f"{s.interval}; {count}; weights {self.weights}; step {self.step}; seed {self.seed}. "
            f"First stage: {self.first_stage}; precision {self.precision}."
        )

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "sampler": self.sampler.name,
            "sampler_steps": self.sampler.steps,
            "cfg_scale": self.sampler.cfg_scale,
            "channels": self.sampler.channels,
            "interval": None if self.sampler.interval is None else list(self.sampler.interval),
            "weights": self.weights,
            "step": self.step,
            "seed": self.seed,
            "first_stage": self.first_stage,
            "precision": self.precision,
        }


def stage_text(stage: Identity | Autoencoder) -> str:
    """A first stage in a protocol line."""
    return "none" if isinstance(stage, Identity) else f"{type(stage).__name__} {stage.path}, {stage.dtype}"


class Report:
    """The numbers of a run's samples, in `report/metrics.{md,csv,json}`. Subclasses say which."""

    def check(self, data: DataModule, net: Backbone, pixels: bool) -> None:
        """Refuse, before training, data or a network whose samples cannot be measured.

        Args:
            pixels: whether the samples are pixels in the end; latents otherwise.

        Raises:
            UserError: saying what to choose instead.
        """
        raise NotImplementedError

    @property
    def drawn(self) -> int:
        """How many samples it draws of a network."""
        raise NotImplementedError

    def with_count(self, count: int) -> Report:
        """The same report on about so many samples, for an evaluation while training."""
        raise NotImplementedError

    def rows(self, subject: Subject) -> Measured:
        """The numbers of the subject's samples, the protocol line, and the same as facts. Every rank must call it.

        The first row, named `generated`, is the run's own; others may follow to compare it with. A rank that does not
        write may return none.
        """
        raise NotImplementedError

    def rows_of_files(
        self, files: SampleFiles, batch_size: int, device: torch.device, line: str, facts: dict[str, Any] | None = None
    ) -> Measured:
        """The numbers of samples on disk, of which nobody knows what they should show; refused by default.

        Args:
            files: the samples.
            batch_size: how many are read at a time.
            device: where they are measured.
            line, facts: what is known of their origin, as a sentence and as values.

        Raises:
            UserError: the report measures runs alone, samples of the other kind, or damaged ones.
        """
        raise ConfigError("samples= needs metric=images or metric=videos; the others measure a run: pass run=DIR")

    def write(self, subject: Subject, folder: Path) -> tuple[dict[str, float], list[Path]]:
        """Measure, and write `metrics.{md,csv,json}` into `folder`. Every rank must call it.

        Returns:
            The numbers of the first row and the paths; neither on the other ranks.
        """
        rows, protocol, facts = self.rows(subject)
        if not subject.writes:
            return {}, []
        return {k: v for k, v in rows[0].items() if k != "name"}, write_metrics(folder, rows, protocol, facts)
