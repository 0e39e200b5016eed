"""Which classes a configuration may build: those of this project, a short list of others, and what the user named.

A run folder, an adapter or a shared network may come from a stranger, and a node of its `config.yaml` names a class to
be built, with arguments: `{_target_: os.system, ...}` would be a program. So nothing that a file names is imported
unless it is known to be good; the opposite, a list of known evil as Hydra has it, is never complete. What the user's
own command composes (the files of this project, of `--config-dir`, and what is typed) is the user's; what a folder says
is not, and needs `trust=[PACKAGE]`, typed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, OmegaConf

from neural_rdm.core.errors import ConfigError

#: names of classes as `package.Class`: nothing that could lead through a module to what that has imported
GOOD = re.compile(
    r"neural_rdm(\.\w+)+|lightning\.pytorch\.loggers\.[A-Z]\w*Logger|aim\.pytorch_lightning\.AimLogger"
    r"|torch\.(nn|optim)\.[A-Z]\w*|timm\.(layers|models)\.[A-Z]\w*|diffusers\.(Autoencoder\w+|[A-Z]\w*(Model|Scheduler))"
)
#: `${`, but for one behind a backslash that is not itself behind one
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")
#: names of groups, which Hydra's own are none of
GROUP = re.compile(r"(?!hydra\b)[A-Za-z_]\w*(/\w+)*")
#: package names, for this process and those that it starts; set by `trust`
VARIABLE = "NEURAL_RDM_TRUST"
_own: set[str] = set()


def trust(packages: Iterable[str]) -> None:
    """Let classes of these top-level packages be built, whoever names them, in this process and those that it starts.

    Raises:
        ConfigError: what is no name of a package.
    """
    for name in packages:
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)):
            raise ConfigError(f"trust=[{name}]: give names of packages, such as trust=[mixer]")
    os.environ[VARIABLE] = ",".join(sorted({*_packages(), *map(str, packages)}))


def own(config: Any) -> None:
    """Let be built what this configuration names: the user composed it."""
    _own.update(name for _, name in named(config))


def own_folder(folder: str | Path) -> None:
    """Let be built what the files of a folder of the user's name (`--config-dir`)."""
    for path in Path(folder).rglob("*.yaml"):
        try:
            own(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # whoever chooses it is told


def check_trusted(config: Any, where: str) -> None:
    """Refuse a configuration that names a class which is not known to be good.

    Args:
        config: of a run folder, or one of its nodes.
        where: the folder, for the message.

    Raises:
        ConfigError: naming the class, its key, and what to type.
    """
    for key, name in named(config):
        if name in _own or GOOD.fullmatch(name) or name.partition(".")[0] in _packages():
            continue
        package = name.partition(".")[0]
        raise ConfigError(
            f"{where} builds {name} ({key}), which is no class of this project: that would run code which the folder "
            f"chooses. If you know it, type trust=[{package}] (in Python: trust=['{package}']), or give the "
            "--config-dir that it belongs to"
        )


def check_file(config: Any, where: str) -> None:
    """The same for a whole configuration that was read from a folder, which must not hold interpolations either, nor
    choices that are no names: they are typed again where the run goes on, and could say anything to Hydra.

    Raises:
        ConfigError: as `check_trusted`; an interpolation, which a file that a run wrote never holds: it could read the
            environment; or a choice of what is no group, or of a file outside of it.
    """
    check_trusted(config, where)
    if not isinstance(config, Container):
        return
    plain = OmegaConf.to_container(config, resolve=False)
    for key, value in _values(plain, ""):
        if isinstance(value, str) and INTERPOLATION.search(value):
            raise ConfigError(f"{where} holds an interpolation ({key}: {value}), which no run writes")
    choices = plain.get("choices") if isinstance(plain, Mapping) else None
    for group, choice in choices.items() if isinstance(choices, Mapping) else [("choices", choices)]:
        named = isinstance(choice, str) and not choice.startswith("/") and ".." not in choice.split("/")
        if choices is not None and not (named and GROUP.fullmatch(str(group))):
            raise ConfigError(f"{where} holds a choice that is no name ({group}: {choice}), which no run writes")


def escaped(value: Any) -> Any:
    """A value, or what a part of a configuration stands for, as a configuration has to hold it so that reading it gives
    this value: its texts refer to nothing, also where they hold what looks like an interpolation.
    """
    if isinstance(value, Container):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {key: escaped(child) for key, child in value.items()}
    if isinstance(value, list):
        return [escaped(child) for child in value]
    return re.sub(r"(\\*)\$\{", lambda f: f[1] * 2 + r"\${", value) if isinstance(value, str) else value


def resolve(cfg: DictConfig) -> None:
    """Put what the interpolations of a configuration stand for in their place.

    OmegaConf's own `resolve` stores text behind a backslash without it: who reads it next would read the environment.

    Raises:
        OmegaConfBaseException: one of them stands for nothing.
    """
    for key, value in escaped(cfg).items():
        cfg[key] = value


def _packages() -> set[str]:
    return {name for name in os.environ.get(VARIABLE, "").split(",") if name}


def named(config: Any) -> Iterator[tuple[str, str]]:
    """Every class that a configuration names, with its key: targets, and rules of other packages; as a class of
    `torchscript`, a program that is not the published one but has the hash which the configuration says itself.
    """
    plain = OmegaConf.to_container(config, resolve=False) if isinstance(config, Container) else config
    for key, value in _values(plain, ""):
        last = key.rpartition(".")[2]
        if last == "_target_" or (last == "rule" and isinstance(value, str) and "." in value):
            yield key, str(value)
    for key, node in _nodes(plain, ""):
        sha256 = node.get("features_sha256") or node.get("sha256")
        if sha256 and "i3d" in (node.get("features"), str(node.get("_target_")).rpartition(".")[2].lower()):
            yield key, f"torchscript.{sha256}"


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping | list):
        yield key, value
    for name, child in _children(value, key):
        yield from _values(child, name)


def _nodes(value: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield key, value
    for name, child in _children(value, key):
        yield from _nodes(child, name)


def _children(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    inside = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for name, child in inside:
        yield f"{key}.{name}" if key else str(name), child
