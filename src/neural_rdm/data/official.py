"""What a whole data set has, and where its users get it, as its class states it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError


@dataclass(frozen=True)
class Official:
    """A data set as its own site describes it.

    Attributes:
        name: what people call it.
        where: a page, and what has to be fetched there.
        train: samples of the training split; None where no source for the number is known.
        val: samples of what is used for validation; None likewise.
        classes: how many; None without labels.
        commands: what a user types to fetch and unpack it, `{root}` being the folder; empty where a form has to be
            filled in first.
    """

    name: str
    where: str
    train: int | None = None
    val: int | None = None
    classes: int | None = None
    commands: Sequence[str] = ()


def official(stated: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> Official | None:
    """The data set that a configuration speaks of; None for one that states nothing.

    Args:
        stated: `DataModule.official` of its class: the fields of `Official`. Where there are several `versions`, each
            has fields of its own and a `when`, the keys and values by which it is told: the first one that fits is
            taken, and where none does the first. The key `folder` is a folder in the root.
        keys: of the configuration, with `num_classes` as they were found, where that is known.

    Raises:
        ConfigError: a field that there is not, or one that is missing.
    """
    if not stated:
        return None

    def holds(key: str, value: Any) -> bool:
        if key == "folder":
            return bool(keys.get("root")) and Path(str(keys["root"])).expanduser().joinpath(value).is_dir()
        return bool(keys.get(key) == value)

    versions = stated.get("versions") or [{}]
    fitting = (v for v in versions if all(holds(*condition) for condition in v.get("when", {}).items()))
    chosen = {**stated, **next(fitting, versions[0])}
    try:
        found = Official(**{field: value for field, value in chosen.items() if field not in ("versions", "when")})
    except TypeError as error:
        raise ConfigError(f"{keys.get('_target_')}: its `official` does not say what it should: {error}") from error
    where = f"{keys.get('_target_')}: its `official` has"
    for field, value in (("train", found.train), ("val", found.val), ("classes", found.classes)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
            raise ConfigError(f"{where} {field}={value!r}, which is no number; leave out what is not known")
    if isinstance(found.commands, str):
        raise ConfigError(f"{where} commands={found.commands!r}, a text; give a list of commands")
    return found
