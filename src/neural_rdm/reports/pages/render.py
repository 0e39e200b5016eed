"""Templates filled and written as one file each: the environment, the pictures and the numbers that all pages share."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from neural_rdm.core.errors import DataError, first_line
from neural_rdm.core.files import write_text
from neural_rdm.core.given import regular
from neural_rdm.reports.statistics import Interval

HERE = Path(__file__).parent
NONE = "–"  # an empty cell


@dataclass(frozen=True)
class Picture:
    """A picture that stands in the page itself.

    Attributes:
        uri: `data:image/png;base64,...`
        width, height: in pixels of the file.
        alt: what it shows, in words, for who cannot see it.
    """

    uri: str
    width: int
    height: int
    alt: str


def picture(content: bytes | Path, alt: str) -> Picture:
    """A PNG or GIF, as bytes or as a file.

    Raises:
        DataError: it cannot be read, or is no picture of these kinds.
    """
    try:
        data = content if isinstance(content, bytes) else Path(regular(content)).read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG", "GIF"]) as image:
            kind, (width, height) = str(image.format).lower(), image.size
    except Exception as error:  # whatever Pillow makes of a damaged file
        name = "the picture" if isinstance(content, bytes) else str(content)
        raise DataError(f"{name} cannot be shown: {first_line(error)}") from error
    return Picture(f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", width, height, alt)


def write(template: str, path: Path, **content: Any) -> Path:
    """Fill a template of this folder and write it, atomically; every text of `content` is escaped."""
    write_text(path, filled(template, **content))
    return path


def filled(template: str, scripts: Sequence[str] = ("script.js",), **content: Any) -> str:
    """A template of this folder, filled; every text of `content` is escaped.

    Args:
        scripts: files of this folder, which stand in the page one after the other; nothing else may run there.
    """
    script = "".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
    own = {
        "reload": None,
        "style": (HERE / "style.css").read_text(encoding="utf-8"),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
    }
    return environment().get_template(template).render(**{**own, **content})


@cache
def environment() -> Environment:
    """The templates of this folder: everything escaped, and a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(HERE, encoding="utf-8"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"told": told, "number": number, "percent_of": percent_of, "plural": plural}
    return made


def _typeset(number: str) -> str:
    """With a minus sign in place of hyphens."""
    return number.replace("-", "\N{MINUS SIGN}")


def number(value: float | None, signed: bool = False, digits: int = 4) -> str:
    """A number with so many digits that count, thousands set apart; a dash for none."""
    if value is None or not math.isfinite(value):
        return NONE
    sign = "+" if signed else ""
    whole = value == int(value) or abs(value) >= 10 ** (digits - 1)
    return _typeset(f"{value:{sign},.0f}" if whole and abs(value) < 1e7 else f"{value:{sign}.{digits}g}")


def told(found: Interval | None, signed: bool = False) -> str:
    """A mean and half its 95 % interval, with as many decimals as the interval leaves; a single value without one."""
    if found is None:
        return NONE
    if found.n < 2 or not math.isfinite(found.half):
        return number(found.mean, signed)
    sign, half = "+" if signed else "", found.half
    if half == 0:
        return f"{number(found.mean, signed)} ± 0"
    digits = 1 - math.floor(math.log10(half))
    if not -3 <= digits <= 6:  # far too large or small for decimals
        return _typeset(f"{found.mean:{sign}.4g} ± {half:.2g}")
    return _typeset(f"{found.mean:{sign},.{max(0, digits)}f} ± {half:,.{max(0, digits)}f}")


def percent_of(value: float, low: float, high: float) -> str:
    """Where a value lies between two others, in percent, as a coordinate of a drawing."""
    return f"{100 * (value - low) / (high - low):.2f}" if high > low else "50"


def plural(count: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
