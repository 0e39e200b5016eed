"""The source of a block's `forward`, and a class of its own for a rewritten one.

Nothing but the installed source of diffusers is read, and nothing that comes with a checkpoint is run.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
import textwrap
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

PACKAGE = "diffusers."


def forward_of(kind: Any) -> ast.FunctionDef | None:
    """The `forward` of a class of diffusers as a tree without annotations; None for another package's class."""
    return _forward_of(kind)


@cache
def _forward_of(kind: Any) -> ast.FunctionDef | None:
    home = defining(kind)
    if not home.__module__.startswith(PACKAGE):
        return None
    tree = parsed(home.__dict__["forward"])
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
    tree.returns = None
    return tree


def defining(kind: type[nn.Module]) -> type:
    """The class whose `forward` a class has, or had before it was rewritten."""
    return next(base for base in kind.__mro__ if "forward" in base.__dict__ and "rewritten" not in base.__dict__)


def subclass(kind: type[nn.Module], mixin: type, forward: ast.FunctionDef, **names: Any) -> type[nn.Module]:
    """A subclass of the same name with `forward` as its own, in whose source `names` stand for these objects.

    diffusers finds classes of blocks by name (to compile, to offload, to shard them): so it must be the same.
    """
    home = defining(kind)
    factory = ast.parse(f"def factory(__class__, {', '.join(names)}):\n    return forward")
    function = factory.body[0]
    assert isinstance(function, ast.FunctionDef)
    function.body.insert(0, forward)
    text = ast.unparse(ast.fix_missing_locations(factory))
    file = f"<{home.__module__}.{home.__qualname__} with units {abs(hash(text)):x}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # for tracebacks
    code = compile(text, file, "exec", dont_inherit=True)
    inner = next(c for c in code.co_consts if isinstance(c, CodeType))
    new = FunctionType(inner, vars(sys.modules[home.__module__]))(home, *names.values())
    members = {"forward": new, "rewritten": True, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, mixin), members)


def parsed(function: Callable[..., Any]) -> ast.FunctionDef:
    """The source of a function as a tree."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree
