"""The primary configurations of `python -m neural_rdm.train` and of its sweeps: their top-level keys and ranges, as in
`config.primary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from neural_rdm.config.reader import Node
from neural_rdm.core.arguments import Count, Natural, NonNegative, Seed, Verbatim


@dataclass
class Trainer:
    """The group `trainer`: how long, on what, and how exactly."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Count
    num_nodes: Count
    precision: Literal["auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed", "float8-mixed"]
    tf32: bool
    max_steps: Count
    accumulate_grad_batches: Count
    compile: bool
    activation_checkpointing: Literal["none", "full", "selective"] | Count
    num_threads: Count | None


@dataclass
class Pretrained:
    """Official weights to start from."""

    path: str | None
    reinit: list[str]


@dataclass
class Checkpoint:
    """When training saves, and how many of the files stay."""

    every_n_steps: Count
    keep: Count
    sharded: bool
    async_: bool  # the key is `async`, which is no name in Python


@dataclass
class Sweep:
    """The jobs of a study, which `python -m neural_rdm.sweep` trains (see `config.grids`)."""

    #: so many seeds from 0 on, or a list of them; null: the experiment's own
    seeds: Count | list[Natural] | None = None
    #: the setting that a report compares the others with, as overrides (`residual=resnet`)
    base: str | None = None
    #: each is crossed over its keys and over the seeds; the jobs are those of all grids together
    grids: list[dict[str, Any]] | None = None


@dataclass
class Stored:
    """What the node of every data set in files has beside the arguments of its class: where training reads it."""

    #: what training reads: the files, or the latents that `python -m neural_rdm.encode` made of them
    source: Literal["pixels", "latents"] = "pixels"
    #: the folder of those latents
    latents: str | None = None


@dataclass
class Sweeping:
    """The primary configuration of `python -m neural_rdm.sweep`, beside that of its jobs (see `Sweep`)."""

    #: so many seeds from 0 on, or a list of them, for all jobs
    seeds: Count | list[Natural] | None
    #: at once
    jobs: Count
    launcher: Node
    sweeper: Node


@dataclass
class Train:
    """The primary configuration of `python -m neural_rdm.train`."""

    seed: Seed
    log_every_n_steps: Count
    resume: str | None
    #: of a resume: go on although the data are not as they were when the run began
    accept_data: bool
    #: the group choices that made this configuration; written into a run's config.yaml, never typed
    choices: dict[str, str] | None
    pipeline: str | None
    pretrained: Pretrained
    train_only: Literal["all", "gates", "gates+norms"]
    control: Literal["folded", "mlp_widened"] | None
    gamma: NonNegative
    target: Literal["isometry", "floor"]
    supervision: Literal["local", "exact"]
    checkpoint: Checkpoint
    trainer: Trainer
    backbone: Node
    residual: Node
    diffusion: Node
    first_stage: Node
    condition: Node | None
    data: Node
    optimizer: Node
    strategy: Node
    sampler: Node
    metric: Node | None
    callbacks: dict[str, Node | None] | None
    logger: dict[str, Node | None] | None
    #: of an experiment that is a study; a run's own configuration has none
    sweep: Sweep | None = None
    #: a column of metrics.csv (`val/loss`) or a number of the report: what a sweeper optimises
    optimized_metric: str | None = None
    #: what a person calls the run, on its page, in the list of all runs and where it is logged
    name: Verbatim | None = None
    #: words to find the run by
    tags: list[str] | None = None
    #: anything that is worth remembering
    notes: Verbatim | None = None
