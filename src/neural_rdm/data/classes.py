"""What label k means, in a run and in the data that are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def other_classes(held: Mapping[str, Any], number: int | None, names: list[str] | None) -> str:
    """What is different about the classes that a run has written down and these; empty where nothing is."""
    before = held["class_names"]
    if held["num_classes"] != number:
        return f"the data have {number} classes, but the run {held['num_classes']}"
    if before == names:
        return ""
    if before is None or names is None:
        return f"the classes have {'names now' if names else 'no names now'}, other than in the run"
    label = next(k for k, (old, new) in enumerate(zip(before, names, strict=True)) if old != new)
    return f"label {label} means {before[label]} in the run, but {names[label]} in the data"
