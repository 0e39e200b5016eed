"""What the nodes of a configuration may hold: the arguments of what they build, and what else their group has.

Nothing is listed here that a signature says. `fill` gives a composed configuration every default that its files leave
out, so that what is written into a run folder is complete.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from neural_rdm.config import primary_train, reader
from neural_rdm.config.reader import REQUIRED, UNREAD, Argument, Node, Signature
from neural_rdm.core.arguments import VERBATIM, is_opaque, members

#: group -> arguments of its classes that code supplies, and no configuration
SUPPLIED = {"backbone": ("residual",), "strategy": ("devices", "num_nodes"), "logger": ("save_dir",)}
#: the class of a node that chooses a residual rule, whose options are those of the rule
RESIDUAL = "neural_rdm.residual.spec.Residual"
_RULE = "neural_rdm.residual.unit.rule"


@functools.cache
def of_class(kind: type) -> Signature:
    """What a dataclass of `primary`, or of Hydra's own configuration, may hold."""
    hints = typing.get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    return Signature(
        {
            f.name.rstrip("_"): Argument(hints[f.name], REQUIRED if f.default is missing else f.default)
            for f in dataclasses.fields(kind)
        }
    )


def of_node(target: str, group: str, rule: Any = None) -> Signature | None:
    """What a node may hold; None where the source of what it builds does not say.

    Args:
        target: its `_target_`.
        group: the top-level key that it is at or below.
        rule: its `rule`, where it chooses a residual rule.
    """
    read = reader.signature(target)
    if read is None:
        return None
    arguments = {name: a for name, a in read.arguments.items() if name not in SUPPLIED.get(group, ())}
    if group == "data" and "root" in arguments:
        arguments |= of_class(primary_train.Stored).arguments
    found = reader.find(target)
    if found is None or found.name != RESIDUAL:
        return dataclasses.replace(read, arguments=arguments)
    own = reader.signature(rule_class(rule) or "")
    if own is None:
        return dataclasses.replace(read, arguments=arguments)
    arguments |= {name: argument for name, argument in own.arguments.items() if argument.keyword_only}
    return Signature(arguments, own.constraints, own.constants)


@functools.cache
def rules() -> dict[str, str]:
    """The residual rules of this package by name, and their classes: those that are decorated with `@rule(name)`."""
    package = reader.spec("neural_rdm.residual")
    folders = package.submodule_search_locations if package else None
    files = [(file, Path(folder)) for folder in folders or [] for file in sorted(Path(folder).rglob("*.py"))]
    inner = [
        file.relative_to(top).with_suffix("") for file, top in files if "@rule(" in file.read_text(encoding="utf-8")
    ]
    modules = filter(None, (reader.source(".".join(("neural_rdm.residual", *path.parts))) for path in inner))
    return {name: dotted for module in modules for name, dotted in module.decorated(_RULE)}


def rule_class(rule: Any) -> str | None:
    """The class of a residual rule by its name here, or PACKAGE.MODULE.CLASS; None where there is none."""
    return rule if "." in str(rule) else rules().get(str(rule))


def constants(node: Any, group: str) -> dict[str, Any]:
    """The constants of the class that a node builds, and, of a residual rule, those of the rule."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    read = of_node(target, group, node.get("rule")) if isinstance(target, str) else None
    return read.constants if read else {}


def fill(cfg: DictConfig, group: str = "") -> None:
    """Give every node of a configuration the defaults of what it builds, in place, where it has no value of its own."""
    if cfg._is_none() or cfg._is_missing() or cfg._is_interpolation():
        return
    target = cfg.get("_target_")
    signature = of_node(target, group, cfg.get("rule")) if isinstance(target, str) else None
    with open_dict(cfg):
        for name, argument in signature.arguments.items() if signature else ():
            if name not in set(cfg) and argument.default not in (REQUIRED, UNREAD):
                cfg[name] = copy.deepcopy(argument.default)
    for key in cfg:
        child = cfg._get_node(key)
        if isinstance(child, DictConfig) and (group or key != "hydra"):
            fill(child, group or str(key))


@dataclasses.dataclass(frozen=True)
class Text:
    """What an annotation says of a text: whether it may be null instead, and whether it is taken whole."""

    optional: bool = False
    verbatim: bool = False


def text_of(kind: Any) -> Text | None:
    """What an annotation says of the text, or the texts of a list, that it stands for; None for anything else."""
    joined = [member for member in members(kind) if not is_opaque(member) and member not in (None, type(None))]
    if not joined or not all(map(_is_text, joined)):
        return None
    verbatim = any(VERBATIM in typing.get_args(member)[1:] for member in joined)
    return Text(type(None) in members(kind), verbatim)


def _is_text(kind: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated or (origin in (list, tuple, Sequence) and arguments):
        return all(_is_text(a) for a in arguments[:1])
    return all(isinstance(a, str) for a in arguments) if origin is typing.Literal else kind is str


def text_at(kind: type, key: str, folders: tuple[Path, ...]) -> Text | None:
    """What is said of the text, or the texts of a list, at a dotted key; None where something else is wanted.

    A node may be of any class that the files of its group name; a key is text where it is in every class that has it.

    Args:
        kind: the class of `primary`, or of Hydra, that the key starts from.
        folders: of the configuration.
    """
    group, *names = key.split(".")
    first = of_class(kind).arguments.get(group)
    found = [] if first is None else [first.kind]
    for name in names:
        found = [below for kind in found for below in _below(kind, name, group, folders)]
    texts = [text_of(kind) for kind in found]
    if not texts or None in texts:
        return None
    return Text(any(t.optional for t in texts if t), all(t.verbatim for t in texts if t))


def _below(kind: Any, name: str, group: str, folders: tuple[Path, ...]) -> Iterator[Any]:
    """The annotations of what is called `name` inside something, below the node of a group."""
    for member in members(kind):
        if typing.get_origin(member) is dict:
            yield typing.get_args(member)[1]
        elif member is Node:
            arguments = [s.arguments[name] for s in signatures_of(group, folders) if name in s.arguments]
            yield from (argument.kind for argument in arguments)
        elif dataclasses.is_dataclass(member) and name in of_class(member).arguments:  # type: ignore[arg-type]
            yield of_class(member).arguments[name].kind  # type: ignore[arg-type]


@functools.cache
def signatures_of(group: str, folders: tuple[Path, ...]) -> list[Signature]:
    """What the classes hold that the files of a group name."""
    found = [of_node(target, group, rule) for target, rule in sorted(named(group, folders), key=str)]
    return [signature for signature in found if signature is not None]


def targets(folder: Path) -> list[str]:
    """Every `_target_` in the files of a folder of configurations."""
    return sorted({target for group in folder.iterdir() for target, _ in named(group.name, (folder,))})


def named(group: str, folders: tuple[Path, ...]) -> set[tuple[str, str | None]]:
    """(`_target_`, `rule`) of every node in the files of a group."""
    texts = [file.read_text(encoding="utf-8") for folder in folders for file in (folder / group).glob("*.yaml")]
    rule = [re.search(r"(?m)^rule:\s*(\S+)", text) for text in texts]
    targets = [re.findall(r"(?m)^\s*_target_:\s*(\S+)", text) for text in texts]
    return {(target, r[1] if r else None) for names, r in zip(targets, rule, strict=True) for target in names}


def plain(value: Any) -> Any:
    """Lists of a configuration as lists; nodes stay as they are."""
    return OmegaConf.to_container(value) if isinstance(value, ListConfig) else value
