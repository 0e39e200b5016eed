"""Rooms, floors and imports of the package, and the part of `docs/architecture.md` that is drawn from them.

python -m tests.architecture      (writes it; `test_architecture_page` compares)
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.helpers import ROOT

PACKAGE = ROOT / "src" / "neural_rdm"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- rooms -->\n", "<!-- end of rooms -->"
FLOORS = {
    "core": 0, "config": 1, "media": 1, "residual": 1, "backbones": 2, "diffusion": 2, "metrics": 2, "conditioning": 3,
    "dynamics": 3, "latents": 3, "surgery": 3, "data": 4, "pipelines": 4, "reports": 4, "evaluation": 5, "training": 6,
    "runs": 7, "cli": 8,
}  # fmt: skip
COMMANDS = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
TOP = max(FLOORS.values()) + 1  # of the commands
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    """The folder of a file below the package; a command, at its root, is a room of the top floor by its own name."""
    parts = file.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else file.stem


def floor(name: str) -> int:
    """The floor of a room or a command."""
    return FLOORS.get(name, TOP)


def imports(file: Path, top_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions and under TYPE_CHECKING too unless `top_only`."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            yield node.lineno, node.module or ""
            # `from neural_rdm import x` and `from neural_rdm.core import x` may import a module by that name
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def uses() -> dict[str, set[str]]:
    """Room -> the rooms that it imports; all commands are one room, `commands`."""
    found: dict[str, set[str]] = {name: set() for name in [*FLOORS, "commands"]}
    for file in FILES:
        here = room(file)
        for _, module in imports(file):
            parts = module.split(".")
            if parts[0] == "neural_rdm" and len(parts) > 1 and parts[1] in FLOORS and here != "__init__":
                found[here if here in FLOORS else "commands"].add(parts[1])
    return {name: rooms - {name} for name, rooms in found.items()}


def drawn() -> str:
    """A table of what each room is for, and a diagram of their imports."""
    found = uses()

    def reached(start: str) -> set[str]:
        return found[start] | {far for near in found[start] for far in reached(near)}

    lines = ["| floor | room | what it is for | begin with |", "|---|---|---|---|"]
    folders = [p for p in sorted(PACKAGE.rglob("__init__.py")) if p.parent != PACKAGE]
    for init in sorted(folders, key=lambda p: (FLOORS[room(p)], str(p))):
        name = init.parent.relative_to(PACKAGE).as_posix()
        doc = " ".join((ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or "").split())
        said = re.split(r"\. ", doc.removeprefix(f"Floor {FLOORS[room(init)]}: ") + " ")[0].rstrip(".")
        first = re.search(r"Begin with `(\w+)", doc)
        begin = f"`{first[1]}.py`" if first else ""
        lines.append(f"| {FLOORS[room(init)]} | `{name}/` | {said[0].upper()}{said[1:]} | {begin} |")
    lines.append(f"| {TOP} | the commands | {', '.join(f'`{c}`' for c in sorted(COMMANDS))} | `train.py` |")
    lines += [
        "",
        "Who imports whom today. What a longer way implies is not drawn, and nothing is forbidden by that.",
    ]
    lines += ["", "```mermaid", "flowchart TD"]
    for name in sorted(found, key=lambda n: (-(TOP if n == "commands" else FLOORS[n]), n)):
        direct = found[name] - {far for near in found[name] for far in reached(near)}
        if direct:
            others = " & ".join(sorted(direct, key=lambda n: (-FLOORS[n], n)))
            lines.append(f"  {name} --> {others}")
    lines.append("```")
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The page with what is drawn in its place."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + "\n" + drawn() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
