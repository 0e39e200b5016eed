"""`docs/architecture.md` speaks of the code that there is."""

from __future__ import annotations

import ast
import re

from tests.architecture import COMMANDS, FLOORS, PACKAGE, PAGE, written
from tests.helpers import ROOT

#: `path.py: Name.method, other`, in backticks or in the drawing
NAMED = re.compile(r"([a-z_0-9]+(?:/[a-z_0-9]+)*\.py): ((?:[A-Za-z_]+(?:\.[A-Za-z_]+)?)(?:, (?=[A-Z])[A-Za-z_]+)*)")
PATH = re.compile(r"`((?:[a-z_0-9]+/)+(?:[a-z_0-9]+\.py)?)`")


def names(tree: ast.Module) -> set[str]:
    """What a module and its classes define."""
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_drawing_is_that_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "python -m tests.architecture draws it anew"


def test_every_name_is_where_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    mentioned = [(m[1], name) for m in NAMED.finditer(text) for name in m[2].split(", ")]
    assert len(mentioned) > 40
    wrong = []
    for path, name in mentioned:
        file = PACKAGE / path
        if not file.is_file() or name not in names(ast.parse(file.read_text(encoding="utf-8"))):
            wrong.append(f"{path}: {name}")
    assert wrong == []


def test_every_path_is_there() -> None:
    paths = set(PATH.findall(PAGE.read_text(encoding="utf-8")))
    assert "data/layouts.py" in paths
    assert [p for p in paths if not (PACKAGE / p).exists() and not (ROOT / p).exists()] == []


def test_every_room_says_what_it_is_for_and_where_to_begin() -> None:
    """Its floor first; then a sentence that names the file to begin with."""
    silent = []
    for name, level in FLOORS.items():
        doc = ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))) or ""
        begun = re.search(r"Begin\s+with\s+`([a-z_]+)[`.]", doc)
        if not doc.startswith(f"Floor {level}: ") or begun is None:
            silent.append(name)
        elif not (PACKAGE / name / f"{begun[1]}.py").is_file():
            silent.append(f"{name}: begin with {begun[1]}")
    assert silent == []
    assert "train" in COMMANDS
