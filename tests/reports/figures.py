"""Looking at what was drawn rather than at pixels."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest


def keep_figures(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> list[Any]:
    """The figures that `module` writes from now on, in order."""
    kept: list[Any] = []
    save = module.save

    def keep(figure: Any, path: Any) -> Any:
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(module, "save", keep)
    return kept
