"""Of data sets before torch is imported: a missing folder is answered with its layout and its source."""

from __future__ import annotations

import ast

from omegaconf import DictConfig

from neural_rdm.config import reader, stated
from neural_rdm.config.check import as_plain
from neural_rdm.config.group_rules import for_classes
from neural_rdm.config.schema import constants
from neural_rdm.core.errors import DataError
from neural_rdm.data.layouts import ClassCount, check_folder, drawn
from neural_rdm.data.official import Official, official


def check_layout(data: DictConfig, backbone: DictConfig | None = None) -> None:
    """Check the folder of a data set, by the function that its class states (`DataModule.check`) where it does.

    Args:
        data: its configuration, with a `root`.
        backbone: the network for it, where there is one: `data.num_classes` follows its number of classes.

    Raises:
        DataError: no such folder, or another number of classes, with the layout and where users get the data set.
    """
    target = str(data._target_)
    check = stated.function(target, "check")
    try:
        if check is None:
            check_folder(data.root, docstring(target))
        else:
            stated.call(check, as_plain(data))
    except ClassCount as error:
        network = "" if backbone is None else f"{for_classes(backbone, error.found)} "
        advice = f"For these folders pass {network}data.num_classes={error.found}."
        raise DataError(f"{error.problem} {advice}\n{error.drawing}") from error
    except DataError as error:
        raise DataError(f"{error}\n{where_to_get(official_of(data))}".rstrip()) from error


def official_of(data: DictConfig, classes: int | None = None) -> Official | None:
    """What the class of a data set states of the whole of it; None where it states nothing.

    Args:
        data: its configuration.
        classes: how many it has, where that is known.
    """
    found = {} if classes is None else {"num_classes": classes}
    return official(constants(data, "data").get("official"), as_plain(data) | found)


def where_to_get(known: Official | None) -> str:
    """A sentence on where users get a data set; empty for their own."""
    return "" if known is None else f"{known.name} comes from {known.where}."


def docstring(target: str) -> str:
    """The layout that the class `package.module.Class` draws (see `drawn`).

    It is read from the source: the module is not imported.
    """
    found = reader.find(target)
    return drawn(ast.get_docstring(found.statement)) if found and isinstance(found.statement, ast.ClassDef) else ""
