"""What a case of the fuzz, or a trial of the soak, tells: what was broken, and how much it has taken."""

from __future__ import annotations

import re

#: where this machine has its packages, its Python, this checkout and what a trial works in
_PLACES = re.compile(
    r"/[^\"\s]*?/(?:site-packages/|python3\.\d+/(?!site-packages)|trial/cwd/|(?=(?:src|benchmarks|tests)/))"
)

#: the most of something that cases of this process have taken, by its name in the counts
MOST: dict[str, float] = {}


class Wrong(Exception):
    """What was read is not what was written, or what was done not what was asked; `kind` is where it counts."""

    def __init__(self, what: str, kind: str = "wrong") -> None:
        super().__init__(what)
        self.kind = kind


def note(name: str, value: float) -> None:
    """Let a case tell how much it has taken: the most of all cases is written down."""
    MOST[name] = max(MOST.get(name, 0.0), value)


def placeless(detail: str) -> str:
    """A detail of a fault without the places of this machine."""
    return _PLACES.sub("", detail)
