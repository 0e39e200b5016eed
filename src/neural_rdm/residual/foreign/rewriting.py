"""A `forward` with units in its additions, and every other line as it was."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from neural_rdm.residual.foreign.additions import Addition, Where, where


def rewrite(forward: ast.FunctionDef, units: Iterable[tuple[Addition, str]]) -> None:
    """Turn additions into `added(self.<unit>, stream, f)`, in place, and mark with `entered(self.<unit>, stream)` where
    each stream begins that a branch reads.
    """
    names, marks = {}, {}
    for addition, unit in units:
        names[addition.where] = (addition, unit)
        if (version := addition.version) is not None:
            marks[version.after, unit] = ast.parse(f"{version.name} = entered(self.{unit}, {version.name})").body[0]
    after: dict[Where | None, list[ast.stmt]] = {}
    for (place, _), line in marks.items():
        after.setdefault(place, []).append(line)
    _insert(forward, after)
    start = 1 if ast.get_docstring(forward) is not None else 0
    forward.body[start:start] = after.get(None, [])
    _Rewriter(names).visit(forward)


def _insert(node: ast.AST, after: dict[Where | None, list[ast.stmt]]) -> None:
    for lines in _bodies(node):
        for i in reversed(range(len(lines))):
            _insert(lines[i], after)
            lines[i + 1 : i + 1] = after.get(where(lines[i]), [])


def _bodies(node: ast.AST) -> Iterator[list[ast.stmt]]:
    yield from (lines for name in ("body", "orelse", "finalbody") if (lines := getattr(node, name, None)))


class _Rewriter(ast.NodeTransformer):
    def __init__(self, names: dict[Where, tuple[Addition, str]]) -> None:
        self.names = names

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        found = self.names.get(where(node))
        self.generic_visit(node)
        if found is None:
            return node
        addition, unit = found
        z, f = (node.right, node.left) if addition.swapped else (node.left, node.right)
        return _call(unit, z, f, not addition.swapped)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        found = self.names.get(where(node))
        self.generic_visit(node)
        if found is None:
            return node
        assert isinstance(node.target, ast.Name)
        z = ast.Name(node.target.id, ast.Load())
        # `+=` keeps the type of the stream
        value = ast.Call(ast.Attribute(_call(found[1], z, node.value, True), "type_as", ast.Load()), [z], [])
        return ast.Assign([node.target], value)


def _call(unit: str, z: ast.expr, f: ast.expr, first: bool) -> ast.Call:
    own = ast.Attribute(ast.Name("self", ast.Load()), unit, ast.Load())
    return ast.Call(ast.Name("added", ast.Load()), [own, z, f, ast.Constant(first)], [])
