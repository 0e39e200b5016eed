"""How good are generated clips of moving digits? Where a real digit fits best, frame by frame."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from neural_rdm.metrics.digits import SUBSETS, DigitsEvaluation, at_count

SIDE = 8  # of a digit


class DigitsVideoEvaluation(Metric):
    """Accuracy, distance, agreement and motion of generated clips of digits.

    In every frame the digit is located: at the place where, of all real training digits on an empty canvas, one comes
    nearest. `accuracy` and `frechet_pixels` are those of `DigitsEvaluation` for the located 8 x 8 windows of all
    frames; `consistency` is the share of clips in which the classifier sees one class in every frame; `motion` the mean
    distance, in pixels (the larger of both axes), that the located digit moves from frame to frame: 1 in real clips.

    Args:
        train_x, train_y: real digits [N, 1, 8, 8] in [-1, 1] and their classes [N].
        val_clips, val_y: real clips held out [N, F, 1, S, S] and their classes; `reference` measures them.
    """

    clips: Tensor
    consistent: Tensor
    moved: Tensor

    def __init__(self, train_x: Tensor, train_y: Tensor, val_clips: Tensor, val_y: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._real = train_x.flatten(1).float()
        self._val = val_clips, val_y
        self.digits = DigitsEvaluation(train_x, train_y, train_x, train_y, **kwargs)
        self.add_state("clips", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("consistent", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("moved", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def protocol(self) -> str:
        """One line that says what the numbers are."""
        return (
            "Digits located in every frame where a real training digit fits best. frechet_pixels (64 raw pixels) and "
            f"accuracy ({self.digits.classifier}): of the located windows of all frames; consistency: share of clips "
            "with one predicted class in all frames; motion: mean pixels a frame that the located digit moves; "
            f"reference: {len(self._val[0])} real clips held out; at_N_frechet_pixels: at N clips (mean of {SUBSETS} "
            "draws, the classes evenly), since the distance falls with their number."
        )

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add clips x [B, F, 1, S, S] in [-1, 1] (clamped) and the classes y [B] that they were asked for."""
        if x.ndim != 5 or x.shape[2] != 1 or x.shape[3] < SIDE or y.shape != x.shape[:1]:
            raise ValueError(
                f"DigitsVideoEvaluation wants x [B, F, 1, S, S] and y [B]; got {list(x.shape)}, {list(y.shape)}"
            )
        windows, corners = self.locate(x.detach().float().cpu().clamp(-1, 1).flatten(0, 1)[:, 0])
        frames = x.shape[1]
        self.digits.update(windows[:, None], y.cpu().repeat_interleave(frames))
        predicted = self.digits.predict(windows.flatten(1).double()).unflatten(0, (-1, frames))
        steps = corners.unflatten(0, (-1, frames)).diff(dim=1).abs().amax(dim=2).double()
        self.clips = self.clips + len(x)
        self.consistent = self.consistent + (predicted == predicted[:, :1]).all(dim=1).sum()
        self.moved = self.moved + (steps.mean(dim=1).sum() if frames > 1 else 0.0)

    def locate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [M, S, S] -> the best-fitting windows [M, 8, 8] and their corners (row, column) [M, 2]."""
        frames = frames.nan_to_num(nan=-1.0)
        room = frames.shape[-1] - SIDE + 1
        windows = frames.unfold(1, SIDE, 1).unfold(2, SIDE, 1).flatten(3).flatten(1, 2)  # [M, room^2, 64]
        nearest = torch.stack([torch.cdist(w, self._real).amin(dim=1) for w in windows]).square()
        outside = (frames + 1).square().sum(dim=(1, 2))[:, None] - (windows + 1).square().sum(dim=2)
        best = (nearest + outside).argmin(dim=1)
        chosen = windows[torch.arange(len(windows)), best].unflatten(1, (SIDE, SIDE))
        return chosen, torch.stack([best // room, best % room], dim=1)

    def compute(self) -> dict[str, float]:
        """`accuracy`, `consistency` in [0, 1], `frechet_pixels` >= 0, `motion` in pixels, `count` of clips; where not
        as many real clips are held out also `at_N_frechet_pixels`, N the smaller of both counts.

        Raises:
            ValueError: fewer than 2 frames.
        """
        clips, (pixels, y) = int(self.clips), self.digits.added()
        row = {"accuracy": self.digits.accuracy(pixels, y), "frechet_pixels": self.digits.distance(pixels)}
        if (equal := min(clips, len(self._val[0]))) != max(clips, len(self._val[0])):
            row |= self._at(equal)
        row |= {"consistency": int(self.consistent) / clips, "motion": float(self.moved) / clips}
        return row | {"count": float(clips)}

    def _at(self, count: int) -> dict[str, float]:
        """The distance at so many clips."""
        pixels, y = (part.unflatten(0, (int(self.clips), -1)) for part in self.digits.added())
        return {f"at_{count}_frechet_pixels": at_count(self._distance, pixels, y[:, 0], count)}

    def _distance(self, clips: Tensor) -> float:
        return self.digits.distance(clips.flatten(0, 1))

    def reference(self, count: int | None = None) -> dict[str, float]:
        """The row of the real clips held out; `count` as in `DigitsEvaluation.reference`."""
        other = copy.deepcopy(self)
        other.reset()
        other.update(*self._val)
        row = other.compute()
        if count not in (None, held := len(self._val[0])):
            del row["frechet_pixels"]
            row |= other._at(min(count or held, held))
        return row

    def reset(self) -> None:
        """Forget everything added."""
        super().reset()
        self.digits.reset()
