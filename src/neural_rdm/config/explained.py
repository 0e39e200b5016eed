"""What each key means: what it may be, its default, and the words of the docstring or of the file that it stands in.

`--help GROUP` of every command and the reference of the documentation are written of this. Nothing is imported to find
it out (see `config.reader`), and nothing is said here that is not said where the key is.
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import math
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config import primary, primary_train, reader, schema
from neural_rdm.config.check import choices_of, config_dir
from neural_rdm.config.compose import Composed
from neural_rdm.config.reader import REQUIRED, UNREAD, Argument
from neural_rdm.core.arguments import members, nearest, told
from neural_rdm.core.errors import ConfigError

#: what `--help` takes for the keys of the command that belong to no group
OWN = "keys"


@dataclass(frozen=True)
class Key:
    """A key of the configuration.

    Attributes:
        name: dotted, as it is typed.
        kind: what it may be: `int above 0`.
        default: as YAML writes it; None where it must be given.
        meaning: in words; empty where nobody says.
    """

    name: str
    kind: str
    default: str | None
    meaning: str


def of_target(target: str, group: str, rule: str | None = None) -> list[Key]:
    """The keys of a node that builds something.

    Args:
        target: its `_target_`.
        group: where it is: `backbone`, `callbacks.ema`.
        rule: its `rule`, where it chooses a residual rule.
    """
    signature = schema.of_node(target, group.partition(".")[0], rule)
    if signature is None:
        return []
    said = comments(primary_train.Stored.__name__, Path(primary_train.__file__)) | documented(target)
    said |= documented(schema.rule_class(rule) or "")
    return [_key(f"{group}.{name}", argument, said.get(name, "")) for name, argument in signature.arguments.items()]


def of_command(command: str) -> list[Key]:
    """The keys of a command that are no choice of a group, dotted where they stand below one that is no node."""
    folder = config_dir()
    file = folder / f"{command}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    defaults = {key.name: key.default for name in values for key in _below(values[name], name, {})}
    keys = _of_class(primary.COMMANDS[command], "", comments("", file), folder)
    return [dataclasses.replace(key, default=defaults.get(key.name)) for key in keys]


def documented(dotted: str) -> dict[str, str]:
    """What the docstrings of a class or function, and of its base classes, say of its arguments under `Args:`."""
    found = reader.find(dotted)
    if found is None or not isinstance(found.statement, (ast.ClassDef, ast.FunctionDef)):
        return {}
    module, node = found
    said: dict[str, str] = {}
    inner: list[Any] = []
    if isinstance(node, ast.ClassDef):
        for base in reversed(node.bases):
            said |= documented(reader.origin_of(module, base) or "")
        inner = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    for documented_node in (node, *inner):
        section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", ast.get_docstring(documented_node) or "", re.M)
        for names, text in re.findall(r"^ {4}(\w[\w, ]*): ?(.*(?:\n {8}.*)*)", section[1] if section else "", re.M):
            there = documented(_pointed(module, text))
            said |= {name: there.get(name, " ".join(text.split())) for name in re.split(r",\s*", names)}
    return said


def _pointed(module: reader.Module, text: str) -> str:
    """The class whose docstring says what a name means, where a text is only ``see `THAT_CLASS` ``; else empty."""
    match = re.match(r"see `(?:\w+\.)*(\w+)`", text)
    return "" if match is None else reader.origin_of(module, ast.Name(match[1])) or ""


def first_sentence(dotted: str) -> str:
    """The first paragraph of a class's or function's docstring; empty where there is none."""
    found = reader.find(dotted)
    if found is None or not isinstance(found.statement, (ast.ClassDef, ast.FunctionDef)):
        return ""
    return " ".join((ast.get_docstring(found.statement) or "").partition("\n\n")[0].split())


def comments(within: str, file: Path) -> dict[str, str]:
    """The comments above the keys of a YAML file, by dotted key, or above the fields of a class of a Python file. A
    comment at the head of a YAML file is the file's own.

    Args:
        within: the class; empty for a YAML file.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    if not within:
        lines = [*itertools.dropwhile(lambda line: line.startswith("#"), lines)]
    else:
        start = next(i for i, line in enumerate(lines) if line.startswith(f"class {within}"))
        lines = [line.strip().replace("#:", "#") for line in lines[start + 1 :]]
    said: dict[str, str] = {}
    above: list[str] = []
    path: list[tuple[int, str]] = []
    for line in lines:
        match = re.match(r"( *)(?:# ?(.*)|(\w+):.*)$", line)
        if match is None or (match[2] is None and match[3] is None):
            above = []
        elif match[3] is None:
            above.append(match[2])
        else:
            path = [(indent, name) for indent, name in path if indent < len(match[1])]
            path.append((len(match[1]), match[3]))
            name = ".".join(name for _, name in path)
            if above and name not in said:
                said[name] = " ".join(above)
            above = []
    return said


def help_text(command: str, composed: Composed, topic: str, folders: Sequence[str] = ()) -> str:
    """What `--help TOPIC` prints: the keys of a group as it is composed, those of the command, or a single key.

    Args:
        folders: those of `--config-dir`, which have choices of their own.

    Raises:
        ConfigError: there is nothing of this name.
    """
    cfg, group = composed.cfg, topic.partition(".")[0]
    if topic == OWN:
        own = [name for name in dict.fromkeys(key.name.partition(".")[0] for key in of_command(command)) if name in cfg]
        shown = [key for name in own if not (config_dir() / name).is_dir() for key in below(command, cfg, name)]
        return "".join(map(_paragraph, shown))
    if topic not in cfg and (choices := _wholes(topic)):
        return choices
    if group not in cfg or group == "hydra":
        names = [name for name in map(str, cfg) if name != "hydra"]
        raise ConfigError(
            f"--help {topic}: there is no group or key of that name.{nearest(topic, names)} There are "
            f"{', '.join(names)}, and {OWN}: those of no group"
        )
    keys = [key for key in below(command, cfg, group) if f"{key.name}.".startswith(f"{topic}.")]
    if not keys:
        known = [key.name for key in below(command, cfg, group)]
        raise ConfigError(
            f"--help {topic}: there is no such key.{nearest(topic, known)} {group} has {', '.join(known)}"
        )
    return "".join([*_head(composed, topic, folders), *map(_paragraph, keys)])


def _wholes(group: str) -> str:
    """The choices of a group that has no keys of its own (`exp`, `debug`), each with the words at its head."""
    told = []
    for name in choices_of(group):
        lines = (config_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        head = itertools.takewhile(lambda line: line.startswith("#"), lines)
        words = " ".join(line[1:].strip() for line in head if "@package" not in line)
        told.append(f"{group}={name}\n{_wrapped(words, '    ')}\n")
    return "".join(told)


def below(command: str, cfg: DictConfig, group: str) -> Iterator[Key]:
    """The keys of a group, as it is composed, in their order; each `default` is the value that it has now."""
    known = {key.name: key for key in [*of_command(command), *of_files(group)]}
    yield from _below(OmegaConf.to_container(cfg)[group], group, known)  # type: ignore[call-overload,index]


def _below(value: Any, at: str, known: dict[str, Key]) -> Iterator[Key]:
    if not isinstance(value, dict):
        key = known.get(at, Key(at, "", None, ""))
        yield dataclasses.replace(key, default=_written(value))
        return
    target = value.get("_target_")
    own = of_target(target, at, value.get("rule")) if isinstance(target, str) else []
    known = known | {key.name: key for key in own}
    for name in value:
        if name != "_target_":
            yield from _below(value[name], f"{at}.{name}", known)


def of_files(group: str) -> list[Key]:
    """What the files of a group say above the keys of nodes that build nothing."""
    said: dict[str, str] = {}
    for file in sorted((config_dir() / group).glob("*.yaml")):
        said = comments("", file) | said
    fields = schema.of_class(primary_train.Trainer).arguments if group == "trainer" else {}
    names = dict.fromkeys([*said, *fields])
    return [_key(f"{group}.{name}", fields.get(name, Argument()), said.get(name, "")) for name in names]


def _of_class(kind: type, prefix: str, said: dict[str, str], folder: Path) -> Iterator[Key]:
    for name, argument in schema.of_class(kind).arguments.items():
        inner, at = argument.kind, f"{prefix}{name}"
        if (folder / at).is_dir() and type(None) not in members(inner):
            continue  # whose keys are those of its choice
        if isinstance(inner, type) and hasattr(inner, "__dataclass_fields__"):
            yield from _of_class(inner, f"{at}.", said, folder)
        else:
            yield _key(at, argument, said.get(at, ""))


def _key(name: str, argument: Argument, meaning: str) -> Key:
    given = argument.default is not REQUIRED and argument.default is not UNREAD
    return Key(name, told(argument.kind), _written(argument.default) if given else None, meaning)


def _written(value: Any) -> str:
    """A value as it is typed: `null`, `true`, `[1, 2]`."""
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _head(composed: Composed, topic: str, folders: Sequence[str]) -> Iterator[str]:
    """What a group is as it is composed, and what else it may be; nothing for a key."""
    places = [place / topic for place in (config_dir(), *map(Path, folders)) if (place / topic).is_dir()]
    if not places:
        return
    node = composed.cfg[topic] if isinstance(composed.cfg[topic], DictConfig) else {}
    means = first_sentence(schema.rule_class(node.get("rule")) or node.get("_target_") or "")
    yield f"{topic}={composed.choices.get(topic, 'null')}  {means}".strip() + "\n"
    choices = sorted({file.stem for place in places for file in place.glob("*.yaml")})
    yield _wrapped(f"choices: {', '.join(choices)}", "  ") + "\n\n"


def _paragraph(key: Key) -> str:
    head = (
        f"{key.name}" + ("" if key.default is None else f" = {key.default}") + (f"   ({key.kind})" if key.kind else "")
    )
    return f"{head}\n" + (f"{_wrapped(key.meaning, '    ')}\n" if key.meaning else "")


def _wrapped(text: str, indent: str) -> str:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
