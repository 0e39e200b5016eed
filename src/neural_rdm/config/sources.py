"""Where the values of a configuration came from, and the refusal that says so."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from neural_rdm.core.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the values of a configuration came from, to say where a wrong one stands."""

    files: tuple[Path, ...] = ()
    typed: frozenset[str] = frozenset()  # keys that were overridden on the command line

    def of(self, group: str) -> list[Path]:
        """The files of a group's choice, in the group's folder or one below it, and of those that it builds on."""
        return [file for file in self.files if group in (file.parent.name, file.parent.parent.name)]

    def where(self, key: str) -> str:
        """` (command line; FILE, FILE)`: the places that hold the last part of `key`."""
        key = re.sub(r"\[\d+\]$", "", key)  # an entry of a list
        group, _, inner = key.partition(".")
        last = re.escape(key.rpartition(".")[2])
        places = ["command line"] if key in self.typed else []
        for file in self.files if last else ():
            own = group in (file.parent.name, file.parent.parent.name)
            text = file.read_text(encoding="utf-8") if file.is_file() else ""
            everywhere = "@package _global_" in text
            text = re.sub(r"(?m)(^|\s)#.*", "", text)
            if own or everywhere or not (file.parents[1] / group).is_dir():  # else of another group
                if inner and not own:  # what it says below the group's name
                    text = "".join(re.findall(rf"(?m)^{re.escape(group)}:.*(?:\n(?:[ \t].*)?)*", text))
                if (own or last != "_target_") and re.search(rf"(?m)(?:^|[\s{{,])['\"]?{last}['\"]?\s*:", text):
                    places.append(str(file))
        return f" ({'; '.join(places)})" if places else ""


def choice_of(file: Path, group: str) -> str:
    """What is typed to choose a file of a group: its name, with the folder where it lies in one below the group's."""
    return file.stem if file.parent.name == group else f"{file.parent.name}/{file.stem}"


def refused(message: str, key: str, sources: Sources) -> ConfigError:
    """The error that refuses what a key says, with the places that say it."""
    return ConfigError(f"{message}{sources.where(key)}", key=key)
