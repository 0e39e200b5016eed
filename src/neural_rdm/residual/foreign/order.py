"""In which order the blocks of a network run: read from its `forward`, since it may register them in another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import zip_longest

from torch import nn

from neural_rdm.residual.foreign.source import forward_of


def children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, child) of the modules in a module: those that its `forward` names in their order there, then the others;
    of lists that one loop goes through, the blocks by turns.
    """
    found = dict(module.named_children())
    tree = forward_of(type(module))
    for names in [] if tree is None else _named(tree, set(found)):
        together = [(n, found.pop(n)) for n in names if n in found]
        lists = [(n, c) for n, c in together if isinstance(c, nn.ModuleList)]
        if len(together) > 1 and len(lists) == len(together):
            turns = zip_longest(*([(f"{n}.{i}", block) for i, block in enumerate(c)] for n, c in lists))
            yield from (pair for turn in turns for pair in turn if pair is not None)
        else:
            yield from together
    yield from found.items()


def _named(tree: ast.AST, children: set[str]) -> list[list[str]]:
    """The children that a function names, in the order of its lines; those of one loop together."""
    result: list[list[str]] = []

    def note(names: list[str]) -> None:
        new = [n for n in dict.fromkeys(names) if not any(n in group for group in result)]
        if new:
            result.append(new)

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.For) and len(lists := _attributes(node.iter, children)) > 1:
            note(lists)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "self":
                note([child.attr] if child.attr in children else [])
            visit(child)

    visit(tree)
    return result


def _attributes(node: ast.AST, children: set[str]) -> list[str]:
    found = [
        (n.lineno, n.col_offset, n.attr)
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute)
        and isinstance(n.value, ast.Name)
        and n.value.id == "self"
        and n.attr in children
    ]
    return [attr for *_, attr in sorted(found)]
