"""scikit-learn's handwritten digits in motion: real images on clips that need no download."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from neural_rdm.core.arguments import Count, Natural, at_least, checked
from neural_rdm.core.seeding import generator
from neural_rdm.data import constraints
from neural_rdm.data.base import DataModule
from neural_rdm.data.builtin.digits import Digits, TensorSet
from neural_rdm.data.source import Source

DIGIT = 8  # pixels along a side


class MovingDigits(Source):
    """Clips made when asked for: a digit that moves to and fro across the canvas, a pixel a frame.

    Args:
        digits: the images that move.
        size: side of the canvas, in pixels.
        num_frames: frames of a clip, F.
        image_frames: independent digits that follow each clip, I.
        seed: keys the motion together with a sample's position in the run.
    """

    def __init__(self, digits: TensorSet, size: int, num_frames: int, image_frames: int, seed: int) -> None:
        self.digits, self.size, self.seed = digits, size, seed
        self.num_frames, self.image_frames = num_frames, image_frames

    def __len__(self) -> int:
        return len(self.digits)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Digit `index` in the motion that the position `key` draws: x [F + I, 1, S, S], y its class, or [1 + I].

        One frame alone is an image [1, S, S].
        """
        draw = partial(torch.randint, size=(2,), generator=generator(self.seed, "moving digits", key))
        middle, start, direction = self.room // 2, int(draw(self.room + 1)[0]), 2 * int(draw(2)[0]) - 1
        x = torch.full((self.num_frames + self.image_frames, 1, self.size, self.size), -1.0)
        for frame in range(self.num_frames):
            self._place(x[frame, 0], index, middle, start + frame * direction)
        labels = [int(self.digits.y[index])]
        for canvas in x[self.num_frames :, 0]:
            other = int(draw(len(self.digits))[0])
            self._place(canvas, other, middle, int(draw(self.room + 1)[0]))
            labels.append(int(self.digits.y[other]))
        return {"x": x if len(x) > 1 else x[0], "y": torch.tensor(labels) if len(labels) > 1 else labels[0]}

    @property
    def room(self) -> int:
        """How far a digit can move along each axis."""
        return self.size - DIGIT

    def _place(self, canvas: Tensor, index: int, row: int, column: int) -> None:
        column = bounced(column, self.room)
        canvas[row : row + DIGIT, column : column + DIGIT] = self.digits.x[index, 0]


def bounced(place: int, room: int) -> int:
    """`place` on a line that is folded at 0 and at `room`."""
    if room == 0:
        return 0
    place %= 2 * room
    return min(place, 2 * room - place)


@checked(constraints.images_follow_clips)
class DigitsVideo(DataModule):
    """Moving grey digits, 10 classes, x [F, 1, S, S] in [-1, 1]; the digits and their split are those of `Digits`.

    Each epoch moves every digit anew; validation moves each in one way.

    Args:
        image_size: side of the canvas, 8 or more.
        num_frames: frames of a clip; 1 gives images [1, S, S].
        image_frames: independent digits appended to each clip, for joint training on clips and images.

    The other arguments: see `DataModule`; clips are cheap to make, so that `num_workers=0` is fastest.

    Raises:
        ConfigError: a canvas smaller than a digit, or images behind an image.
    """

    num_classes = 10

    def __init__(
        self,
        batch_size: Count = 32,
        num_workers: Natural = 0,
        limit: Count | None = None,
        image_size: Annotated[int, at_least(8)] = 12,
        num_frames: Count = 8,
        image_frames: Natural = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        self.image_size, self.num_frames, self.image_frames = image_size, num_frames, image_frames
        frames = num_frames + image_frames
        image = (1, image_size, image_size)
        self.sample_shape = image if frames == 1 else (frames, *image)
        self.class_names = [str(digit) for digit in range(10)]
        self.digits = Digits(batch_size)

    def load_datasets(self) -> None:
        """Read the digits; clips are made when asked for."""
        self.digits.setup()
        shape = self.image_size, self.num_frames, self.image_frames, self.seed
        assert self.digits.train_set is not None
        assert self.digits.val_set is not None
        self.train_set = MovingDigits(self.digits.train_set, *shape)
        self.val_set = MovingDigits(self.digits.val_set, *shape)
