"""Composing a configuration before Hydra runs, so that every mistake ends in one line instead of a traceback."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import omegaconf._utils
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from neural_rdm.config import primary
from neural_rdm.config.check import choices_of, config_dir
from neural_rdm.config.grammar import as_typed, written
from neural_rdm.config.schema import fill, of_class
from neural_rdm.config.sources import Sources
from neural_rdm.config.trust import own
from neural_rdm.core.arguments import members, nearest
from neural_rdm.core.errors import ConfigError, first_line


@dataclass
class Composed:
    """A composed configuration, the group choices that made it, and where its values came from."""

    cfg: DictConfig
    choices: dict[str, str]
    sources: Sources


def prepare_hydra() -> None:
    """Let Hydra give every node its defaults (see `fill`) before it applies overrides to them, in whatever it composes:
    a run, --help, --cfg.
    """
    if not hasattr(ConfigLoaderImpl, "neural_rdm"):  # it has no hook for that
        apply = ConfigLoaderImpl._apply_overrides_to_config

        def filled(overrides: list[Override], cfg: DictConfig) -> None:
            fill(cfg)
            apply([o for o in overrides if o.is_hydra_override()], cfg)
            with open_dict(cfg):  # `validate` refuses a key that there is not, and says more than Hydra does
                apply([o for o in overrides if not o.is_hydra_override()], cfg)
            fill(cfg)

        loader: Any = ConfigLoaderImpl
        loader._apply_overrides_to_config = staticmethod(filled)
        loader.neural_rdm = True
        _compose_once()
        _resolve_where_needed()
        _parse_in_c()


#: what was composed last: command and overrides, and all of it, Hydra's node too
_last: tuple[str, list[str], DictConfig] | None = None


def _compose_once() -> None:
    """Let `hydra.main` run with what the preflight has composed: it would compose twice more, for its mode and the run,
    half a second in all.
    """
    loader, main = ConfigLoaderImpl.load_configuration, Hydra.get_mode
    classes: Any = (ConfigLoaderImpl, Hydra)  # they have no hook for that

    def kept(config_name: str | None, overrides: list[str]) -> DictConfig | None:
        return _last[2] if _last is not None and _last[:2] == (config_name, overrides) else None

    def load(self: Any, *, config_name: str | None, overrides: list[str], **how: Any) -> DictConfig:
        global _last
        asked = how.get("run_mode") == RunMode.RUN and how.get("from_shell", True)  # not by `_compose`
        found = kept(config_name, overrides) if asked else None
        if found is None:
            return loader(self, config_name, overrides, **how)
        _last = None
        return found

    def get_mode(self: Any, config_name: str, overrides: list[str]) -> Any:
        found = kept(config_name, overrides)
        return main(self, config_name, overrides) if found is None else found.hydra.mode or RunMode.RUN

    classes[0].load_configuration, classes[1].get_mode = load, get_mode


def _resolve_where_needed() -> None:
    """Let Hydra make what the defaults lists refer to only for a list that refers to something: for each file, it is
    else a quarter of composing.
    """
    module: Any = defaults_list  # it has no hook for that
    make = module._create_interpolation_map

    def made(overrides: Any, defaults: list[Any], self_added: bool) -> Any:
        return make(overrides, defaults, self_added) if any(d.is_interpolation() for d in defaults) else None

    module._create_interpolation_map = made


def _parse_in_c() -> None:
    """Let OmegaConf read YAML with libyaml, where PyYAML has it: parsing is else a third of composing."""
    if not yaml.__with_libyaml__:
        return
    from yaml.cyaml import CParser

    def init(self: Any, stream: Any) -> None:
        CParser.__init__(self, stream)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    utils: Any = omegaconf._utils  # it has no hook for that
    loader = type("Loader", (CParser, utils.get_yaml_loader()), {"__init__": init})
    utils.get_yaml_loader = lambda: loader


def further_folders() -> list[str]:
    """The folders of `--config-dir` that Hydra runs with; none outside of its jobs."""
    running: Any = HydraConfig.instance().cfg
    sources = [] if running is None else running.hydra.runtime.config_sources
    return [source.path for source in sources if source.provider.endswith("command-line")]


def group_choices(hydra: Any) -> dict[str, str]:
    """The choice of each of the project's groups, from Hydra's own node; groups without a choice are left out."""
    return {k: str(v) for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}


def drop_unchosen(cfg: DictConfig, choices: dict[str, str]) -> None:
    """`~callbacks`, `~logger`, `~metric`: remove what an experiment still says about nodes that were left out."""

    def left_out(node: object) -> bool:
        return isinstance(node, DictConfig) and "_target_" not in node

    if "metric" not in choices and left_out(cfg.get("metric")):
        cfg.metric = None
    for group in ("callbacks", "logger"):
        if group not in choices:
            for name in [name for name, node in (cfg.get(group) or {}).items() if left_out(node)]:
                del cfg[group][name]


def as_text(override: Override) -> str:
    """An override as it was typed."""
    return override.input_line or ""


def parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of `key=value` arguments.

    Raises:
        ConfigError: one of them is not an override.
    """
    advice = (
        "Arguments look like key=value; values with commas, spaces or braces need quotes of their own within those of "
        "the shell: \"data.train='train-{000000..000099}.tar'\""
    )
    for word in overrides:
        if "=" not in word and not word.startswith("~") and (hint := _meant(word, overrides)):
            raise ConfigError(f"cannot read the argument {word!r}: {hint}")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        which = next((word for word in overrides if not _is_read(word)), "")
        raise ConfigError(f"cannot read the argument {which[:100]!r}: {first_line(error)}. {advice}") from error
    nameless = [o.input_line for o in parsed if not o.key_or_group]
    if nameless:
        raise ConfigError(f"cannot read the argument: {nameless[0]!r} has no key. {advice}")
    return parsed


def _is_read(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True


def _meant(word: str, overrides: list[str]) -> str:
    """What an argument without a key was to be: part of `KEY = VALUE`, the choice of a group, or a folder."""
    if any(each.startswith("=") or each.endswith("=") for each in overrides):
        return "no space stands around the = of key=value"
    groups = [path.name for path in sorted(config_dir().iterdir()) if path.is_dir()]
    if found := [f"{group}={word}" for group in groups if word in choices_of(group)]:
        return f"arguments look like key=value; pass {' or '.join(found)}"
    if Path(word).exists():
        return f"arguments look like key=value; pass run={word} (of train: resume={word})"
    if like := nearest(word, [f"exp={choice}" for choice in choices_of("exp")]):
        return f"arguments look like key=value.{like}"
    return ""


def compose_config(config_name: str, overrides: list[str], folders: list[str] | None = None) -> Composed:
    """Compose a primary configuration as Hydra would.

    Args:
        overrides: `key=value` arguments.
        folders: further configuration folders (`--config-dir`).

    Raises:
        ConfigError: an unknown key or choice, naming the nearest valid one.
    """
    prepare_hydra()
    for folder in folders or []:
        if not Path(folder).is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder ({Path(folder).resolve()})")
    search = [f"hydra.searchpath={written([f'file://{Path(f).resolve()}' for f in folders])}"] if folders else []
    overrides = as_typed(overrides, config_name, folders)
    parsed = parse(overrides)
    for override in parsed:
        _check_choice(override, config_name)
        if override.is_sweep_override() and config_name == "train":
            raise ConfigError(
                f"{override.input_line}: several values are the jobs of a sweep, of python -m neural_rdm.sweep "
                f"{override.input_line} (or --multirun); a list is written [A,B], and a text with commas in quotes"
            )
    typed = frozenset(o.key_or_group for o in parsed)
    try:
        cfg = _compose(config_name, search, overrides)
    except MissingConfigException as error:
        raise _unknown_choice(error) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"a configuration file cannot be read: {' '.join(str(error).split())}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    choices = group_choices(cfg.hydra)
    roots = [config_dir(), *(Path(f).resolve() for f in folders or [])]
    names = [config_name, *(f"{group}/{choice}" for group, choice in choices.items())]
    files = tuple(dict.fromkeys(f for name in reversed(names) for f in _files(name, roots)))
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    drop_unchosen(cfg, choices)
    own(cfg)
    return Composed(cfg, choices, Sources(files, typed))


def _compose(config_name: str, search: list[str], overrides: list[str]) -> DictConfig:
    global _last
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        cfg = compose(config_name, [*search, *overrides], return_hydra_config=True)
        _last = (config_name, overrides, copy.deepcopy(cfg))
        HydraConfig.instance().set_config(cfg)  # for `${hydra:...}` in the configuration
        return cfg


def _files(name: str, roots: list[Path]) -> list[Path]:
    """The files of a choice, and of those that its defaults list builds on (`defaults: [adamw, /study/fig6]`)."""
    found = [root / f"{name}.yaml" for root in roots if (root / f"{name}.yaml").is_file()]
    contents: list[Any] = [OmegaConf.load(f) for f in found if "defaults:" in f.read_text(encoding="utf-8")]
    group = name.rpartition("/")[0]
    entries = [e for content in contents for e in content.get("defaults") or [] if isinstance(e, str) and e != "_self_"]
    parents = [entry[1:] if entry.startswith("/") else f"{group}/{entry}".lstrip("/") for entry in entries]
    return [*found, *(file for parent in parents for file in _files(parent, roots))]


def _check_choice(override: Override, config_name: str) -> None:
    """Refuse a group that is given null, a number, a dictionary or what no file can be called, which Hydra answers with
    a traceback, and a folder of a group in place of the group.
    """
    group = override.key_or_group
    whole, _, folder = group.partition("/")
    if folder and any(choice.startswith(f"{folder}/") for choice in choices_of(whole)):
        raise ConfigError(f"{override.input_line}: {folder} is a folder of {whole}; pass {whole}={folder}/NAME")
    choices, value = choices_of(group), override.value()
    parts = value if isinstance(value, list) else [value]
    named = all(isinstance(part, str) and not _is_no_name(part) for part in parts)
    if choices and not override.is_delete() and not named and not isinstance(value, Sweep):
        argument = of_class(primary.COMMANDS[config_name]).arguments.get(group)
        without = f"; ~{group} leaves it out" if argument and type(None) in members(argument.kind) else ""
        shown = as_text(override)[:100].replace("\0", "\\0")
        raise ConfigError(f"{shown}: no such choice. The choices are {', '.join(choices)}{without}")


def _is_no_name(value: str) -> bool:
    return "\0" in value or max(map(len, os.fsencode(value).split(b"/"))) > 250


def _unknown_choice(error: MissingConfigException) -> ConfigError:
    missing = str(error.missing_cfg_file or "")
    first, _, choice = missing.partition("/")
    own = choices_of(first) if choice else []
    group, choice = (first, choice) if own else missing.rpartition("/")[::2]
    options = sorted({*own, *(error.options or [])})
    if not group:
        return ConfigError(first_line(error))
    return ConfigError(
        f"{group}={choice}: no such choice.{nearest(choice, options)} "
        f"The choices, in {config_dir() / group}, are {', '.join(options)}"
    )
