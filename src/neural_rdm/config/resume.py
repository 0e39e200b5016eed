"""`resume=DIR`: which run goes on, with which configuration, and which overrides it may still take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.provenance import FILE, check_config
from neural_rdm.config.trust import check_file, escaped
from neural_rdm.core.arguments import nearest
from neural_rdm.core.errors import CheckpointError, ConfigError, first_line
from neural_rdm.core.extras import typed
from neural_rdm.core.given import read_json, read_yaml
from neural_rdm.core.output import LOG

#: keys that may change on resume, because the trajectory does not depend on them (noise and data order are keyed by the
#: position in the run, not by rank or worker)
CHANGEABLE = (
    "accept_data",
    "checkpoint",
    "data.max_bad_fraction",
    "data.num_workers",
    "data.root",
    "hydra",
    "logger",
    "name",
    "notes",
    "optimized_metric",
    "optimizer.skip_nonfinite",
    "resume",
    "strategy",
    "tags",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
)
#: keys that say what is to happen this time alone, and how a configuration that is kept has them
MOMENTARY = {"resume": None, "accept_data": False}
#: where runs lie below `outputs/train`: experiment and time; an experiment may lie in a folder (`exp=paper/table2_sky`)
LEVELS = ("*/*", "*/*/*")
#: keys of files and folders: those that must be there, and those that may also be names of something else
_FOLDERS, _PATHS = (
    ("data.root", "data.latents"),
    (
        *(
            "first_stage.path",
            "condition.path",
            "pretrained.path",
            "pipeline",
            "backbone.path",
            "metric.reference",
            "metric.frame_reference",
        ),
    ),
)


@dataclass(frozen=True)
class Run:
    """The folder of an earlier run."""

    folder: Path
    config: DictConfig | None  # None: it was killed before it wrote its configuration
    finished: dict[str, Any] | None  # the content of finished.json, once training and its report are done

    @property
    def choices(self) -> dict[str, str]:
        """Its group choices."""
        return dict(self.config.choices or {}) if self.config is not None else {}


def find_run(value: str, root: Path = Path("outputs/train")) -> Run:
    """The run that `resume=value` names: a folder, or `last` for the newest one below `root`.

    Raises:
        ConfigError: there is no such folder, or it is not a run's.
        CheckpointError: its config.yaml or finished.json cannot be read, or the former is not as the run wrote it.
    """
    runs = sorted((p.parent for level in LEVELS for p in root.glob(f"{level}/config.yaml")), key=lambda p: p.name)
    if value == "last":
        if not runs:
            raise ConfigError(f"resume=last: there is no run below {root.resolve()} yet; start one without resume")
        folder = runs[-1]
    else:
        folder = Path(value)
        if not value or not folder.is_dir():
            hint = nearest(value.rstrip("/"), map(str, runs)) or (f" The newest run is {runs[-1]}." if runs else "")
            raise ConfigError(f"resume={value}: no such run folder ({folder.resolve() if value else 'empty'}).{hint}")
    config, finished = _read(folder / "config.yaml", _configuration), _read(folder / "finished.json", _finished)
    if config is None:
        # its own start leaves these before it writes its configuration
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith(".") and p.name not in (FILE, LOG))
        if others:
            inner = [run for run in runs if folder.resolve() in run.resolve().parents]
            hint = f". The newest run in it is resume={inner[-1]}" if inner else ""
            raise ConfigError(f"resume={value}: not a run folder, it holds {others[0]} but no config.yaml{hint}")
    elif not isinstance(config, DictConfig) or not {"optimizer", "trainer"} <= set(config):
        raise CheckpointError(f"resume={value}: {folder / 'config.yaml'} is not the configuration of a training run")
    else:
        check_config(folder, config)
        check_file(config, f"resume={value}: its config.yaml")
    return Run(folder, config, finished)


def _read(path: Path, load: Callable[[Path], Any]) -> Any:
    try:
        return load(path) if path.is_file() else None
    except Exception as error:
        raise CheckpointError(f"resume: {path} cannot be read: {first_line(error)}") from error


def _configuration(path: Path) -> Any:
    return OmegaConf.create(read_yaml(path))


def _finished(path: Path) -> dict[str, Any]:
    content = read_json(path)
    said = content if isinstance(content, dict) else {}
    step, files = said.get("global_step"), said.get("files")
    names = files if isinstance(files, list) else [files]
    if not (isinstance(step, int) and all(isinstance(name, str) for name in names)):
        raise ValueError("it does not say which step was the last and what was made")
    return said


def merge(run: Run, composed: DictConfig, overrides: list[Override]) -> DictConfig:
    """The configuration to continue with: the run's own, with the harmless ones of `overrides` applied.

    Args:
        composed: the run's group choices with `overrides`, freshly composed and resolved.

    Raises:
        ConfigError: an override would change the trajectory.
    """
    assert run.config is not None
    make_absolute(composed)
    cfg = run.config.copy()
    changeable: tuple[str, ...] = CHANGEABLE
    steps = composed.trainer.get("max_steps")
    bound = None if steps == cfg.trainer.max_steps else _bound_to_its_steps(run, cfg.optimizer, steps)
    if bound is None:
        changeable = (*changeable, "trainer.max_steps")
    if cfg.data.get("latents") is not None:  # as data.root, where these are read
        changeable = (*changeable, "data.latents")
    for override in overrides:
        key = override.key_or_group
        if key == "resume" or key.startswith("hydra"):
            continue
        harmless = any(key == k or key.startswith((f"{k}.", f"{k}/")) for k in changeable)
        if key in run.choices or key in ("exp", "metric"):
            old, new = run.choices.get(key), None if override.is_delete() else str(override.value())
            if old != new and not harmless:
                raise _refusal(run, key, old, new)
        else:
            old, new = OmegaConf.select(cfg, key), OmegaConf.select(composed, key)
            if old != new and not harmless:
                raise _refusal(run, key, old, new, bound if key == "trainer.max_steps" else None)
        if harmless and old != new:
            OmegaConf.update(cfg, key, escaped(OmegaConf.select(composed, key)), merge=False)
            if key in run.choices:
                cfg.choices[key] = new
    return cfg


def lasting(cfg: DictConfig) -> DictConfig:
    """The configuration as it is kept: without what is to happen this time alone."""
    kept = cfg.copy()
    for key, value in MOMENTARY.items():
        kept[key] = value
    return kept


def make_absolute(cfg: DictConfig) -> None:
    """Let relative paths of a training configuration, which begin where it was started, hold from anywhere."""
    for key in (*_FOLDERS, *_PATHS):
        value = OmegaConf.select(cfg, key)
        path = os.path.abspath(os.path.expanduser(value)) if isinstance(value, str) and value else ""
        if path and (key in _FOLDERS or os.path.exists(path)):
            OmegaConf.update(cfg, key, escaped(path))


def _bound_to_its_steps(run: Run, optimizer: DictConfig, steps: int) -> str | None:
    """Why a run cannot have another number of steps; None where its learning rate so far would have been the same."""
    assert run.config is not None
    schedule, planned = optimizer.get("schedule"), run.config.trainer.max_steps
    if schedule == "constant" or not isinstance(steps, int):
        return None
    saved = [int(p.stem.removeprefix("step=")) for p in (run.folder / "checkpoints").glob("step=*.ckpt")]
    done = max(saved, default=0)
    if schedule == "wsd":
        falls = min(n - max(1, round(optimizer.decay_share * n)) for n in (planned, steps))
        if done <= falls:
            return None
        return f"its learning rate is constant up to step {falls} of both, and step {done} is behind that"
    ended = "has come to its end" if done >= planned else f"is planned over {planned} steps"
    return f"its learning rate follows a {schedule} schedule, which {ended}"


def _refusal(run: Run, key: str, old: Any, new: Any, bound: str | None = None) -> ConfigError:
    said = (
        f"resume={run.folder}: {key}={new} would change the run's trajectory; it was started with {key}={old} "
        f"(in {run.folder / 'config.yaml'})"
    )
    if bound is not None:
        return ConfigError(
            f"{said}: {bound}. Leave the override out, or start a new run from its weights with {key}={new} "
            f"{typed('pretrained.path', run.folder)}; a run with optimizer.schedule=constant can be made longer"
        )
    return ConfigError(f"{said}. Leave the override out, or start a new run without resume.")
