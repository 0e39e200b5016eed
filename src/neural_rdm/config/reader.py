"""What a class or function can be built with, read from its source: nothing of it is imported, torch least of all.

Modules are found as Python would find them, their syntax trees are read, and annotations become the same objects that
the class itself sees when it is built (see `core.arguments`). It works for any package: re-exports and base classes
are followed across modules. What cannot be read (compiled modules, names made at run time) is let through.
"""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import importlib.util
import sys
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NamedTuple

from neural_rdm.core.arguments import Constraint

#: the modules whose names are taken for what they are
_REAL = ("builtins", "typing", "typing_extensions", "collections.abc", "neural_rdm.core.arguments")
_CHECKED = "neural_rdm.core.arguments.checked"


class Unread:
    """A default that the source does not state as a plain value."""

    def __repr__(self) -> str:
        return "..."


UNREAD, REQUIRED = Unread(), Unread()


@dataclasses.dataclass(frozen=True)
class Argument:
    """Annotation and default of an argument: `REQUIRED` where there is none, `UNREAD` where it is no plain value."""

    kind: Any = Any
    default: Any = REQUIRED
    keyword_only: bool = False


@dataclasses.dataclass(frozen=True)
class Signature:
    """What something can be built with.

    Attributes:
        arguments: by name, in order.
        constraints: those of `core.arguments.checked`.
        constants: the plain values in the body of the class, and of those that it is derived from.
        is_open: whether it takes further keywords.
    """

    arguments: dict[str, Argument]
    constraints: tuple[Constraint, ...] = ()
    constants: dict[str, Any] = dataclasses.field(default_factory=dict)
    is_open: bool = False


class Node(dict[str, Any]):
    """In an annotation: something built of a node of the configuration, which names its class by `_target_`."""


class Foreign:
    """In an annotation: a class that is not of this package, about whose values nothing is known."""


class Module:
    """The source of a module.

    Attributes:
        statements: what stands behind each name at its top level; an imported name's is the dotted name of its origin.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.statements: dict[str, ast.AST | str] = dict(self._named(self.tree.body))

    def _named(self, body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST | str]]:
        for node in body:
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield node.name, node
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    yield name, value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    yield name, value
                case ast.Import():
                    for alias in node.names:
                        name = alias.asname or alias.name.partition(".")[0]
                        yield name, alias.name if alias.asname else name
                case ast.ImportFrom():
                    above = self.package.rsplit(".", node.level - 1)[0] if node.level else ""
                    origin = ".".join(filter(None, (above, node.module)))
                    yield from ((a.asname or a.name, f"{origin}.{a.name}") for a in node.names)
                case ast.If() | ast.Try():
                    yield from self._named(node.body)
                case _:
                    pass

    def decorated(self, decorator: str) -> Iterator[tuple[str, str]]:
        """(text, dotted name) of every class at its top level under `@decorator(text)`."""
        for node in self.tree.body:
            if not isinstance(node, ast.ClassDef):
                continue
            for call in node.decorator_list:
                if isinstance(call, ast.Call) and origin_of(self, call.func) == decorator:
                    yield ast.literal_eval(call.args[0]), f"{self.name}.{node.name}"


@functools.cache
def spec(name: str) -> ModuleSpec | None:
    """Where a module is; unlike `importlib.util.find_spec` it does not import the packages around it."""
    parent, _, _ = name.rpartition(".")
    try:
        if not parent:
            return importlib.util.find_spec(name)
        around = spec(parent)
        return around and PathFinder.find_spec(name, around.submodule_search_locations or [])
    except (ImportError, ValueError):
        return None


@functools.cache
def source(name: str) -> Module | None:
    """The source of a module; None where it has none that can be read."""
    found = spec(name)
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        return None
    try:
        return Module(name, Path(found.origin))
    except (OSError, SyntaxError, ValueError):
        return None


class Found(NamedTuple):
    """A class, function or value, and the module that it stands in."""

    module: Module
    statement: ast.AST

    @property
    def name(self) -> str:
        """Its dotted name there."""
        return f"{self.module.name}.{getattr(self.statement, 'name', '')}"


@functools.cache
def find(dotted: str) -> Found | None:
    """What a dotted name stands for, re-exports followed; None where no source says so."""
    where, _, name = dotted.rpartition(".")
    module = source(where) if where else None
    statement = module and module.statements.get(name)
    if isinstance(statement, str):
        return find(statement) if statement != dotted else None
    return Found(module, statement) if module and isinstance(statement, ast.AST) else None


def is_missing(dotted: str) -> bool:
    """Whether there is no class `package.module.Class` for certain: no module, or a module that does not mention it."""
    where, _, name = dotted.rpartition(".")
    module = source(where)
    if module is None:
        return spec(where) is None
    return not {name, "*", "__getattr__"} & set(module.statements)


def beside(dotted: str) -> list[str]:
    """The classes of the module of `package.module.Class`."""
    module = source(dotted.rpartition(".")[0])
    found = module.statements.items() if module else ()
    return [f"{module.name}.{name}" for name, node in found if module and isinstance(node, ast.ClassDef)]


@functools.cache
def signature(dotted: str) -> Signature | None:
    """What the class or function `package.module.Name` is built with; None where its source does not tell."""
    found = find(dotted)
    if found is None:
        return None
    module, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(module, node, tuple(_constraints(module, node)))
    if not isinstance(node, ast.ClassDef):
        return None
    names = [origin_of(module, base) or "" for base in node.bases]
    # what a third package says is asked for only where the class itself says nothing
    packages = ("neural_rdm", module.name.partition(".")[0])
    bases = [signature(n) for n in names if n.partition(".")[0] in packages or _own(module, node, []) is None]
    known = [base for base in bases if base is not None]
    constants = {name: value for base in reversed(known) for name, value in base.constants.items()}
    constants |= {name: value for name, value in _constants(module, node.body) if value is not UNREAD}
    own = _own(module, node, known)
    if own is None and known:
        own = known[0]
    elif own is None:
        own = Signature({}, is_open=bool(node.bases))
    inherited = [constraint for base in known for constraint in base.constraints]
    constraints = dict.fromkeys([*inherited, *_constraints(module, node)])
    return dataclasses.replace(own, constraints=tuple(constraints), constants=constants)


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _own(module: Module, node: ast.ClassDef, bases: list[Signature]) -> Signature | None:
    """What a class says itself; None where it leaves it to what it is derived from."""
    constructor = _constructor(node)
    if constructor is not None:
        return _of_function(module, constructor, method=True)
    if not any(ast.unparse(d).partition("(")[0] in ("dataclass", "dataclasses.dataclass") for d in node.decorator_list):
        return None
    arguments = {name: argument for base in bases for name, argument in base.arguments.items()}
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            kind = _kind(module, field.annotation)
            if kind is not typing.ClassVar:
                default = REQUIRED if field.value is None else _plain(module, field.value)
                arguments[field.target.id] = Argument(kind, default)
    return Signature(arguments)


def _of_function(
    module: Module, node: ast.FunctionDef, constraints: tuple[Constraint, ...] = (), method: bool = False
) -> Signature:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(positional, defaults, strict=True)][int(method) :]
    arguments = {}
    for listed, keyword_only in (
        (pairs, False),
        ([*zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)], True),
    ):
        for argument, default in listed:
            kind = Any if argument.annotation is None else _kind(module, argument.annotation)
            value = REQUIRED if default is None else _plain(module, default)
            arguments[argument.arg] = Argument(kind, value, keyword_only)
    return Signature(arguments, constraints, is_open=node.args.kwarg is not None)


def _constants(module: Module, body: list[ast.stmt]) -> Iterator[tuple[str, Any]]:
    for node in body:
        match node:
            case ast.Assign(targets=targets, value=value):
                yield from ((target.id, _plain(module, value)) for target in targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                yield name, _plain(module, value)
            case _:
                pass


def _constraints(module: Module, node: ast.ClassDef | ast.FunctionDef) -> Iterator[Constraint]:
    """Those of this package, whose rooms keep them in modules without torch; others are asked when it is built."""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call) and origin_of(module, decorator.func) == _CHECKED:
            for constraint in decorator.args:
                found = find(origin_of(module, constraint) or "")
                if found is not None and found.name.startswith("neural_rdm."):
                    where, _, name = found.name.rpartition(".")
                    yield getattr(import_module(where), name)


def origin_of(module: Module, node: ast.AST) -> str | None:
    """The dotted name that an expression is in its own module."""
    if isinstance(node, ast.Subscript):  # a generic base class
        node = node.value
    first, *rest = ast.unparse(node).split(".")
    statement = module.statements.get(first)
    if isinstance(statement, str):
        return ".".join([statement, *rest])
    if statement is not None:
        return ".".join([module.name, first, *rest])
    return f"builtins.{first}" if hasattr(builtins, first) and not rest else None


def _plain(module: Module, node: ast.AST) -> Any:
    """The plain value of an expression, or of the constant that it names."""
    try:
        value = ast.literal_eval(node)
        return [*value] if isinstance(value, tuple) else value
    except (ValueError, TypeError, SyntaxError, MemoryError):
        found = find(origin_of(module, node) or "") if isinstance(node, (ast.Name, ast.Attribute)) else None
        return UNREAD if found is None or found.statement is node else _plain(*found)


def _kind(module: Module, node: ast.AST) -> Any:
    """The annotation that an expression is: `Any` for what cannot be read."""
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=str(text)):
            return _kind(module, ast.parse(text, mode="eval").body)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return typing.Union[_kind(module, left), _kind(module, right)]  # noqa: UP007 (types of any sort)
        case ast.Subscript(value=value, slice=inner):
            return _subscripted(module, _kind(module, value), inner.elts if isinstance(inner, ast.Tuple) else [inner])
        case ast.Name() | ast.Attribute():
            return _named(origin_of(module, node))
        case _:
            return Any


def _subscripted(module: Module, base: Any, inner: list[ast.expr]) -> Any:
    if base is typing.Literal:
        return typing.Literal[tuple(map(ast.literal_eval, inner))]
    if base is typing.Annotated:
        metadata = [found for node in inner[1:] if (found := _metadata(module, node)) is not None]
        kind = _kind(module, inner[0])
        return typing.Annotated[(kind, *metadata)] if metadata else kind
    if base is typing.ClassVar or base is typing.Any or (isinstance(base, type) and issubclass(base, (Node, Foreign))):
        return base
    ellipsis = [isinstance(node, ast.Constant) and node.value is ... for node in inner]
    kinds = tuple(... if e else _kind(module, node) for e, node in zip(ellipsis, inner, strict=True))
    try:
        return base[kinds if len(kinds) > 1 else kinds[0]]
    except TypeError:
        return Any


def _metadata(module: Module, node: ast.expr) -> Any:
    """What `Annotated` adds, where it is of `core.arguments`."""
    call = node if isinstance(node, ast.Call) else None
    origin = origin_of(module, call.func if call else node) or ""
    if origin.rpartition(".")[0] != "neural_rdm.core.arguments":
        return None
    named: Callable[..., Any] = getattr(import_module("neural_rdm.core.arguments"), origin.rpartition(".")[2])
    if call is None:
        return named
    return named(*map(ast.literal_eval, call.args))


def _named(origin: str | None) -> Any:
    where, _, name = (origin or "").rpartition(".")
    if where in _REAL:
        return getattr(import_module(where), name, Any)
    found = None if where.partition(".")[0] in sys.stdlib_module_names else find(origin or "")
    if found is None:
        return Foreign
    if isinstance(found.statement, ast.ClassDef):
        return Node if found.name.startswith("neural_rdm.") else Foreign
    return _kind(found.module, found.statement)
