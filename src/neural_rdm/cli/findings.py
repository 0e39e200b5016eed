"""The report of `prepare` on a data set's folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neural_rdm.core.files import write_text


@dataclass
class Findings:
    """What was found in a data set's folder.

    Attributes:
        data: the choice of the configuration.
        name: of the official data set, or None.
        root: the folder, None for data that come with a package.
        usable: whether training can read it.
        problem: why not, in the words of the data set.
        layout: what the folder should hold, where it cannot be used.
        splits: a row each: samples found, those of the official set, those that a list names, those missing from it.
        facts: what else is known, as (what, value).
        warnings: what a user should know before training.
        broken: path and reason of samples that do not decode.
        missing: what the lists name and is not there.
        advice: what to type next.
    """

    data: str
    name: str | None
    root: str | None
    usable: bool = True
    problem: str | None = None
    layout: str | None = None
    splits: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> list[Path]:
        """Write the report as Markdown and JSON, and the whole list of what is missing; return the files."""
        facts = _printable(vars(self))
        write_text(folder / "report.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_text(folder / "report.md", Findings(**facts).page())
        if self.missing:
            write_text(folder / "missing.txt", "".join(f"{name}\n" for name in facts["missing"]))
        names = ["report.md", "report.json", *(["missing.txt"] if self.missing else [])]
        return [folder / name for name in names]

    def page(self) -> str:
        """The report as Markdown."""
        from neural_rdm.reports.tables import markdown_table

        verdict = "not usable" if not self.usable else "usable, with warnings" if self.warnings else "usable"
        title = f"# {self.name or self.data}: {verdict}\n"
        parts = [title, f"data={self.data}" + (f" data.root={self.root}\n" if self.root else "\n")]
        parts += [f"{self.problem}\n"] if self.problem else []
        parts += [f"```\n{self.layout}\n```\n"] if self.layout else []
        parts += [markdown_table(self.splits)] if self.splits else []
        parts += ["".join(f"- {what}: {value}\n" for what, value in self.facts.items())] if self.facts else []
        for heading, lines in (
            ("Warnings", self.warnings),
            ("Samples that do not decode", [f"{path}: {reason}" for path, reason in self.broken.items()]),
            ("Next", self.advice),
        ):
            parts += [f"{heading}:\n\n" + "".join(f"- {line}\n" for line in lines)] if lines else []
        return "\n".join(parts)


def _printable(value: Any) -> Any:
    """Facts whose names can be written as UTF-8."""
    from neural_rdm.core.errors import printable

    if isinstance(value, dict):
        return {_printable(key): _printable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_printable(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value
