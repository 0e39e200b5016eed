"""Handwritten digits with captions, in several phrasings, some of which are never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from neural_rdm.core.arguments import Count, Natural
from neural_rdm.core.seeding import choice
from neural_rdm.data.base import DataModule
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.source import Source

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: what is said of a digit in training; {word} is "seven", {numeral} is "7"
PHRASINGS = (
    "a handwritten {word}",
    "the digit {numeral}",
    "the number {word} written by hand",
    "a {word} in pencil",
    "handwriting of the numeral {numeral}",
    "a picture of the number {numeral}",
    "someone wrote {word}",
    "a small grey image of a {word}",
    "{word}",
    "{numeral}",
)
#: what is never said in training
HELD_OUT = (
    "an image showing the digit {word}",
    "a scan of a handwritten {numeral}",
    "please draw the number {word}",
    "{word}, drawn with a pen",
)


def caption(phrasing: str, digit: int) -> str:
    """A phrasing with a digit (0 to 9) in it."""
    return phrasing.format(word=WORDS[digit], numeral=digit)


class CaptionedDigits(Source):
    """Digits in memory, `x` float32 [N, 1, 8, 8] in [-1, 1] and `y` int64 [N], and what may be said of them.

    Args:
        random: draw the phrasing by the sample's position; otherwise by its index.
    """

    captioned = True
    y: Tensor

    def __init__(self, x: Tensor, y: Tensor, phrasings: Sequence[str], random: bool, seed: int) -> None:
        self.x, self.y, self.phrasings, self.random, self.seed = x, y, tuple(phrasings), random, seed

    def __len__(self) -> int:
        return len(self.y)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Sample `index` with a caption."""
        count = len(self.phrasings)
        which = choice(self.seed, "caption", key, count) if self.random else index % count
        return {"x": self.x[index], "caption": caption(self.phrasings[which], int(self.y[index]))}


class DigitsText(DataModule):
    """`Digits` for text-to-image: no labels, a caption each, drawn from `PHRASINGS`; validation speaks in `HELD_OUT`.

    The split is that of `Digits`. Arguments: see there.
    """

    sample_shape = (1, 8, 8)
    train_set: CaptionedDigits | None = None
    val_set: CaptionedDigits | None = None

    def __init__(self, batch_size: Count = 64, num_workers: Natural = 0, limit: Count | None = None) -> None:
        super().__init__(batch_size, num_workers, limit)

    def load_datasets(self) -> None:
        """Read the digits and give them their captions."""
        digits = Digits(1)
        digits.setup()
        assert digits.train_set is not None
        assert digits.val_set is not None
        self.train_set = CaptionedDigits(digits.train_set.x, digits.train_set.y, PHRASINGS, True, self.seed)
        self.val_set = CaptionedDigits(digits.val_set.x, digits.val_set.y, HELD_OUT, False, self.seed)

    def prompts(self, count: int) -> list[str] | None:
        """`count` captions, 140 at most: each digit in the first phrasing, then in the next, those held out last."""
        return [caption(phrasing, digit) for phrasing in (*PHRASINGS, *HELD_OUT) for digit in range(10)][:count]

    @property
    def prompts_of(self) -> str:
        """See `DataModule`."""
        return "phrasings of training, then those held out"
