"""A metric of one's own: the total variation of generated pictures, beside that of real ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.image import TotalVariation

from neural_rdm.backbones.contract import Backbone
from neural_rdm.conditioning.conditions import condition_of
from neural_rdm.core.arguments import Count, checked
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.base import DataModule
from neural_rdm.evaluation.measuring import Measured, Report, Subject
from neural_rdm.evaluation.sample_parts import balanced


@checked()
class Smoothness(Report):
    """The sum of the differences between neighbouring values of a picture, on average.

    Args:
        count: generated pictures.
    """

    def __init__(self, count: Count = 100) -> None:
        self.count = count

    def check(self, data: DataModule, net: Backbone, pixels: bool) -> None:
        """Before training: are the samples pictures?"""
        if not pixels or len(net.input_shape) != 3:
            raise ConfigError("metric=smoothness is of pictures; leave it out with ~metric")

    def with_count(self, count: int) -> Smoothness:
        """For evaluations while training."""
        return Smoothness(count)

    def rows(self, subject: Subject) -> Measured:
        """The row of the generated pictures, and where the data are pixels that of real ones."""
        shown = range(subject.net.num_classes) if subject.text is None else subject.data.prompts(self.count)
        condition = condition_of(balanced(shown, self.count) if shown else [], subject.text)
        drawn = subject.draw(condition, range(self.count))  # every rank draws
        if not subject.writes:
            return [], "", {}
        if subject.decode is not None:  # latents
            drawn = torch.cat([subject.decode(x.to(subject.device)).cpu() for x in drawn.split(64)])
        rows = [{"name": "generated", "total_variation": variation(drawn)}]
        if subject.data.space == "pixels":
            subject.data.setup()
            source = subject.data.val_set or subject.data.train_set
            assert source is not None
            real = [source.load(i, i)["x"] for i in range(min(len(source), self.count))]
            rows.append({"name": "real", "total_variation": variation(torch.stack(real))})
        return rows, subject.protocol(f"{self.count} pictures"), {**subject.facts(), "count": self.count}


def variation(x: Tensor) -> float:
    """Of pictures [N, C, H, W]."""
    metric = TotalVariation(reduction="mean")
    metric.update(x.float())
    return float(metric.compute())
