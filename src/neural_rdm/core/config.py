"""Where the configuration lives and whether it can work: checked before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neural_rdm.core import primary, schema
from neural_rdm.core.config_rules import check_across
from neural_rdm.core.errors import ConfigError


def config_dir() -> Path:
    """The folder of the Hydra groups: inside the installed package, or at the top of the checkout.

    Raises:
        ConfigError: neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parents[1] / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"the configuration folder is missing: looked in {package / 'configs'} and {package.parents[1] / 'configs'}"
    )


def nearest(word: str, choices: Iterable[str]) -> str:
    """` Did you mean X?` for the choice most like `word`, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {found[0]}?" if found else ""


def flat_keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of a configuration, inner nodes included."""
    if OmegaConf.is_dict(cfg) and not cfg._is_none() and not cfg._is_missing():
        for key in cfg:
            yield f"{prefix}{key}"
            if not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key):
                yield from flat_keys(cfg[key], f"{prefix}{key}.")


@dataclasses.dataclass(frozen=True)
class Text:
    """What the schema says of a text: whether it may be null instead, and whether it is taken whole."""

    optional: bool = False
    verbatim: bool = False


def text_at(kind: type, key: str) -> Text | None:
    """What the schema says of the text, or the texts of a list, at a dotted key; None where it wants something else.

    A node may be of any class that the files of its group name; a key is text where it is in every class that has it.

    Args:
        kind: the class of the schema that the key starts from.
    """
    found: list[tuple[Any, Any]] = [(kind, {})]
    names = key.split(".")
    for name in names:
        found = [below for annotation, _ in found for below in _below(annotation, name, names[0])]
    plain = [_without_none(annotation) for annotation, _ in found]
    if not plain or not all(t is str or (typing.get_origin(t) is list and typing.get_args(t) == (str,)) for t in plain):
        return None
    optional = any(t is not annotation for t, (annotation, _) in zip(plain, found, strict=True))
    return Text(optional, all(metadata.get("verbatim", False) for _, metadata in found))


def _below(annotation: Any, name: str, group: str) -> Iterator[tuple[Any, Any]]:
    """(annotation, metadata) of what is called `name` inside something of a type, below the node of a group."""
    annotation = _without_none(annotation)
    if typing.get_origin(annotation) is dict:
        yield typing.get_args(annotation)[1], {}
    for kind in classes_of(group) if annotation is Any else [annotation]:
        if dataclasses.is_dataclass(kind) and (definition := kind.__dataclass_fields__.get(name)) is not None:
            yield _hints(kind)[name], definition.metadata


@functools.cache
def classes_of(group: str) -> list[type]:
    """What the schema knows of the classes that the files of a group name."""
    line = re.compile(r"(?m)^\s*_target_:\s*(\S+)")
    texts = [file.read_text(encoding="utf-8") for file in sorted((config_dir() / group).glob("*.yaml"))]
    named = dict.fromkeys(target for text in texts for target in line.findall(text))
    return list(dict.fromkeys(schema.TARGETS[target] for target in named if target in schema.TARGETS))


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _without_none(annotation: Any) -> Any:
    others = [t for t in typing.get_args(annotation) if t is not type(None)]
    return others[0] if typing.get_origin(annotation) is typing.Union and len(others) == 1 else annotation


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the values of a configuration came from, to say where a wrong one stands."""

    files: tuple[Path, ...] = ()
    typed: frozenset[str] = frozenset()  # keys that were overridden on the command line

    def where(self, key: str) -> str:
        """` (command line; FILE, FILE)`: the places that hold the last part of `key`."""
        key = re.sub(r"\[\d+\]$", "", key)  # an entry of a list
        last = re.escape(key.rpartition(".")[2])
        line = re.compile(rf"(?m)^\s*['\"]?{last}['\"]?\s*:")
        places = ["command line"] if key in self.typed else []
        places += [str(p) for p in self.files if last and p.is_file() and line.search(p.read_text(encoding="utf-8"))]
        return f" ({'; '.join(places)})" if places else ""


def validate(cfg: DictConfig, command: str = "train", sources: Sources = Sources()) -> None:  # noqa: B008 (frozen)
    """Check every key, type, range and the rules between keys of a command's composed configuration.

    Args:
        cfg: the composed configuration; its interpolations are resolved in place.
        command: whose configuration it is.
        sources: where its values came from.

    Raises:
        ConfigError: the first problem found, naming the key, what is allowed, the nearest valid name and the file.
    """
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        key = _unresolved(cfg)
        raise ConfigError(f"configuration key {key}: {_first_line(error)}{sources.where(key)}") from error
    _check(cfg, primary.COMMANDS[command], "", sources)
    if command == "train":
        check_across(cfg, sources)


def _unresolved(cfg: DictConfig) -> str:
    """The first key whose interpolation leads nowhere; OmegaConf's own error names only where it leads."""
    for key in flat_keys(cfg):
        try:
            OmegaConf.select(cfg, key)
        except OmegaConfBaseException:
            return key
    return "(in a list)"


def _check_node(node: Any, key: str, optional: bool, sources: Sources) -> None:
    if node is None and optional:
        return
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"configuration key {key} must be a group choice or a node with a `_target_`, not {node!r}"
            f"{sources.where(key)}"
        )
    target = node["_target_"]
    if target.endswith(".Residual") and target in schema.TARGETS:
        _check_rule(node, key, sources)
    elif target in schema.TARGETS:
        _check(node, schema.TARGETS[target], key, sources)
    elif target.split(".")[0] == "neural_rdm":
        raise ConfigError(
            f"configuration key {key}._target_: no such class {target}.{nearest(target, schema.TARGETS)}"
            f"{sources.where(f'{key}._target_')}"
        )


def _check_rule(node: DictConfig, key: str, sources: Sources) -> None:
    """A residual rule, whose options are its own."""
    name = node.get("rule")
    if name in schema.RULES:
        _check(node, schema.RULES[name], key, sources)
    elif "." not in str(name):  # no class of another package
        raise ConfigError(
            f"configuration key {key}.rule={name} is not one of {', '.join(schema.RULES)}."
            f"{nearest(str(name), schema.RULES)}{sources.where(f'{key}.rule')}"
        )


def _check(node: DictConfig, kind: type, key: str, sources: Sources) -> None:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in map(str, node):
        if name not in fields:
            raise ConfigError(
                f"unknown configuration key {prefix}{name}.{nearest(name, fields)}{sources.where(f'{prefix}{name}')}"
            )
    for name in fields:
        if name not in set(node):  # `in node` is False for a key without a value
            raise ConfigError(f"missing configuration key {prefix}{name}{sources.where(key)}")
    try:
        checked: Any = OmegaConf.merge(OmegaConf.structured(kind), node)
    except OmegaConfBaseException as error:
        inner = error.full_key or ""
        definition = fields.get(re.split(r"[.\[]", inner)[0])
        problem = _first_line(error).rstrip(".")
        if definition is not None and not dataclasses.is_dataclass(_plain_type(definition)):
            problem += "; it takes " + re.sub(r"^Optional\[(.*)\]$", r"\1 or null", str(definition.type))
        raise ConfigError(f"configuration key {prefix}{inner}: {problem}{sources.where(f'{prefix}{inner}')}") from error
    for name, definition in fields.items():
        if OmegaConf.is_missing(checked, name):
            raise ConfigError(f"configuration key {prefix}{name} has no value; pass {prefix}{name}=...")
        value = checked[name]
        if (number := _no_text(value, node[name])) is not None:
            raise ConfigError(
                f"configuration key {prefix}{name}: {number!r} is text in this place, and a YAML file needs quotes "
                f'around text that looks like a number, a date or a truth value: {name}: "..."'
                f"{sources.where(f'{prefix}{name}')}"
            )
        if dataclasses.is_dataclass(_plain_type(definition)):
            _check(node[name], _plain_type(definition), f"{prefix}{name}", sources)
        elif definition.metadata.get("node"):
            _check_node(node[name], f"{prefix}{name}", definition.metadata["optional"], sources)
        elif definition.metadata.get("nodes"):
            for inner, child in (node[name] or {}).items():
                _check_node(child, f"{prefix}{name}.{inner}", True, sources)
        problem = _out_of_range(value, definition.metadata)
        if problem:
            raise ConfigError(f"configuration key {prefix}{name}={value} {problem}{sources.where(f'{prefix}{name}')}")
    if hasattr(kind, "check"):
        for name, problem in OmegaConf.to_object(checked).check():  # type: ignore[union-attr]
            raise ConfigError(f"configuration key {prefix}{name}: {problem}{sources.where(f'{prefix}{name}')}")


def _no_text(checked: Any, given: Any) -> Any:
    """What was given as a number or truth value where text is wanted: how it was typed is lost. None: nothing was."""
    if isinstance(checked, ListConfig):
        return next((n for c, g in zip(checked, given, strict=True) if (n := _no_text(c, g)) is not None), None)
    return given if isinstance(checked, str) and not isinstance(given, str) else None


def _plain_type(definition: dataclasses.Field) -> Any:
    return getattr(schema, definition.type, None) if isinstance(definition.type, str) else definition.type


def _out_of_range(value: Any, limits: Any) -> str:
    if value is None:
        return ""
    if "choices" in limits and value not in limits["choices"]:
        return (
            f"is not one of {', '.join(map(str, limits['choices']))}.{nearest(str(value), map(str, limits['choices']))}"
        )
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        return f"must be {limits['meaning']}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if "above" in limits and not value > limits["above"]:
        return f"must be above {limits['above']}"
    if "low" in limits and "high" in limits and not limits["low"] <= value <= limits["high"]:
        return f"must be between {limits['low']} and {limits['high']}"
    if "low" in limits and not value >= limits["low"]:
        return f"must be at least {limits['low']}"
    return ""


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def as_plain(cfg: DictConfig | ListConfig) -> Any:
    """A resolved configuration as plain dicts and lists."""
    return OmegaConf.to_container(cfg, resolve=True)
