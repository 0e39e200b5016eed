"""Hydra's grammar for overrides: values written so that it reads them back, and text kept as it was typed."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.overrides_visitor import HydraOverrideVisitor
from hydra.core.override_parser.types import Key, Quote, QuotedString
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import (  # type: ignore[attr-defined]
    CommonTokenStream,
    InputStream,
    OverrideLexer,
)
from hydra.grammar.gen.OverrideParser import OverrideParser

from neural_rdm.config import primary
from neural_rdm.config.check import config_dir
from neural_rdm.config.schema import Text, text_at
from neural_rdm.config.trust import escaped

NUMBERS = {"range", "interval", "int", "float", "bool"}  # functions of the grammar whose arguments are numbers


def written(value: Any) -> str:
    """A plain value as Hydra's grammar for overrides writes it, text in quotes."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def literal(value: Any) -> str:
    """The same of a value that nobody typed, such as one that a file says: its text refers to nothing, also where it
    holds what looks like an interpolation.
    """
    return str(escaped(written(value)))


def folder_name(name: str) -> str:
    """A name that nobody typed, as part of a folder's: Hydra reads what it makes of `hydra.run.dir` once more."""
    return name.replace("${", "_{")


def as_typed(overrides: list[str], command: str, folders: Sequence[str] | None = None) -> list[str]:
    """Put text that the grammar would read as a number, a truth value or null into quotes, where the schema wants text.

    `data.root=2024_01_15` names the folder 2024_01_15 and not 20240115, `pretrained.path=1e5` the file 1e5, and
    `exp=007` that experiment. The value of a key that is `verbatim` in the schema is quoted as a whole. What is quoted
    already stays as it is, and so does what the grammar cannot read.

    Args:
        overrides: `key=value` arguments.
        command: whose primary configuration they are for.
        folders: further configuration folders (`--config-dir`), whose classes may have keys of their own.
    """
    places = (config_dir(), *map(Path, folders or []))
    return [_as_typed(text, command, places) for text in overrides]


def _as_typed(text: str, command: str, folders: tuple[Path, ...]) -> str:
    key, _, value = text.partition("=")
    if not key.strip():
        return text  # whoever parses it says what is wrong
    if (kind := _text_at(command, key.lstrip("+"), folders)) is not None and kind.verbatim:
        return text if value in ("", "???", "null") or value[0] in "'\"" else f"{key}={written(value)}"
    visitor = _Literals(command, folders)
    try:
        lexer = OverrideLexer(InputStream(text))
        lexer.removeErrorListeners()
        parser = OverrideParser(CommonTokenStream(lexer))
        parser.removeErrorListeners()
        OverridesParser.create().parse_rule(text, "override")  # it raises where the two above would only guess
        visitor.visit(parser.override())
    except HydraException:
        return text
    for start, stop in reversed(visitor.found):
        text = text[:start] + written(text[start:stop].strip()) + text[stop:]
    return text


@functools.cache
def _text_at(command: str, key: str, folders: tuple[Path, ...]) -> Text | None:
    """What the schema says of the text at a key; None where it wants something else."""
    if "/" in key or any((folder / key).is_dir() for folder in folders):
        return Text(optional=True)  # the choice of a group
    if key.startswith("hydra."):
        return text_at(HydraConf, key.removeprefix("hydra."), ())
    return text_at(primary.COMMANDS[command], key, folders)


class _Literals(HydraOverrideVisitor):
    """Finds what stands for something else than text where text is wanted.

    Attributes:
        found: start and end of each, in the order of the override.
    """

    def __init__(self, command: str, folders: tuple[Path, ...]) -> None:
        super().__init__(create_functions())
        self.command, self.folders = command, folders
        self.path: list[str] = []
        self.depth = 0  # containers around a value; the elements of a list are never null
        self.found: list[tuple[int, int]] = []

    def visitKey(self, ctx: Any) -> Key:
        """Remember the key: it is visited before its value."""
        key = super().visitKey(ctx)
        self.path = [key.key_or_group]
        return key

    def visitListContainer(self, ctx: Any) -> Any:
        """Look into a list."""
        self.depth += 1
        value = super().visitListContainer(ctx)
        self.depth -= 1
        return value

    def visitDictKeyValuePair(self, ctx: Any) -> Any:
        """Look at a value inside braces under its own, longer key."""
        self.path.append(ctx.getChild(0).getText().strip())
        value = super().visitDictKeyValuePair(ctx)
        self.path.pop()
        return value

    def visitFunction(self, ctx: Any) -> Any:
        """Leave the arguments of functions of numbers alone."""
        before = len(self.found)
        value = super().visitFunction(ctx)
        if ctx.getChild(0).getText() in NUMBERS:
            del self.found[before:]
        return value

    def visitPrimitive(self, ctx: Any) -> Any:
        """Note a single token that is no text for the grammar but is for the schema."""
        tokens = [child.symbol for child in ctx.getChildren() if not self.is_ws(child)]
        kinds = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL, OverrideLexer.NULL)
        text = (
            _text_at(self.command, ".".join(self.path), self.folders)
            if len(tokens) == 1 and tokens[0].type in kinds
            else None
        )
        if text is not None and (tokens[0].type != OverrideLexer.NULL or self.depth or not text.optional):
            self.found.append((ctx.start.start, ctx.stop.stop + 1))  # with spaces around it
        return super().visitPrimitive(ctx)
