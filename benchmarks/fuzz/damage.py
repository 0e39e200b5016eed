"""What is done to a good input: to its bytes, to a part of its JSON, to what somebody types."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: what a case does, from the draws of its number; returns its outcome
Case = Callable[[random.Random], str]
#: makes good inputs in a folder, and returns what a case does with them
Subject = Callable[[Path], Case]


def damaged(draw: random.Random, data: bytes) -> bytes:
    """Bytes with one to three injuries; one time in thirty with none."""
    content = bytearray(data)
    if draw.random() < 1 / 30:
        return data
    for _ in range(draw.choice((1, 1, 2, 3))):
        if not content:
            break
        place = draw.randrange(len(content))
        length = min(len(content) - place, 1 << draw.randrange(10))
        match draw.randrange(7):
            case 0 | 1:
                content[place] ^= 1 << draw.randrange(8)
            case 2:
                content[place : place + length] = draw.randbytes(length)
            case 3:
                del content[place:]
            case 4:
                del content[place : place + length]
            case 5:
                content[place:place] = content[place : place + length]
            case 6:
                content[place : place + length] = bytes(length)
    return bytes(content)


VALUES = (
    None, True, False, 0, 1, -1, 2, 3.5, 1e400, -1e-320, 10**40, "", " ", "x", "null", "../../etc/passwd", "/dev/zero",
    "a" * 5000, "é\ud800", "${oc.env:HOME}", "__import__('os')", [], [1, "a", None], [[[]]], {}, {"a": {"b": 1}},
    {"_target_": "os.system", "command": "true"}, "\x00", "<script>", "1e3", "0x10", "on", "-", "~",
)  # fmt: skip


def changed(draw: random.Random, value: Any) -> Any:
    """A value of JSON of which one part is another, gone, or twice there."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(sorted(value, key=str))
        rest = {k: v for k, v in value.items() if k != key}
        match draw.randrange(5):
            case 0:
                return rest
            case 1:
                return rest | {str(draw.choice(VALUES)): value[key]}
            case _:
                return value | {key: changed(draw, value[key])}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        match draw.randrange(5):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], changed(draw, value[place]), *value[place + 1 :]]
    return draw.choice(VALUES)


def text(draw: random.Random, content: str) -> bytes:
    """A damaged text: as JSON, where it is any, or as bytes."""
    if draw.random() < 0.6:
        try:
            return json.dumps(changed(draw, json.loads(content))).encode("utf-8", "surrogatepass")
        except ValueError:
            pass
    return damaged(draw, content.encode())


def written(draw: random.Random, value: Any) -> str:
    """A value as somebody types it, who may forget the quotes."""
    if isinstance(value, str) and draw.random() < 0.5:
        return value.replace("\ud800", "")
    return json.dumps(value).replace('": ', '":')
