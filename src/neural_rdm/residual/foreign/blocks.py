"""Units in the blocks of a network that others wrote: which there are, how wide, what name, behind which layer."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neural_rdm.residual.foreign.additions import Addition, End, Value, additions, returned
from neural_rdm.residual.foreign.rewriting import rewrite
from neural_rdm.residual.foreign.source import PACKAGE, forward_of, parsed, subclass
from neural_rdm.residual.taps import open_branch, tap
from neural_rdm.residual.unit import Unit

#: streams that have a name of their own in reports; any other is called as the argument is
STREAMS = {"encoder_hidden_states": "text", "context": "text"}
AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: what a factor passes through as it is
LINEAR = (nn.Dropout, nn.Identity)


@dataclass(frozen=True)
class Found:
    """A unit that a block is to have.

    Args:
        name: the attribute of the block that holds it, `attn_unit`.
        additions: those of the source that it stands in: more than one where a stream is written in parts.
        layer: the last layer of its branch.
        exact: whether the branch is linear in that layer's output.
        gated: whether something is multiplied behind that layer: the block's own gate.
        axis: of the channels of its stream.
    """

    name: str
    additions: tuple[Addition, ...]
    layer: nn.Module
    exact: bool
    gated: bool
    axis: int

    @property
    def width(self) -> int:
        """Channels of the branch's output."""
        return int(self.layer.get_parameter("weight").shape[0])

    @property
    def role(self) -> str:
        """See `Place.role`."""
        words = self.name.removesuffix("_unit")
        if "cross" in words or "attn2" in words or "_to_" in words:
            return "cross"
        return "attn" if "att" in words else "conv" if "conv" in words else "mlp"


class Last(NamedTuple):
    """The layer that a branch ends in.

    Args:
        layer: it has a weight [D, ...].
        exact: what the branch gives is linear in the layer's output.
        scaled: a factor stands behind the layer inside of the module that holds it.
    """

    layer: nn.Module
    exact: bool
    scaled: bool = False


class Written:
    """Mixed into the class of a block whose additions have been rewritten."""

    #: what it holds, by attribute: set by `swap`
    found: dict[str, Found]

    @property
    def own_gates(self) -> list[str]:
        """The units whose branch is multiplied by a gate of the block's own."""
        return [name for name, found in self.found.items() if found.gated]

    def slots(self) -> list[tuple[str, tuple[int, int, int, None, str]]]:
        """The units of this block and their sizes, in the order of its lines."""
        return [(n, (f.width, f.width, f.axis, None, f.role)) for n, f in self.found.items()]

    def last_layers(self) -> list[tuple[Unit, nn.Module]]:
        """Every unit with the last affine layer of its branch, where alpha can go into it."""
        return [(getattr(self, name), found.layer) for name, found in self.found.items() if found.exact]


def units_of(module: nn.Module) -> list[Found]:
    """The units that a block of diffusers is to have; none for a module that adds to no stream.

    Raises:
        ValueError: an addition whose branch is of unknown width, in words that follow the block's name.
    """
    kind = type(module)
    tree = forward_of(kind)
    if tree is None:
        return []
    first = tree.args.args[1].arg if len(tree.args.args) > 1 else ""
    grouped: dict[tuple[str, tuple[str, ...], int | None], list[Addition]] = {}
    for addition in additions(tree, lambda test: _known(test, module)):
        head = _naming(module, addition)
        if head is not None:
            grouped.setdefault((addition.stream, head.path, head.index), []).append(addition)
    result: list[Found] = []
    for (stream, path, _), group in grouped.items():
        argument = stream.partition("#")[0]  # a stream that begins on the way has a number behind it
        branch = group[0].branch
        ends = [end for end in branch.ends if stream in end.reads]
        end, found = next(
            ((end, found) for end in ends if (found := _last(module, end, stream)) is not None), (None, None)
        )
        if found is None or end is None:
            raise ValueError(f"adds {group[0].text!r}, a branch of unknown width")
        label = "" if argument == first else STREAMS.get(argument, argument.removesuffix("_hidden_states"))
        words = "_".join(path)
        if label and not words.startswith(label):
            words = f"{label}_{words}"
        taken = {found.name for found in result}
        name = next(n for n in (f"{words}{i or ''}_unit" for i in range(len(grouped) + 1)) if n not in taken)
        axis = 1 if isinstance(_at(module, end.path), AFFINE[1:]) and not branch.moved else -1
        gated = end.scaled or end.opaque or found.scaled
        result.append(Found(name, tuple(group), found.layer, found.exact and not end.opaque, gated, axis))
    return result


@cache
def _rewritten(kind: Any, names: tuple[tuple[Addition, str], ...]) -> type[nn.Module]:
    """The subclass of a class of blocks in which additions have units of these names."""
    tree = copy.deepcopy(forward_of(kind))
    assert tree is not None
    rewrite(tree, names)
    return subclass(kind, Written, tree, added=added, entered=entered)


def swap(module: nn.Module, found: list[Found]) -> None:
    """Make a block a gated one, in place; the units themselves are still to be set."""
    kind: Any = type(module)
    new = _rewritten(kind, tuple((addition, unit.name) for unit in found for addition in unit.additions))
    module.__class__ = new
    module.__dict__["found"] = {unit.name: replace(unit, additions=()) for unit in found}


def unswap(module: nn.Module) -> None:
    """Make a gated block diffusers' own again, without its units."""
    assert isinstance(module, Written)
    for name in module.__dict__.pop("found"):
        module._modules.pop(name, None)
    module.__class__ = type(module).__mro__[1]


def added(unit: Unit, z: Tensor, f: Tensor, first: bool) -> Tensor:
    """What stands for `z + f` in a rewritten forward, or for `f + z`.

    Args:
        unit: the unit.
        z: the stream.
        f: the branch.
        first: z is written first. A sum has the memory layout of what is written first, and the layout decides in which
            order what comes next adds up: to the bit, it must be the same.
    """
    if z.shape[unit.channel_axis] not in (unit.dim, f.shape[unit.channel_axis]):
        raise ValueError(f"a stream of shape {tuple(z.shape)} does not fit a unit of {unit.dim} channels")
    if not first and z.shape == f.shape and z.stride() != f.stride():
        z = torch.empty_like(f, dtype=z.dtype).copy_(z)
    out = unit(z, lambda _: f)
    assert isinstance(out, Tensor)
    return out


def entered(unit: Unit, z: Tensor) -> Tensor:
    """Marks where the stream begins that a unit's branch reads and to which it adds: the probe's first row, and its
    third, which `Unit.forward` completes.
    """
    unit.loan = None
    if unit.probe is None or z is None:
        return z
    z = tap(z, unit.probe[0])
    if len(unit.probe) > 2:
        z, unit.loan = open_branch(z, unit.probe[2])
    return z


# -- the last layer of a branch


def _last(module: nn.Module, end: End, stream: str | None = None) -> Last | None:
    """The layer whose output a module call ends in; None also for a call that does not read `stream`."""
    if stream is not None and stream not in end.reads:
        return None
    called = _at(module, end.path)
    if isinstance(called, nn.Module):
        if (found := _of_output(called, end.index)) is not None:
            return found
        if end.index and "Norm" in type(called).__name__:
            return None  # a gate that a norm hands out beside what it has normed
    inputs = [(i, found) for i in end.inputs if (found := _last(module, i, stream)) is not None]
    if not inputs:
        return None
    first, found = inputs[0]
    return Last(found.layer, found.exact and isinstance(called, LINEAR), found.scaled or first.scaled)


def _of_output(module: nn.Module, index: int | None) -> Last | None:
    """The layer that a module's output, or a part of it, comes out of."""
    if isinstance(module, AFFINE):
        return Last(module, True)
    if "Norm" in type(module).__name__:
        weight = getattr(module, "weight", None)
        return Last(module, _multiplies(module)) if isinstance(weight, nn.Parameter) and index is None else None
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        layers = [m for m in module if not isinstance(m, LINEAR)]
        return _of_output(layers[-1], index) if layers else None
    inexact = None
    for value in _returned(module):
        part = value.items[index] if value.items and index is not None and index < len(value.items) else value
        for end in part.ends:
            if (found := _last(module, end)) is not None:
                if found.exact and not end.opaque:
                    return found._replace(scaled=found.scaled or end.scaled)
                inexact = inexact or Last(found.layer, False)
    net, to_out = getattr(module, "net", None), getattr(module, "to_out", None)
    if isinstance(net, nn.ModuleList):
        return _of_output(net, None)  # a feed-forward of diffusers goes through its layers in a loop
    if isinstance(to_out, nn.Module) and (found := _of_output(to_out, None)):
        return Last(found.layer, False)  # of the right width, at least
    return inexact


def _returned(module: nn.Module) -> list[Value]:
    """What a module's `forward` returns, or else the processor that it leaves its work to."""
    processor: Any = getattr(module, "processor", None)
    tree: ast.FunctionDef | None
    if type(processor).__module__.startswith(PACKAGE):
        tree, skip = parsed(type(processor).__call__), 2
    elif (tree := forward_of(type(module))) is not None:
        skip = 1
    else:
        return []
    owner = tree.args.args[skip - 1].arg
    return returned(tree, lambda test: _known(test, module, owner), skip)


def _multiplies(norm: nn.Module) -> bool:
    """Whether a norm multiplies by its weight itself (some add 1 to it)."""
    return isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) or type(norm).__name__ in ("RMSNorm", "FP32LayerNorm")


def _naming(module: nn.Module, addition: Addition) -> End | None:
    """The module call that gives a branch its name: its last one that is no norm, dropout or activation."""

    def search(ends: tuple[End, ...]) -> Iterator[End]:
        for end in ends:
            called = _at(module, end.path)
            if addition.stream not in end.reads:
                continue
            if isinstance(called, nn.Module) and _works(called):
                yield end
            else:
                yield from search(end.inputs)

    return next(search(addition.branch.ends), None)


def _works(module: nn.Module) -> bool:
    """Whether a module is a layer that a branch may be named after."""
    return "Norm" not in type(module).__name__ and any(True for _ in module.parameters())


def _at(module: Any, path: tuple[str, ...]) -> Any:
    """The module, or whatever else, that a path leads to; None where it leads nowhere."""
    for name in path:
        if isinstance(module, nn.Module) or not name.isdigit():
            module = getattr(module, name, None)
        else:
            module = module[int(name)]
    return module


# -- conditions that are settled once a module exists


def _known(test: ast.expr, module: nn.Module, owner: str = "self") -> bool | None:
    """The truth of a condition on the module's own attributes; None where it depends on a call's arguments."""
    try:
        return bool(_value(test, module, owner))
    except LookupError:
        return None


def _value(node: ast.expr, module: nn.Module, owner: str) -> Any:
    """The value of an expression of attributes and constants.

    Raises:
        LookupError: it depends on more.
    """
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Attribute(value=ast.Name(id=name), attr=attr) if name == owner and hasattr(module, attr):
            return getattr(module, attr)
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, module, owner) for part in parts]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return not _value(inner, module, owner)
        case ast.BoolOp(op=op, values=parts):
            stop = isinstance(op, ast.Or)
            known = [_known(part, module, owner) for part in parts]
            if stop in known:
                return stop
            if None not in known:
                return not stop
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _COMPARE[type(op)](_value(left, module, owner), _value(right, module, owner))
    raise LookupError


_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.Eq: lambda a, b: bool(a == b),
    ast.NotEq: lambda a, b: bool(a != b),
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
