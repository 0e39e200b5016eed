"""What a shell offers for the word that is being typed: commands, groups and keys, the choices of a group."""

from __future__ import annotations

import os
from collections.abc import Collection

import yaml

from neural_rdm.config.check import choices_of, config_dir


def complete(commands: Collection[str]) -> list[str]:
    """The candidates for bash's `complete -C`, which leaves the line typed so far in COMP_LINE and COMP_POINT.

    A word is what stands behind the last space or, since bash takes `=` for the end of a word, behind the last `=`.

    Args:
        commands: the names of all commands.
    """
    typed = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))].split(" ")
    word = typed[-1]
    if len(typed) <= 2:
        return [f"{name} " for name in commands if name.startswith(word)]
    command = typed[1]
    if command not in commands:
        return []
    group, behind, choice = word.partition("=")
    if behind:
        return [f"{name} " for name in choices_of(group) if name.startswith(choice)]
    return [f"{name}=" for name in names(command) if name.startswith(word)]


def names(command: str) -> list[str]:
    """The groups and top-level keys of a command; those of a sweep are those of its jobs, too."""
    found: dict[str, None] = {}
    for primary in dict.fromkeys((command, "train" if command == "sweep" else command)):
        content = yaml.safe_load((config_dir() / f"{primary}.yaml").read_text(encoding="utf-8"))
        groups = [name for entry in content.pop("defaults", []) if isinstance(entry, dict) for name in entry]
        found |= dict.fromkeys([*(g for g in groups if " " not in g and "/" not in g), *content])
    return sorted(name for name in found if name != "hydra")
