"""Fields of the configuration schema: a type from the annotation, a range or a role from here."""

from __future__ import annotations

from dataclasses import field
from typing import Any

#: (key below a node, what is wrong and what to type): what a node's `check` returns
Problem = tuple[str, str]


def _ranged(**limits: Any) -> Any:
    return field(metadata=limits)


def positive() -> Any:
    """An integer or float above 0."""
    return _ranged(above=0)


def at_least(low: float) -> Any:
    """A number not below `low`."""
    return _ranged(low=low)


def between(low: float, high: float) -> Any:
    """A number in [low, high]."""
    return _ranged(low=low, high=high)


def one_of(*choices: Any) -> Any:
    """One of a few values."""
    return _ranged(choices=choices)


def matching(pattern: str, meaning: str) -> Any:
    """A text that fits a regular expression; `meaning` says which texts do."""
    return _ranged(pattern=pattern, meaning=meaning)


def verbatim() -> Any:
    """A text that is taken whole, with commas, brackets and wildcards in it."""
    return _ranged(verbatim=True)


def node(optional: bool = False) -> Any:
    """A node with a `_target_` of its own, checked against `TARGETS`."""
    return _ranged(node=True, optional=optional)


def nodes() -> Any:
    """A mapping of names to nodes; None switches one off."""
    return _ranged(nodes=True, optional=True)
