"""What a sweep is about to do, worked out and checked before anything starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, read_write

from neural_rdm.cli.jobs import open_record
from neural_rdm.config import primary_train
from neural_rdm.config.check import as_plain, choices_of, validate
from neural_rdm.config.compose import Composed, as_text, compose_config, parse
from neural_rdm.config.grids import SEED, crossed, seeds_of, study
from neural_rdm.config.primary_train import Sweep
from neural_rdm.config.schema import of_class
from neural_rdm.core.arguments import Seed, problem
from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.reports.sweeps import Record
from neural_rdm.runs.folders import refuse_used

#: composes and checks the configuration of one job
Check = Callable[[list[str]], Composed]
#: (overrides, folders of --config-dir) -> overrides
Complete = Callable[[list[str], list[str]], list[str]]
#: what Hydra's own multirun was told by, and what tells this one
_REPLACED = {
    "hydra/launcher": "launcher=local, joblib, submitit or ray",
    "hydra.launcher": "launcher.KEY=VALUE",
    "hydra/sweeper": "sweeper=grid or optuna",
    "hydra.sweeper": "sweeper.KEY=VALUE",
    "hydra.sweep.subdir": "nothing: the folder of a job is its number",
}
_TOLD = 12  # refused settings that are told; jobs after which it is told that they are checked


@dataclass
class Plan:
    """A sweep.

    Attributes:
        command: whose jobs they are (train).
        folder: of the sweep.
        record: its jobs, and how far they are.
        how: the configuration of the sweep itself: jobs, launcher, sweeper.
        further: what each job is given beside its own overrides.
        typed: what the command line says of the jobs, for a sweeper that proposes them.
        check: composes and checks the overrides of a job.
        steps: number of a job -> the steps that it is planned to train, where that is known.
        objective: `optimized_metric` of the jobs.
    """

    command: str
    folder: Path
    record: Record
    how: DictConfig
    further: list[str]
    typed: list[Override]
    check: Check
    steps: dict[str, int] = field(default_factory=dict)
    objective: str | None = None

    @property
    def module(self) -> str:
        """What runs a job."""
        return f"neural_rdm.{self.command}"


def make_plan(command: str, overrides: Sequence[str], folders: list[str], check: Check, complete: Complete) -> Plan:
    """Work out the jobs of a sweep, and check them. Nothing is written.

    Args:
        overrides: all that was typed.
        folders: of `--config-dir`.
        check: composes the configuration of one job and refuses one that cannot work.
        complete: what the command does to its overrides first.

    Raises:
        UserError: a mistake; where some jobs cannot work and others can, the message tells which, and why.
    """
    how, rest = _how(overrides, folders)
    parsed = parse(complete(rest, folders))
    for o in parsed:
        key = next((k for k in _REPLACED if o.key_or_group == k or o.key_or_group.startswith(f"{k}.")), None)
        if key is not None:
            raise ConfigError(f"{as_text(o)}: {key} is not used; type {_REPLACED[key]}")
    hydra = [o for o in parsed if o.key_or_group.startswith(("hydra.", "hydra/"))]
    node = [o for o in parsed if o.key_or_group == "sweep" or o.key_or_group.startswith("sweep.")]
    typed = [o for o in parsed if o not in hydra and o not in node]
    found = _study(command, [*typed, *node], folders)
    seeds = seeds_of(OmegaConf.to_container(how.seeds) if OmegaConf.is_list(how.seeds) else how.seeds)  # type: ignore[arg-type]
    optimises = not how.sweeper._target_.endswith(".Grid")
    if optimises and (found.grids or found.seeds or seeds):
        raise ConfigError("sweeper=optuna proposes settings of one seed itself; pass sweep=null, no seeds=, and ranges")
    jobs = [] if optimises else crossed(found, typed, seeds, choices_of)
    composed = _checked(jobs, check) if jobs else []
    folder = _folder(command, typed, hydra, folders)
    refuse_used(folder, "sweep")
    record = open_record(folder, overrides, [job for job, _ in composed], found.base)
    further = [as_text(o) for o in hydra if not o.key_or_group.startswith(("hydra.mode", "hydra.run.", "hydra.sweep."))]
    further += ["sweep=null"] * (command == "train") + [w for f in folders for w in ("--config-dir", f)]
    plan = Plan(command, folder, record, how, further, typed, check)
    steps = {tuple(job): OmegaConf.select(cfg, "trainer.max_steps") for job, cfg in composed}
    plan.steps = {n: steps[tuple(job)] for n, job in record.jobs.items() if isinstance(steps.get(tuple(job)), int)}
    metrics = {OmegaConf.select(cfg, "optimized_metric") for _, cfg in composed}
    plan.objective = metrics.pop() if len(metrics) == 1 else None
    return plan


def _how(overrides: Sequence[str], folders: list[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of the sweep itself, and the overrides that are not of it."""
    keys = of_class(primary_train.Sweeping).arguments
    own = [o for o in overrides if o.partition("=")[0].partition(".")[0].lstrip("+~") in keys]
    composed = compose_config("sweep", own, folders)
    validate(composed.cfg, "sweep", composed.sources)
    return composed.cfg, [o for o in overrides if o not in own]


def _study(command: str, typed: Sequence[Override], folders: list[str]) -> Sweep:
    """The study that the experiment is; one without grids where it is none."""
    if command != "train":
        return Sweep()
    fixed = [as_text(o) for o in typed if not o.is_sweep_override()]
    several = [o for o in typed if o.is_sweep_override() and o.key_or_group == "exp"]
    names = [text for o in several for text in crossed(Sweep(), [o], [], choices_of)] or [[]]
    nodes = [compose_config(command, [*fixed, *name], folders).cfg.get("sweep") for name in names]
    if several and any(node is not None for node in nodes):
        raise ConfigError(f"{as_text(several[0])}: one of these is a study of its own; sweep over one at a time")
    node = nodes[0]
    return Sweep() if node is None else study(node)


def _folder(command: str, typed: Sequence[Override], hydra: Sequence[Override], folders: list[str]) -> Path:
    """The folder of the sweep, as `hydra.sweep.dir` says; of a group that varies, `several` stands for its choice."""
    fixed = [as_text(o) for o in [*typed, *hydra] if not o.is_sweep_override() and o.key_or_group != "hydra.mode"]
    compose_config(command, fixed, folders)
    cfg: Any = HydraConfig.instance().cfg
    with read_write(cfg.hydra):
        for override in typed:
            if override.is_sweep_override() and override.key_or_group in cfg.hydra.runtime.choices:
                cfg.hydra.runtime.choices[override.key_or_group] = "several"
        return Path(str(cfg.hydra.sweep.dir))


def _checked(jobs: Sequence[list[str]], check: Check) -> list[tuple[list[str], DictConfig]]:
    """The jobs and their configurations, of jobs with equal ones the first; each setting is checked with one seed.

    Raises:
        UserError: some or all cannot work.
    """
    found: dict[tuple[str, ...], DictConfig] = {}
    values: list[dict[str, Any]] = []  # of the settings that were found, each different: 0 and 0.0 are the same
    refused: dict[tuple[str, ...], UserError] = {}
    kept: dict[tuple[int, str], tuple[list[str], DictConfig]] = {}
    if len(jobs) > _TOLD:
        print(f"checking the settings of {len(jobs)} jobs ...", file=sys.stderr, flush=True)
    for job in jobs:
        seed = next((o for o in job if o.startswith(f"{SEED}=")), "")
        setting = tuple(o for o in job if o != seed)
        if setting not in found and setting not in refused:
            try:
                found[setting] = check(job).cfg
            except UserError as error:
                refused[setting] = error
        if setting in found:
            _check_seed(seed)
            own = as_plain(found[setting]) | {SEED: None}
            values += [] if own in values else [own]
            kept.setdefault((values.index(own), seed), (job, found[setting]))
    if refused:
        raise _refusal(refused, found)
    return list(kept.values())


def _check_seed(override: str) -> None:
    value = parse([override])[0].value() if override else 0
    if (wrong := problem(SEED, value, Seed)) is not None:
        raise ConfigError(f"configuration key {wrong.at('')}", key=SEED)


def _refusal(refused: dict[tuple[str, ...], UserError], fine: Iterable[tuple[str, ...]]) -> UserError:
    """One message for all settings that cannot work; the reason alone where it is that of every one."""
    reasons = {str(error) for error in refused.values()}
    settings = [*refused, *fine]
    if len(reasons) == 1 and len(refused) == len(settings):
        return next(iter(refused.values()))
    every = set.intersection(*map(set, settings))
    lines = [f"  {' '.join(o for o in s if o not in every)}: {error}" for s, error in refused.items()]
    more = [f"  and {len(lines) - _TOLD} more"] if len(lines) > _TOLD else []
    return ConfigError(
        "\n".join(
            [
                f"{len(refused)} of the {len(settings)} settings of this sweep cannot be run:",
                *lines[:_TOLD],
                *more,
                "Cross only what goes together: an experiment's sweep.grids has a grid for each group of keys that do, "
                "as for gamma and the rules whose gates can be supervised (see docs/sweeps.md).",
            ]
        )
    )
