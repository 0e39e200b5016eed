"""Where a block adds to its stream: an analysis of the source of its `forward`, by structure and never by line.

The stream is an argument of `forward` (`hidden_states`), however it is named on the way: under an alias (`residual`),
cast, reshaped, cut, or joined with another. An *addition* is an assignment or a return whose value is `stream + f` or
`f + stream`, where f comes out of a module that read this stream:

    attn_output = self.attn(self.norm1(hidden_states))
    hidden_states = hidden_states + gate * attn_output        # an addition: stream hidden_states, branch attn

Positions, masks, conditions and sums inside a norm are none: nothing that they add has read the stream, or their sum is
not on it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

#: what leaves the stream the stream, in another type or shape
CASTS = {"to", "float", "type_as", "contiguous", "clone", "squeeze", "unsqueeze", "flatten", "unflatten", "reshape",
         "view", "clip", "bfloat16", "half", "chunk", "split"}  # fmt: skip
#: what moves the channels elsewhere
MOVES = {"permute", "transpose", "movedim", "mT", "T"}
CUTS = {"chunk", "split"}
#: what a tensor says of itself, and not of what is in it
FACTS = {"shape", "dtype", "device", "ndim", "size", "dim"}
JOINS = {"cat", "concat", "concatenate"}
#: a branch that runs only where an IP adapter is loaded: no gate, for it would never get a gradient
OPTIONAL = "ip_"


@dataclass(frozen=True)
class End:
    """A module call in whose output a value ends: `self.attn(...)[1]` is path ("attn",), index 1.

    Args:
        path: the attributes that lead to the module.
        index: the part of its output, where that is a tuple.
        reads: the arguments that its inputs depend on.
        inputs: the calls in which its inputs end.
        scaled: a factor stands behind it.
        opaque: so does something that is not linear, or another summand.
    """

    path: tuple[str, ...]
    index: int | None = None
    reads: frozenset[str] = frozenset()
    inputs: tuple[End, ...] = ()
    scaled: bool = False
    opaque: bool = False


Where: TypeAlias = tuple[int, int, int | None, int | None]


@dataclass(frozen=True)
class Version:
    """A stream between two writes: the name it has after the statement at `after` (None: the beginning)."""

    name: str
    after: Where | None


@dataclass(frozen=True)
class Value:
    """What is known of a value.

    Args:
        stream: the argument whose stream it is; None for anything else.
        version: where that stream was written last.
        reads: the arguments that it depends on.
        ends: the module calls that it may come out of.
        moved: its channels have been moved.
        cut: it is a list of parts of one tensor.
        items: its parts, for a tuple.
    """

    stream: str | None = None
    version: Version | None = None
    reads: frozenset[str] = frozenset()
    ends: tuple[End, ...] = ()
    moved: bool = False
    cut: bool = False
    items: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Addition:
    """One residual addition.

    Args:
        where: the node `stream + f`.
        text: its source.
        swapped: it is written `f + stream`.
        stream: the argument whose stream is written.
        version: where the stream was written before; None inside a chain of sums.
        branch: f.
    """

    where: Where
    text: str
    swapped: bool
    stream: str
    version: Version | None
    branch: Value


Names: TypeAlias = dict[str, Value]
Known: TypeAlias = Callable[[ast.expr], bool | None]


def additions(forward: ast.FunctionDef, known: Known) -> list[Addition]:
    """The additions of a `forward`, in the order of its lines; `known` is the truth of a condition, where it is settled
    already: the other way is not looked at.
    """
    return _read(forward, known, 1).found


def returned(function: ast.FunctionDef, known: Known, skip: int = 1) -> list[Value]:
    """What a function returns, on every way that leads to a return; of the `skip` arguments before its first tensor the
    last is the module whose attributes it calls.
    """
    return _read(function, known, skip).returns


def _read(function: ast.FunctionDef, known: Known, skip: int) -> _Reader:
    arguments = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    owner, arguments = arguments[skip - 1], arguments[skip:]
    names = {a: Value(a, Version(a, None), frozenset({a})) for a in arguments}
    reader = _Reader(owner, set(arguments), known)
    reader.body(function.body, names)
    return reader


@dataclass
class _Reader:
    """Walks statements in order and follows what every name stands for."""

    owner: str
    arguments: set[str]
    known: Known
    found: list[Addition] = field(default_factory=list)
    returns: list[Value] = field(default_factory=list)
    begins: int = 0

    def body(self, statements: list[ast.stmt], names: Names) -> bool:
        """Follow `statements`; False where they end in a return or a raise."""
        for statement in statements:
            match statement:
                case ast.Assign(targets=[target], value=value):
                    self.assign(target, self.top(value, names), statement, names)
                case ast.AnnAssign(target=target, value=ast.expr() as value):
                    self.assign(target, self.top(value, names), statement, names)
                case ast.AugAssign(target=ast.Name(id=name), op=ast.Add(), value=value):
                    left = names.get(name, Value())
                    self.assign(ast.Name(name), self.add(statement, left, self.value(value, names)), statement, names)
                case ast.If(test=test, body=then, orelse=otherwise):
                    ways, settled = [], self.known(test)
                    for way, lines in ((True, then), (False, otherwise)):
                        own = dict(names)
                        if settled is not (not way) and self.body(lines, own):
                            ways.append(own)
                    if not ways:
                        return False
                    names.update(self.joined(ways, statement))
                case ast.For(body=lines) | ast.With(body=lines) | ast.Try(body=lines):
                    self.body(lines, names)
                case ast.Return(value=value):
                    if value is not None:
                        self.returns.append(self.top(value, names))
                    return False
                case ast.Raise():
                    return False
        return True

    def joined(self, ways: list[Names], statement: ast.stmt) -> Names:
        """What is known behind an `if`: what both of its ways agree on."""
        result = {}
        for name in set().union(*ways):
            values = [way[name] for way in ways if name in way]
            first = values[0]
            if any(v != first for v in values):
                streams = {v.stream for v in values}
                first = replace(_mixed(*values), items=())
                if len(streams) == 1 and None not in streams:
                    first = replace(first, stream=streams.pop(), version=Version(name, where(statement)), ends=())
                elif name in self.arguments:
                    first = self.begun(name, first, statement)
            result[name] = first
        return result

    def begun(self, name: str, value: Value, statement: ast.stmt) -> Value:
        """A stream that begins on the way: a value that takes the name of an argument."""
        self.begins += 1
        stream = f"{name}#{self.begins}"
        return replace(value, stream=stream, version=Version(name, where(statement)), reads=value.reads | {stream})

    def assign(self, target: ast.expr, value: Value, statement: ast.stmt, names: Names) -> None:
        match target:
            case ast.Name(id=name):
                if not value.stream and value.reads and not value.items and name in self.arguments:
                    value = self.begun(name, value, statement)
                if value.stream and value.version is None:
                    value = replace(value, version=Version(name, where(statement)))
                names[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                for i, part in enumerate(targets):
                    self.assign(part, _item(value, i, len(targets)), statement, names)

    def top(self, node: ast.expr, names: Names) -> Value:
        """The value of an expression that is assigned or returned: the one place where sums are additions."""
        match node:
            case ast.Call(func=ast.Attribute(value=inner, attr=attr)) if attr in CASTS and self.is_value(inner, names):
                return replace(self.top(inner, names), items=(), cut=attr in CUTS)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self.add(node, self.top(left, names), self.top(right, names))
            case ast.BinOp(op=ast.Mult(), left=ast.BinOp(op=ast.Add()) as left, right=right):  # (z + f) * mask
                total, mask = self.top(left, names), self.value(right, names)
                if total.stream and not mask.ends:
                    return total
                return _behind(_mixed(total, mask), scaled=True)
            case ast.Tuple(elts=parts):
                return _tuple([self.top(part, names) for part in parts])
        return self.value(node, names)

    def add(self, node: ast.BinOp | ast.AugAssign, left: Value, right: Value) -> Value:
        for z, f, swapped in ((left, right, False), (right, left, True)):
            if z.stream is None or not any(z.stream in end.reads for end in f.ends):
                continue
            if not isinstance(node, ast.AugAssign) and _name(node.left if swapped else node.right).startswith(OPTIONAL):
                break
            self.found.append(Addition(where(node), ast.unparse(node), swapped, z.stream, z.version, f))
            begun = _behind(_mixed(z, f), opaque=True).ends if "#" in z.stream else ()
            return Value(z.stream, None, z.reads, begun)
        mixed = _behind(_mixed(left, right), opaque=True)
        # a position, a mask, a condition: the stream goes on
        return replace(mixed, stream=left.stream or right.stream)

    def value(self, node: ast.expr, names: Names) -> Value:
        """What is known of an expression in which nothing is an addition."""
        match node:
            case ast.Name(id=name):
                return names.get(name, Value())
            case ast.Attribute(attr=attr) if attr in FACTS:
                return Value()
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return _tuple([self.value(part, names) for part in parts])
            case ast.Subscript(value=inner, slice=ast.Constant(value=int(i))):
                return _item(self.value(inner, names), i, None)
            case ast.Subscript(value=inner):
                return replace(self.value(inner, names), version=None, items=())
            case ast.IfExp(body=a, orelse=b):
                return _mixed(self.value(a, names), self.value(b, names))
            case ast.BinOp(op=ast.Mult() | ast.Div(), left=a, right=b):
                return _behind(_mixed(self.value(a, names), self.value(b, names)), scaled=True)
            case ast.Call():
                return self.call(node, names)
        inside = [self.value(child, names) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)]
        return _behind(_mixed(*inside), opaque=True)

    def call(self, node: ast.Call, names: Names) -> Value:
        inputs = [*node.args, *(k.value for k in node.keywords)]
        arguments = [self.value(n.value if isinstance(n, ast.Starred) else n, names) for n in inputs]
        path = self.path(node.func)
        if isinstance(node.func, ast.Attribute) and (path is None or node.func.attr in CASTS | MOVES):
            inner, attr = self.value(node.func.value, names), node.func.attr
            if attr in CASTS | MOVES and arguments and not self.is_value(node.func.value, names):
                inner = arguments[0]  # torch.chunk(x, 2)
            if attr in CASTS:
                return replace(inner, version=None, items=(), cut=inner.cut or attr in CUTS)
            if attr in MOVES:
                return replace(inner, stream=None, moved=True, items=())
            if attr in JOINS and arguments and arguments[0].items:
                parts = arguments[0].items
                if all(p.stream for p in parts):
                    joint = "joint" if len({p.stream for p in parts}) > 1 else parts[0].stream
                    reads = frozenset().union(*(p.reads for p in parts)) | {str(joint)}
                    return Value(joint, None, reads)
            return _behind(_mixed(inner, *arguments), opaque=True)
        mixed = _mixed(*arguments)
        if path is None:  # a function: of a module that it is given, or of values
            given = [p for n in inputs if (p := self.path(n)) is not None]
            if not given:
                return _behind(mixed, opaque=True)
            path = given[0]
        return Value(reads=mixed.reads, ends=(End(path, None, mixed.reads, mixed.ends),)) if mixed.reads else Value()

    def path(self, node: ast.expr) -> tuple[str, ...] | None:
        """The attributes of the module that an expression like `self.a.b[0]` leads through; None for another."""
        match node:
            case ast.Name(id=name) if name == self.owner:
                return ()
            case ast.Attribute(value=inner, attr=attr):
                outer = self.path(inner)
                return None if outer is None else (*outer, attr)
            case ast.Subscript(value=inner, slice=ast.Constant(value=int(i))):
                outer = self.path(inner)
                return None if outer is None else (*outer, str(i))
        return None

    def is_value(self, node: ast.expr, names: Names) -> bool:
        """Whether it is a tensor with methods, and not the module `torch`."""
        return self.path(node) is None and not (isinstance(node, ast.Name) and node.id not in names)


def where(node: ast.expr | ast.stmt) -> Where:
    """Where a node stands."""
    return node.lineno, node.col_offset, node.end_lineno, node.end_col_offset


def _mixed(*values: Value) -> Value:
    """What is known of something made of `values`: no stream, and all that they depend on."""
    ends = tuple(dict.fromkeys(end for v in values for end in v.ends))
    return Value(
        reads=frozenset().union(*(v.reads for v in values)),
        ends=ends,
        moved=any(v.moved for v in values),
        cut=any(v.cut for v in values),
    )


def _behind(value: Value, **what: Any) -> Value:
    """The same with something behind the modules that it comes out of."""
    return replace(value, ends=tuple(replace(end, **what) for end in value.ends))


def _tuple(parts: list[Value]) -> Value:
    return replace(_mixed(*parts), items=tuple(parts))


def _item(value: Value, index: int, count: int | None) -> Value:
    """A part of a tuple, of the outputs of a module, or of a stream that is cut."""
    if value.items and index < len(value.items):
        return value.items[index]
    if value.stream:
        return replace(value, version=None, items=())
    if value.ends:
        first, *rest = value.ends
        if first.index is None and not value.cut:
            first = replace(first, index=index)
        return replace(value, ends=(first, *rest), items=(), cut=False)
    return replace(value, items=())


def _name(node: ast.expr) -> str:
    return next((n.id for n in ast.walk(node) if isinstance(n, ast.Name)), "")
