"""What the commands share that look at a data set: a missing folder is answered with its layout and its source.

Nothing here imports torch: `check_data` runs in the preflight.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from neural_rdm.cli.compose import compose_config
from neural_rdm.core.config import config_dir
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.layouts import CHECKS, check_folder
from neural_rdm.data.official_counts import Official, official


def check_data(overrides: list[str], command: str) -> list[str]:
    """The overrides as they are, if the data set's folder is there.

    Raises:
        ConfigError: the configuration cannot be composed, or no data set is chosen.
        DataError: no such folder, with the layout and where users get the data set.
    """
    cfg = compose_config(command, overrides).cfg
    if cfg.get("data") is None:
        choices = ", ".join(sorted(path.stem for path in (config_dir() / "data").glob("*.yaml")))
        raise ConfigError(f"which data set? Pass data=NAME, one of {choices}")
    try:
        data, choice = cfg.data, str(cfg.dataset)
        root, target = OmegaConf.select(data, "root"), str(data._target_)
    except (OmegaConfBaseException, AttributeError):
        return overrides  # what is wrong is said by the check of the whole configuration
    if root is None and "root" not in data:
        return overrides
    try:
        if (check := CHECKS.get(target.rpartition(".")[2])) is not None:
            check(root)
        else:
            check_folder(root, docstring(target))
    except DataError as error:
        raise DataError(f"{error}\n{where_to_get(official_of(data, choice))}".rstrip()) from error
    return overrides


def official_of(data: DictConfig, choice: str, classes: list[str] | None = None) -> Official | None:
    """The data set that a configuration node speaks of; None for one of the user's own."""
    root = Path(str(data.get("root") or "")).expanduser()
    folders = frozenset(path.name for path in root.iterdir()) if data.get("root") and root.is_dir() else frozenset()
    kind = str(data._target_).rpartition(".")[2]
    return official(choice, kind, data.get("split"), folders, classes)


def where_to_get(known: Official | None) -> str:
    """A sentence on where users get a data set; empty for their own."""
    return "" if known is None else f"{known.name} comes from {known.where}."


def docstring(target: str) -> str:
    """What the docstring of the class `package.module.Class` says before its arguments.

    It is read from the source: the module is not imported.
    """
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return ""
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    text = "" if found is None else ast.get_docstring(found) or ""
    return text.partition("\nArgs:")[0].strip()
