"""Finding a finished (or still growing) run, and loading it: its configuration, and its weights.

Everything that needs torch is imported inside the functions: `inherit` runs in the preflight, before torch is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.check import as_plain, choices_of, leaves, validate
from neural_rdm.config.compose import parse
from neural_rdm.config.environment import lacking
from neural_rdm.config.grammar import folder_name, literal, written
from neural_rdm.config.provenance import check_checkpoint, check_config, read_provenance
from neural_rdm.config.resume import LEVELS
from neural_rdm.config.sources import Sources
from neural_rdm.config.trust import check_file
from neural_rdm.config.trust import trust as believe
from neural_rdm.core.errors import CheckpointError, ConfigError, UserError, first_line
from neural_rdm.core.extras import typed
from neural_rdm.core.files import load_tensors
from neural_rdm.core.given import read_yaml
from neural_rdm.core.listing import natural_order
from neural_rdm.runs import shared

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from neural_rdm.data.base import DataModule
    from neural_rdm.runs.loaded import LoadedRun


def find_runs(folder: Path, files: Sequence[str] = ("config.yaml",)) -> list[Path]:
    """`folder` itself if it is a run (it holds one of `files`), else the runs one, or else two or three, levels below
    it: `outputs/train` holds those of exp=digits_gated and of exp=paper/table2_sky.
    """
    for levels in ([""], ["*/"], [f"{level}/" for level in LEVELS]):
        found = {p.parents[file.count("/")] for level in levels for file in files for p in folder.glob(level + file)}
        if found:
            return natural_order(found)
    return []


def read_config(folder: Path) -> DictConfig:
    """The checked configuration of the run in `folder`; needs neither torch nor the data.

    Raises:
        ConfigError: there is no such folder, or its configuration does not fit this version of the project.
        CheckpointError: the folder is not a run, its configuration is not as the run wrote it, or its training has
            saved no checkpoint yet.
    """
    path = folder / "config.yaml"
    if not folder.is_dir():
        raise ConfigError(
            f"run={folder}: no such folder ({folder.resolve()}). Pass the run folder that training printed."
        )
    if not path.is_file():
        below = find_runs(folder)
        newest_of = max(below, key=lambda run: run.name, default=None)
        hint = f" There are runs in it: run={newest_of} is the last one." if below else ""
        raise CheckpointError(f"run={folder}: not a run folder, it holds no config.yaml.{hint}")
    try:
        config = OmegaConf.create(read_yaml(path))
    except Exception as error:
        raise CheckpointError(f"run={folder}: {path} cannot be read: {first_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise CheckpointError(f"run={folder}: {path} is not a run's configuration")
    check_config(folder, config)
    check_file(config, f"run={folder}: its config.yaml")
    known = config.copy()
    for name in [name for name, node in (config.get("logger") or {}).items() if lacking(node)]:
        del known.logger[name]  # whoever only reads the run need not have what it logged to
    validate(known, "train", Sources((path,)))
    if not any((folder / "checkpoints").glob("*.ckpt")) and not (folder / shared.WEIGHTS).is_file():
        raise CheckpointError(
            f"run={folder}: no checkpoint in {folder / 'checkpoints'} yet; train on with {typed('resume', folder)}"
        )
    return config


def inherit(
    overrides: list[str], _: object = None, *, groups: Sequence[str] = (), keys: Sequence[str] = ()
) -> list[str]:
    """Put the run's own choices in front of a command's overrides.

    Args:
        overrides: `key=value` arguments; `run=` is among them, a folder or `last`.
        groups: nodes that come from the run unless a choice (`sampler=dpm`) is typed; their keys can be overridden.
        keys: single values that come from the run unless they are typed.

    Returns:
        The longer list. `run=last` is replaced by the folder, and `experiment` is the run's experiment.

    Raises:
        UserError: no usable run, more than one, or a group that the run has not and nobody chose.
    """
    parsed = parse(overrides)
    runs = [o for o in parsed if o.key_or_group == "run"]
    if not runs or runs[-1].value() is None:
        raise ConfigError("which run? Pass run=DIR, a folder that training printed, or run=last for the newest one")
    if runs[-1].is_sweep_override():
        raise ConfigError("run= takes one folder; start the command once for each run")
    folder = newest("run") if runs[-1].value() == "last" else shared.located(str(runs[-1].value()))
    config = read_config(folder)
    given = {o.key_or_group for o in parsed}
    values: dict[str, Any] = {"experiment": folder_name((config.choices or {}).get("exp") or folder.resolve().name)}
    for group in groups:
        if group in given:
            continue
        if config.get(group) is None:
            choices = ", ".join(f"{group}={name}" for name in choices_of(group))
            raise ConfigError(f"run={folder} was trained with {group}=null; choose one of {choices}")
        values |= dict(leaves(as_plain(config[group]), group))
    values |= {key: OmegaConf.select(config, key) for key in keys}
    first = [f"++{key}={literal(value)}" for key, value in values.items()]
    rest = [text for text, o in zip(overrides, parsed, strict=True) if o.key_or_group != "run"]
    return [*first, *rest, f"run={written(str(folder))}"]


def newest(key: str) -> Path:
    """The newest trained run, which `last` stands for.

    Args:
        key: where `last` was typed.

    Raises:
        ConfigError: there is none.
    """
    root = Path("outputs/train")
    files = (file for level in LEVELS for file in root.glob(f"{level}/checkpoints/last.ckpt"))
    runs = sorted((file.parents[1] for file in files), key=lambda p: p.name)
    if not runs:
        raise ConfigError(f"{key}=last: there is no trained run below {root.resolve()} yet; pass {key}=DIR")
    return runs[-1]


def device_of(accelerator: str) -> torch.device:
    """Where a command computes: "auto" is this process's GPU if there is one.

    Raises:
        ConfigError: accelerator=gpu without a GPU.
    """
    import torch

    if accelerator not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"accelerator={accelerator}: no such choice; the choices are auto, cpu, gpu")
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("accelerator=gpu: this machine has no GPU that torch can use; pass accelerator=cpu")
    gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if gpu else torch.device("cpu")


def load_run(
    folder: str | Path,
    weights: str = "ema",
    accelerator: str = "auto",
    where: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> LoadedRun:
    """Build the network of a run and load its newest readable checkpoint.

    Args:
        folder: the run's, "last" for the newest below `outputs/train`, a folder that `LoadedRun.share` wrote, or
            "hub:OWNER/NAME" for one on the Hugging Face hub.
        weights: "ema" (the averages, and the raw values of what is not averaged), "ema-DECAY" for another of the run's
            averages, or "raw".
        accelerator: "auto" (a GPU if there is one), "cpu" or "gpu".
        where: `root` and `latents`, where the run's data are now; None (or None each) for where they were.
        trust: packages whose classes the run's configuration may build, beside those that `config.trust` knows.

    Raises:
        UserError: no usable run or checkpoint, weights of another network, or no GPU where one was asked for.
    """
    import torch

    from neural_rdm.evaluation.measuring import stage_text
    from neural_rdm.runs import build
    from neural_rdm.runs.loaded import LoadedRun
    from neural_rdm.training.callbacks.checkpoints import newest_readable

    believe(trust)
    folder = newest("run") if folder == "last" else shared.located(str(folder))
    config = read_config(folder)
    build.quiet()
    device = device_of(accelerator)
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    found = shared.read_shared(folder, config, weights)
    if found is not None:
        path, (state, step) = folder / shared.WEIGHTS, found
    else:
        newest_file = newest_readable(folder / "checkpoints")
        if newest_file is None:
            raise CheckpointError(f"run={folder}: there is no checkpoint in {folder / 'checkpoints'}")
        path, checkpoint = newest_file, load_tensors(newest_file, leave_out=("optimizer_states",))
        check_checkpoint(folder, config, path, checkpoint)
        state, step = _weights(checkpoint, path, weights), int(checkpoint["global_step"])
    for key, value in (where or {}).items():
        if value is not None:
            config.data[key] = value
    net = build.network(config)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the network of {folder / 'config.yaml'}: {error}") from error
    first_stage, data = build.build(config.first_stage, "first_stage"), _data(config, folder)
    encodes = data.space != "latents" and first_stage.downsample > 1  # as runs.build.module decides it for training
    return LoadedRun(
        folder,
        config,
        path,
        step,
        weights,
        net.to(device).eval().requires_grad_(False),
        build.build(config.diffusion, "diffusion").process,
        data,
        build.text(config),
        first_stage.decode if encodes else None,
        stage_text(first_stage),
        device,
    )


def _data(config: DictConfig, folder: Path) -> DataModule:
    from neural_rdm.runs import build

    return build.data(config, read_provenance(folder).get("data"))


def _weights(checkpoint: dict[str, Any], path: Path, weights: str) -> dict[str, Tensor]:
    from neural_rdm.training.callbacks.checkpoints import split_network
    from neural_rdm.training.callbacks.ema import choose

    try:
        state, _ = split_network(checkpoint["state_dict"])
        if weights != "raw":
            state |= choose(checkpoint, weights)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a checkpoint of neural_rdm.train: it has no {error}") from error
    return state
