"""Writing values so that Hydra's grammar for overrides reads them back."""

from __future__ import annotations

import json
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString


def written(value: Any) -> str:
    """A plain value as Hydra's grammar for overrides writes it, text in quotes."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return json.dumps(value)
