"""The primary configuration of each command: its top-level keys and ranges (`schema` has the nodes below them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from neural_rdm.core.fields import Problem, at_least, between, matching, node, nodes, one_of, positive
from neural_rdm.core.schema import Checkpoint, Pretrained, Trainer


def _weights() -> Any:
    """Which weights of a checkpoint a command uses."""
    return matching(r"ema|raw|ema-[01]\.[0-9e-]+", "ema, raw, or ema-DECAY for one of callbacks.ema.further")


@dataclass
class Train:
    """The primary configuration of `python -m neural_rdm.train`."""

    seed: int = between(0, 2**63 - 1)
    log_every_n_steps: int = positive()
    resume: Optional[str] = field()
    #: the group choices that made this configuration; written into a run's config.yaml, never typed
    choices: Optional[dict[str, str]] = field()
    pretrained: Pretrained = field()
    train_only: str = one_of("all", "gates", "gates+norms")
    gamma: float = at_least(0)
    target: str = one_of("isometry", "floor")
    supervision: str = one_of("local", "exact")
    checkpoint: Checkpoint = field()
    trainer: Trainer = field()
    backbone: Any = node()
    residual: Any = node()
    diffusion: Any = node()
    first_stage: Any = node()
    condition: Any = node(optional=True)
    data: Any = node()
    optimizer: Any = node()
    strategy: Any = node()
    sampler: Any = node()
    metric: Any = node(optional=True)
    callbacks: Optional[dict[str, Any]] = nodes()
    logger: Optional[dict[str, Any]] = nodes()


@dataclass
class OfRun:
    """What every command asks that runs a trained network."""

    run: str
    #: the run's experiment, which names the output folder; filled in, never typed
    experiment: Optional[str]
    weights: str = _weights()
    seed: int = between(0, 2**63 - 1)
    batch_size: int = positive()
    accelerator: str = one_of("auto", "cpu", "gpu")


@dataclass
class Sample(OfRun):
    """The primary configuration of `python -m neural_rdm.sample`."""

    per_class: int = positive()
    count: Optional[int] = positive()
    classes: Optional[list[int]] = field()
    prompts: Optional[list[str]] = field()
    files: list[str] = field()
    fps: int = positive()
    sampler: Any = node()

    def check(self) -> list[Problem]:
        """Refuse kinds of files that there are not."""
        if unknown := [kind for kind in self.files if kind not in ("npz", "png", "gif", "mp4")]:
            return [("files", f"{unknown[0]} is not one of npz, png, gif, mp4; pass for example files=[npz,png]")]
        return []


@dataclass
class Evaluate(OfRun):
    """The primary configuration of `python -m neural_rdm.evaluate`."""

    sampler: Any = node()
    metric: Any = node()


@dataclass
class Lens(OfRun):
    """The primary configuration of `python -m neural_rdm.lens`."""

    samples: int = positive()
    times: list[float] = field()

    def check(self) -> list[Problem]:
        """Refuse noise levels that are no shares."""
        if not self.times or not all(0 <= share <= 1 for share in self.times):
            return [("times", f"{list(self.times)} must be shares of the timesteps in [0, 1], such as [0.1,0.5,0.9]")]
        return []


@dataclass
class Report:
    """The primary configuration of `python -m neural_rdm.report`."""

    runs: Optional[str]
    published: bool
    ep_fid: Optional[float] = positive()

    def check(self) -> list[Problem]:
        """Refuse to report on nothing."""
        if self.runs is None and not self.published:
            return [("runs", "has no value; pass runs=DIR, or published=true for the paper's own tables")]
        if self.runs is None and self.ep_fid is not None:
            return [("ep_fid", "is measured on runs; pass runs=DIR as well")]
        return []


@dataclass
class Deepen:
    """The primary configuration of `python -m neural_rdm.deepen`."""

    checkpoint: str
    #: see OfRun
    experiment: Optional[str]
    depth: int = positive()
    placement: str = one_of("interleave", "append", "prepend", "middle")
    operator: str = one_of("identity", "duplicate", "stack", "halved")
    max_steps: Optional[int] = positive()


@dataclass
class Convert:
    """The primary configuration of `python -m neural_rdm.convert`."""

    run: str
    #: see OfRun
    experiment: Optional[str]
    to: str = one_of("official", "diffusers")
    weights: str = _weights()


#: primary configuration -> its class
COMMANDS: dict[str, type] = {
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "lens": Lens,
    "report": Report,
    "deepen": Deepen,
    "convert": Convert,
}
