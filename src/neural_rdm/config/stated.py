"""What a class states in its body for the commands to know before torch is loaded: functions of other modules; its
plain values are `schema.constants`.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from neural_rdm.config.reader import find, origin_of
from neural_rdm.core.errors import ConfigError


def function(dotted: str, name: str) -> Callable[..., Any] | None:
    """The function that the class `package.module.Class` has under a name, its own or that of a base.

        class COCO(DataModule):
            check = staticmethod(look_at_coco)

    The function's module is imported, the class's is not: the function stands in another one, which imports no torch.
    None where there is no such function; one in the class's own module is asked when the class is built.

    Raises:
        ConfigError: the function's module cannot be imported.
    """
    found = find(dotted)
    if found is None or not isinstance(found.statement, ast.ClassDef):
        return None
    module, node = found.module, found.statement
    for statement in node.body:
        match statement:
            case ast.FunctionDef(name=own) if own == name:
                return None
            case (
                ast.Assign(targets=[ast.Name(id=own)], value=value)
                | ast.AnnAssign(target=ast.Name(id=own), value=ast.expr() as value)
            ) if own == name:
                inner = value.args[0] if isinstance(value, ast.Call) and value.args else value
                return _imported(find(origin_of(module, inner) or ""), module.name, f"{dotted}.{name}")
            case _:
                pass
    bases = (function(origin_of(module, base) or "", name) for base in node.bases)
    return next((inherited for inherited in bases if inherited is not None), None)


def _imported(found: Any, own_module: str, where: str) -> Callable[..., Any] | None:
    if found is None or found.module.name == own_module or not isinstance(found.statement, ast.FunctionDef):
        return None
    try:
        return getattr(import_module(found.module.name), found.statement.name)
    except ImportError as error:
        raise ConfigError(f"{where}: the module {found.module.name} cannot be imported: {error}") from error


def call(named: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """What a function returns for the values whose keys its parameters bear; None stands for one that is not there."""
    return named(**{name: values.get(name) for name in inspect.signature(named).parameters})
