"""Composing a configuration before Hydra runs, so that every mistake ends in one line instead of a traceback."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neural_rdm.cli.launcher import register
from neural_rdm.core.config import Sources, config_dir, flat_keys, nearest
from neural_rdm.core.errors import ConfigError


@dataclass
class Composed:
    """A composed configuration, the group choices that made it, and where its values came from."""

    cfg: DictConfig
    choices: dict[str, str]
    sources: Sources


def parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of `key=value` arguments.

    Raises:
        ConfigError: one of them is not an override.
    """
    try:
        return OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(f"cannot read the argument: {str(error).splitlines()[0]}. Arguments look like key=value; put values with commas or spaces in quotes.") from error


def compose_config(config_name: str, overrides: list[str], folders: list[str] | None = None) -> Composed:
    """Compose a primary configuration as Hydra would.

    Args:
        overrides: `key=value` arguments.
        folders: further configuration folders (`--config-dir`).

    Raises:
        ConfigError: an unknown key or choice, naming the nearest valid one.
    """
    register()
    search = [f"hydra.searchpath=[{','.join('file://' + str(Path(f).resolve()) for f in folders)}]"] if folders else []
    typed = frozenset(o.key_or_group for o in parse(overrides))
    try:
        cfg = _compose(config_name, [*search, *overrides])
    except MissingConfigException as error:
        raise _unknown_choice(error) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _unknown_key(error, config_name, overrides, search) from error
    choices = {k: str(v) for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}
    roots = [config_dir(), *(Path(f).resolve() for f in folders or [])]
    names = [config_name, *(f"{group}/{choice}" for group, choice in choices.items())]
    files = tuple(root / f"{name}.yaml" for name in reversed(names) for root in roots if (root / f"{name}.yaml").is_file())
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return Composed(cfg, choices, Sources(files, typed))


def _compose(config_name: str, overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        cfg = compose(config_name, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # for `${hydra:...}` in the configuration
        return cfg


def _unknown_choice(error: MissingConfigException) -> ConfigError:
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return ConfigError(str(error).splitlines()[0])
    return ConfigError(f"{group}={choice}: no such choice.{nearest(choice, options)} The choices, in {config_dir() / group}, are {', '.join(options)}")


def _unknown_key(error: Exception, config_name: str, overrides: list[str], search: list[str]) -> ConfigError:
    match = re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^']+)'", str(error))
    if match is None:
        return ConfigError(str(error).splitlines()[0])
    key = match.group(1).split("@")[0]
    others = [o for o, parsed in zip(overrides, parse(overrides), strict=True) if parsed.key_or_group != key]
    try:
        known = sorted(k for k in flat_keys(_compose(config_name, [*search, *others])) if not k.startswith("hydra"))
    except (HydraException, OmegaConfBaseException):
        known = []
    parent = key.rpartition(".")[0]
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    hint = nearest(key, known)
    listing = f" Keys of {parent or 'the configuration'}: {', '.join(k.rpartition('.')[2] for k in siblings)}." if siblings else ""
    return ConfigError(f"unknown configuration key {key}.{hint}{listing} (command line; files in {config_dir()})")
