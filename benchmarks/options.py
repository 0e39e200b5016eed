"""`key=value` arguments of the benchmarks that take some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def options_of(name: str, arguments: Sequence[str], kinds: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The options of a benchmark, each made by its kind.

    Raises:
        SystemExit: an argument that is none of them, or whose value its kind does not take.
    """
    options = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in kinds:
            raise SystemExit(f"error: {name} takes {', '.join(f'{kind}=' for kind in kinds)}, not {argument}")
        try:
            options[key] = kinds[key](value)
        except ValueError:
            raise SystemExit(f"error: {name}: {key}={value} is not of its kind ({kinds[key].__name__})") from None
    return options
