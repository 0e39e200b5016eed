"""The reports `metric=digits`, `digits_text` and `digits_video`: generated digits beside real ones held out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from neural_rdm.conditioning.conditions import encoded
from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.digits_text import HELD_OUT, PHRASINGS, DigitsText, caption
from neural_rdm.data.builtin.digits_video import DigitsVideo
from neural_rdm.evaluation.measuring import Measured, Report, Subject
from neural_rdm.metrics.digits import DigitsEvaluation
from neural_rdm.metrics.digits_video import DigitsVideoEvaluation
from neural_rdm.reports.runs import GENERATED

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder


@checked()
class DigitsReport(Report):
    """Accuracy and Frechet distance of generated digits, beside those of held-out real ones.

    Args:
        per_class: samples drawn of each digit.
    """

    kind = "digits"  # the name of the metric, and of the data that it needs
    measures: ClassVar[tuple[str, ...]] = (
        "accuracy",
        "frechet_pixels",
    )  # what `optimized_metric` may name, `at_N_...` too

    def __init__(self, per_class: Count = 50) -> None:
        self.per_class = per_class

    @property
    def labels(self) -> Tensor:
        """The classes [10 * per_class] to draw samples of, sorted."""
        return torch.arange(10).repeat_interleave(self.per_class)

    @property
    def drawn(self) -> int:
        """One for each of `labels`."""
        return len(self.labels)

    def condition(self, text: TextEncoder | None) -> dict[str, Tensor]:
        """What the network is shown for each of the samples, see `diffusion.guidance.Condition`."""
        return {"y": self.labels}

    def check(self, data: Any, net: Any, pixels: bool) -> None:
        """Refuse, before training, data that are not the digits."""
        data.setup()
        self.metric(data)

    def with_count(self, count: int) -> DigitsReport:
        """The same report on at least `count` samples."""
        return type(self)(-(-count * self.per_class // len(self.labels)))

    def metric(self, data: Any) -> Any:
        """The metric, with the real digits of a data module that has been set up.

        Raises:
            ConfigError: the data are of another kind.
        """
        if not self._fits(data):
            what = f"data={self.kind}, not {type(data).__name__}"
            raise ConfigError(f"metric={self.kind} needs {what}; leave it out with ~metric")
        return self._metric(data)

    def _fits(self, data: Any) -> bool:
        return all(hasattr(s, "x") and hasattr(s, "y") for s in (data.train_set, data.val_set))

    def _metric(self, data: Any) -> Any:
        real, held_out = data.train_set, data.val_set
        return DigitsEvaluation(real.x, real.y, held_out.x, held_out.y, sync_on_compute=False)

    def rows(self, subject: Subject) -> Measured:
        """The run's own numbers, and those of real digits held out; nothing on a rank that does not write."""
        drawn = subject.draw(self.condition(subject.text), range(len(self.labels)))
        if not subject.writes:
            return [], "", {}
        subject.data.setup()
        metric = self.metric(subject.data)
        rows = self.measured(metric, drawn)
        rows.append({"name": "real, held out", **metric.reference(int(rows[0]["count"]))})
        protocol = f"{metric.protocol} {subject.protocol(f'{self.per_class} samples a class')} Clamped, not rounded."
        return rows, protocol, {**subject.facts(), "rounding": "none", "count": len(self.labels)}

    def measured(self, metric: Any, drawn: Tensor) -> list[dict[str, Any]]:
        """The numbers of samples [10 * per_class, ...] of `labels`, a row of the table each; first the run's own."""
        metric.update(drawn, self.labels)
        return [{"name": GENERATED, **metric.compute()}]


class DigitsTextReport(DigitsReport):
    """Do generated digits show what a text asked for? In phrasings that were trained on, and in others.

    Args:
        per_class: samples drawn of each digit, for either kind of phrasing.
    """

    kind = "digits_text"

    @property
    def labels(self) -> Tensor:
        """The digits [20 * per_class] that the texts speak of: those in trained phrasings first."""
        return super().labels.repeat(2)

    def prompts(self) -> list[str]:
        """A text for each of `labels`; the phrasings take turns."""
        return [
            caption(phrasings[i % len(phrasings)], digit)
            for phrasings in (PHRASINGS, HELD_OUT)
            for digit in range(10)
            for i in range(self.per_class)
        ]

    def condition(self, text: TextEncoder | None) -> dict[str, Tensor]:
        """The texts as tokens.

        Raises:
            ConfigError: a network that reads none.
        """
        if text is None:
            raise ConfigError("metric=digits_text needs a network that reads a text; leave it out with ~metric")
        return encoded(text, self.prompts(), "cpu")

    def _fits(self, data: Any) -> bool:
        return isinstance(data, DigitsText)

    def measured(self, metric: Any, drawn: Tensor) -> list[dict[str, Any]]:
        """A row for the trained phrasings and one for those held out."""
        rows, half = [], len(drawn) // 2
        for name, part in ((GENERATED, slice(0, half)), ("generated, phrasings held out", slice(half, None))):
            metric.reset()
            metric.update(drawn[part], self.labels[part])
            rows.append({"name": name, **metric.compute()})
        return rows


class DigitsVideoReport(DigitsReport):
    """Accuracy, consistency and motion of generated clips of moving digits, beside real ones held out.

    Args:
        per_class: clips drawn of each digit.
    """

    kind = "digits_video"
    measures = ("accuracy", "consistency", "frechet_pixels", "motion")

    def _fits(self, data: Any) -> bool:
        return isinstance(data, DigitsVideo)

    def _metric(self, data: Any) -> Any:
        assert data.digits.train_set is not None
        clips = DigitsVideo(1, image_size=data.image_size, num_frames=data.num_frames)
        clips.setup()
        assert clips.val_set is not None
        held_out = [clips.val_set.load(i, i) for i in range(clips.val_size)]
        x, y = torch.stack([c["x"] for c in held_out]), torch.tensor([c["y"] for c in held_out])
        return DigitsVideoEvaluation(data.digits.train_set.x, data.digits.train_set.y, x, y, sync_on_compute=False)
