"""`neural-rdm COMMAND ...`, which is `python -m neural_rdm.COMMAND ...`; alone, the list of the commands."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from neural_rdm import __version__
from neural_rdm.core.arguments import nearest

HELP = """neural-rdm COMMAND [KEY=VALUE ...]

{commands}

neural-rdm COMMAND --help explains one of them; python -m neural_rdm.COMMAND is the same. A first run:
  neural-rdm train exp=digits_gated

Completion of commands, groups and choices in bash (in zsh first: autoload -U bashcompinit && bashcompinit):
  complete -o nospace -o default -C 'neural-rdm --complete' neural-rdm
"""


def commands() -> dict[str, str]:
    """Each command and what it does, from the first line of its file; nothing is imported."""
    found = {}
    for file in sorted(Path(__file__).parent.glob("*.py")):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if doc.startswith(f"`python -m neural_rdm.{file.stem}`: "):
            found[file.stem] = doc.splitlines()[0].partition(": ")[2].rstrip(".")
    return found


def main() -> None:
    """Run the command that the first argument names, with the others as its own.

    Exit codes are those of the command; 2 for one that there is not.
    """
    name, rest = (sys.argv[1:2] or ["--help"])[0], sys.argv[2:]
    known = commands()
    if name in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {command:<9} {does}" for command, does in known.items())), end="")
        return
    if name == "--version":
        print(__version__)
        return
    if name == "--complete":
        from neural_rdm.cli.completion import complete  # here, because it alone reads the configuration

        print("\n".join(complete(known)))
        return
    if name not in known:
        said = f"there is no command {name!r}.{nearest(name, known)}"
        print(f"error: {said} The commands are {', '.join(known)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[1:] = rest
    runpy.run_module(f"neural_rdm.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
