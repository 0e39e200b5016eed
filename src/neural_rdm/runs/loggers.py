"""Where a run logs to beside its own files: under which name and id, and what is told there of it."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from omegaconf import DictConfig

from neural_rdm.config.check import as_plain
from neural_rdm.config.provenance import read_provenance, write_provenance
from neural_rdm.core.errors import ConfigError, UserError, first_line
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.reports.rates import recorded
from neural_rdm.reports.runs import flat
from neural_rdm.training.callbacks.logging import CSVLogger

#: what a folder says of itself: the name of a logger -> its id of this run
KEY = "loggers"
#: loggers that write files, below the run's folder
FILES = ("TensorBoardLogger", "CSVLogger")
#: arguments of loggers that say where files lie, as the class has them whatever its keys are
_PLACES = ("save_dir", "dir")
_MLFLOW = "mlflow.db"  # in the run's folder
LOSSES = ("val/loss", "train/loss")


def arguments(name: str, node: DictConfig, cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """What the logger `name` is built with beside its own keys, which count where they are typed: the run's place, its
    name, tags and notes, and the id that an earlier start of the run had.

    Raises:
        ConfigError: its keys would let it write outside of the run's folder.
    """
    kind = node["_target_"].rpartition(".")[2]
    for key in _PLACES:
        if node.get(key) is not None:
            raise ConfigError(
                f"logger.{name}.{key}={node[key]} is no key: its files lie in the run's folder; leave it out"
            )
    if kind in FILES:
        _check_inside(name, node, folder)
    known = read_provenance(folder).get(KEY, {}).get(name)
    shown = cfg.get("name") or f"{(cfg.choices or {}).get('exp', 'run')} {folder.name}"
    tags = list(cfg.get("tags") or [])
    ours: dict[str, Any] = {"save_dir": str(folder)}
    if kind == "WandbLogger":
        ours |= {"name": shown, "id": known or secrets.token_hex(4), "tags": tags, "notes": cfg.get("notes")}
    elif kind == "MLFlowLogger":
        about = {"mlflow.note.content": cfg.notes} if cfg.get("notes") else {}
        ours |= {"run_name": shown, "run_id": known, "tags": {**dict.fromkeys(tags, "true"), **about}}
        if (folder / _MLFLOW).is_symlink() and node.get("tracking_uri") is None:
            raise ConfigError(f"{folder / _MLFLOW} is a link, and nothing is written through it: remove it")
        ours["tracking_uri"] = f"sqlite:///{folder.resolve() / _MLFLOW}"
    elif kind == "AimLogger":
        ours = {"run_name": shown, "run_hash": known}
    return {key: value for key, value in ours.items() if node.get(key) is None}


def _check_inside(name: str, node: DictConfig, folder: Path) -> None:
    parts = {key: str(node[key]) for key in ("name", "version", "sub_dir") if node.get(key) is not None}
    if not Path(os.path.abspath(folder.joinpath(*parts.values()))).is_relative_to(folder.absolute()):
        told = ", ".join(f"{key}={value}" for key, value in parts.items())
        raise ConfigError(f"logger.{name}: {told} leads out of {folder}; give names of folders in it")


def begin(trainer: pl.Trainer, cfg: DictConfig, folder: Path) -> None:
    """Write down the ids that the services have given the run, and tell them its configuration; TensorBoard, which
    shows a run by its last numbers, learns it at the end. Only the first rank does anything.

    Raises:
        UserError: a service cannot be reached or refuses the run.
    """
    if not is_first_rank():
        return
    ids = dict(read_provenance(folder).get(KEY, {}))
    for name, logger in zip(cfg.logger or {}, trainer.loggers, strict=True):
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            continue
        try:
            goes_on = name in ids
            if (read := _IDS.get(type(logger).__name__)) is not None:
                ids[name] = str(read(logger))
            if isinstance(logger, MLFlowLogger) and goes_on:
                continue  # its parameters are written once
            logger.log_hyperparams(_configuration(cfg))
            if type(logger).__name__ == "AimLogger" and not goes_on:
                for tag in cfg.get("tags") or ():
                    logger.experiment.add_tag(tag)  # type: ignore[attr-defined]
        except Exception as error:  # each service has errors of its own
            raise UserError(
                f"logger.{name} cannot begin: {first_line(error)}. Its page says how to log in or to log offline; "
                "logger=csv needs no service"
            ) from error
    if ids:
        write_provenance(folder, **{KEY: ids})


def end(trainer: pl.Trainer, cfg: DictConfig, folder: Path, numbers: Mapping[str, float]) -> None:
    """Tell the loggers the numbers of a finished run, as `final/NAME`; TensorBoard shows them in its HParams. What a
    service refuses now is told in a line: the run is finished all the same.
    """
    if not is_first_rank():
        return
    last = {name.replace("/", "_"): value for name in LOSSES if (value := recorded(folder, name)) is not None}
    found = {
        f"final/{name}": float(value)
        for name, value in {**last, **numbers}.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger) and found:
            try:
                _tell(logger, cfg, found, trainer.global_step)
            except Exception as error:  # see above
                print(f"{type(logger).__name__} did not take the last numbers: {first_line(error)}", flush=True)


def _tell(logger: Logger, cfg: DictConfig, found: dict[str, float], step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(_configuration(cfg), found, step)
    else:
        logger.log_metrics(found, step)
    logger.finalize("success")


def _configuration(cfg: DictConfig) -> dict[str, Any]:
    """Dotted key -> value, without what says nothing of the training."""
    plain = {key: value for key, value in as_plain(cfg).items() if key not in ("logger", "resume", "sweep", "notes")}
    return {key: str(value) if value is None else value for key, value in flat(plain).items()}


_IDS: dict[str, Callable[[Any], Any]] = {
    "WandbLogger": lambda logger: logger.experiment.id,
    "MLFlowLogger": lambda logger: logger.run_id,
    "AimLogger": lambda logger: logger.experiment.hash,
}
