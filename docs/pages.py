"""What mkdocs asks while it builds the site: the reference of keys and of the Python names, which are written from the
source, and the files outside of docs/ that pages link to, which go with them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import neural_rdm
from neural_rdm.config import explained, primary, schema
from neural_rdm.config.check import config_dir

ROOT = Path(__file__).parents[1]
#: where files of the repository outside of docs/ stand on the site
ELSEWHERE = "repository"
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are written here, and what pages link to outside of docs/."""
    for name, text in (("keys", keys()), ("python", names())):
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    waiting = [ROOT / "docs" / file.src_uri for file in files.documentation_pages() if file.abs_src_path]
    seen = set()
    while waiting:
        for target in _linked(waiting.pop()):
            if target.is_file() and not target.is_relative_to(ROOT / "docs") and target not in seen:
                seen.add(target)
                uri = f"{ELSEWHERE}/{target.relative_to(ROOT).as_posix()}"
                files.append(File.generated(config, uri, abs_src_path=str(target)))
                waiting += [target] if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to where their files stand on the site."""
    own = page.file.src_uri
    source = ROOT / (own.removeprefix(f"{ELSEWHERE}/") if own.startswith(f"{ELSEWHERE}/") else f"docs/{own}")

    def moved(match: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / match[2]))
        if not target.is_file():
            return match[0]  # which mkdocs reports as broken
        inside = target.is_relative_to(ROOT / "docs")
        uri = target.relative_to(ROOT / "docs" if inside else ROOT).as_posix()
        return match[1] + os.path.relpath(uri if inside else f"{ELSEWHERE}/{uri}", Path(own).parent)

    return LINK.sub(moved, markdown)


def _linked(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        yield Path(os.path.normpath(page.parent / match[2]))


def keys() -> str:
    """Every key of every command and of every choice of a group, as a page."""
    lines = ["# Keys", "", "What `--help NAME` of a command says. Written from the signatures and docstrings.", ""]
    for command in primary.COMMANDS:
        lines += [f"## {command}", "", f"`python -m neural_rdm.{command}`, keys of no group", ""]
        lines += _table(explained.of_command(command), "")
    folder = config_dir()
    for group in sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in ("exp", "study", "debug")):
        choices = sorted(file.stem for file in (folder / group).glob("*.yaml"))
        lines += [f"## Group {group}", "", ", ".join(f"`{group}={choice}`" for choice in choices), ""]
        for target, rule in sorted(schema.named(group, (folder,)), key=str):
            name = schema.rule_class(rule) or target
            lines += [f"### {name.rpartition('.')[2]}", "", explained.first_sentence(name).replace("|", "\\|"), ""]
            lines += _table(explained.of_target(target, group, rule), f"{group}.")
        if group == "trainer":
            lines += _table(explained.of_files(group), "")
    return "\n".join(lines)


def _table(found: list[explained.Key], prefix: str) -> list[str]:
    if not found:
        return []
    rows = ["| key | may be | default | meaning |", "|---|---|---|---|"]
    for key in found:
        cells = (f"`{key.name}`", key.kind, f"`{key.default}`" if key.default else "", key.meaning)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return [*rows, ""]


def names() -> str:
    """The names that the package exports, as a page whose entries are taken from their docstrings."""
    exported: dict[str, Any] = neural_rdm._EXPORTS
    lines = ["# Python", "", "What `from neural_rdm import ...` finds; each name is loaded when it is first used.", ""]
    for name in neural_rdm.__all__:
        where = exported[name] if name != "rule" else "neural_rdm.residual.unit"
        lines += [f"::: {where}.{name}", ""]
    return "\n".join(lines)
