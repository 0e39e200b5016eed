"""Captions as prompts: which of a data set's are drawn, which are none, and how many are too long for an encoder."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from neural_rdm.core.errors import BrokenSample
from neural_rdm.core.seeding import keys
from neural_rdm.data.sampler import spread
from neural_rdm.data.source import Source

LOOKED = 1000  # captions of a set whose tokens are counted
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul's and Braille's, which show nothing
SHOWN = 60  # letters of a caption in a message


class Cuts(Protocol):
    """A text encoder, as far as lengths go: see `TextEncoder`."""

    max_length: int

    def cut(self, captions: Sequence[str]) -> dict[str, tuple[int, str]]:
        """{caption: (its tokens, what is not read)} of those that are too long."""
        ...


def blank(caption: str) -> bool:
    """Whether a caption says nothing: no letter, number, punctuation mark or symbol that can be seen."""
    return not any(unicodedata.category(letter)[0] in "LNPS" and letter not in _FILLERS for letter in caption)


def distinct(
    count: int, numbers: Sequence[int], captions: Callable[[int], Sequence[str]]
) -> dict[str, tuple[int, int]]:
    """`count` different captions, or all where there are fewer: {caption: (its image, its place there)}.

    The first caption of every image comes first, in an order keyed by the images' numbers, then the second of every
    image that has one, and so on. So fewer prompts are the first of more.

    Args:
        numbers: of the images, the same wherever the images are stored.
        captions: those of the image at a place of `numbers`; a BrokenSample is passed over, for training lists it.
    """
    found: dict[str, tuple[int, int]] = {}
    left, which = np.argsort(keys(0, "prompts", numbers), kind="stable").tolist(), 0
    while left and len(found) < count:
        more = []
        for place in left:
            try:
                said = captions(place)
            except BrokenSample:
                continue
            if which < len(said):
                found.setdefault(said[which], (place, which))
            if which + 1 < len(said):
                more.append(place)
            if len(found) == count:
                break
        left, which = more, which + 1
    return found


def some_captions(source: Source, seed: int) -> tuple[list[str], list[BrokenSample]]:
    """All captions of at most `LOOKED` samples that are spread over a set, and what is wrong with those without any."""
    found: list[str] = []
    broken: list[BrokenSample] = []
    for index in spread(len(source), LOOKED, seed):
        try:
            found += source.captions(index)
        except BrokenSample as error:
            broken.append(error)
    return found, broken


def too_long(text: Cuts, captions: Sequence[str]) -> str:
    """How many of some captions an encoder cuts, in one line with an example; "" where it cuts none."""
    cut = text.cut(captions)
    if not cut:
        return ""
    many = sum(caption in cut for caption in captions)
    caption, (tokens, lost) = next(iter(cut.items()))
    return (
        f"{many:,} of {len(captions):,} captions looked at are longer than condition.max_length={text.max_length} "
        f"tokens, the longest has {max(count for count, _ in cut.values())}; what is beyond is cut: "
        f"{shortened(caption)!r} ({tokens} tokens) loses {shortened(lost)!r}"
    )


def tell_too_long(text: Cuts, source: Source | None, seed: int) -> None:
    """Print how many captions of a set an encoder cuts, if any."""
    if source is not None and (line := too_long(text, some_captions(source, seed)[0])):
        print(line, flush=True)


def shortened(caption: str, most: int = SHOWN) -> str:
    """The beginning of a caption, for a message."""
    return caption if len(caption) <= most else f"{caption[: most - 3].rstrip()}..."
