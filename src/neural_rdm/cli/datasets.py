"""Of data sets before torch is imported: a missing folder is answered with its layout and its source."""

from __future__ import annotations

import ast
from pathlib import Path

from omegaconf import DictConfig

from neural_rdm.config import reader
from neural_rdm.config.group_rules import for_classes
from neural_rdm.core.errors import DataError
from neural_rdm.data.layouts import CHECKS, ClassCount, check_folder, drawn, folders_in
from neural_rdm.data.tools.official_counts import Official, official


def check_layout(data: DictConfig, choice: str, backbone: DictConfig | None = None) -> None:
    """Check the folder of a data set.

    Args:
        data: its configuration, with a `root`.
        choice: its name in the group `data`.
        backbone: the network for it, where there is one: `data.num_classes` follows its number of classes.

    Raises:
        DataError: no such folder, or another number of classes, with the layout and where users get the data set.
    """
    target = str(data._target_)
    try:
        if (check := CHECKS.get(target.rpartition(".")[2])) is not None:
            check(data.root, data.get("num_classes") or None)
        else:
            check_folder(data.root, docstring(target))
    except ClassCount as error:
        first, _, rest = str(error).partition("\n")
        network = "" if backbone is None else f"{for_classes(backbone, error.found)} "
        advice = f"For these folders pass {network}data.num_classes={error.found}."
        raise DataError(f"{first} {advice}\n{rest}") from error
    except DataError as error:
        raise DataError(f"{error}\n{where_to_get(official_of(data, choice))}".rstrip()) from error


def official_of(data: DictConfig, choice: str, classes: list[str] | None = None) -> Official | None:
    """The data set that a configuration node speaks of; None for one of the user's own."""
    root = Path(str(data.get("root") or "")).expanduser()
    try:
        folders = frozenset(folders_in(root)) if data.get("root") and root.is_dir() else frozenset()
    except DataError:  # it cannot be read, which whoever reads it says
        folders = frozenset()
    kind = str(data._target_).rpartition(".")[2]
    return official(choice, kind, data.get("split"), folders, classes)


def where_to_get(known: Official | None) -> str:
    """A sentence on where users get a data set; empty for their own."""
    return "" if known is None else f"{known.name} comes from {known.where}."


def docstring(target: str) -> str:
    """The layout that the class `package.module.Class` draws (see `drawn`).

    It is read from the source: the module is not imported.
    """
    found = reader.find(target)
    return drawn(ast.get_docstring(found.statement)) if found and isinstance(found.statement, ast.ClassDef) else ""
