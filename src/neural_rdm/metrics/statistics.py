"""What a file of reference statistics is made of, summed over batches and ranks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from neural_rdm.metrics.feature_sets import TwoSets, canonical
from neural_rdm.metrics.frechet import FrechetDistance
from neural_rdm.metrics.networks import FeatureNetwork
from neural_rdm.metrics.reference import SPATIAL


class Summary(NamedTuple):
    """Statistics of all samples of all ranks."""

    samples: int  # how many
    moments: dict[str, tuple[Tensor, Tensor]]  # mean [D] and covariance [D, D], float64, by output of the network
    features: dict[str, Tensor]  # float32 [N, D] of the kept samples by output, in an order of their own
    label_counts: list[int]  # how often each class was there; empty without classes


class Statistics(Metric):
    """Moments of a network's features, features of some samples, and how often each class was there.

    Args:
        network: on the device where it runs.
        num_classes: of the labels; 0 without labels.
    """

    label_counts: Tensor

    def __init__(self, network: FeatureNetwork, num_classes: int = 0) -> None:
        super().__init__()
        self._network = [network]  # in a list: neither its weights nor its device are this metric's
        self.main = network.main()
        self.add_state("label_counts", torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        outputs = [output for output in (self.main, SPATIAL) if output in network.outputs]
        self.distances: Any = nn.ModuleDict({o: FrechetDistance(network.name, network.outputs[o]) for o in outputs})
        self.kept = TwoSets(network.name, network.outputs[self.main])

    def update(self, images: Tensor, labels: Tensor | None = None, keep: bool = False) -> None:
        """Add samples.

        Args:
            images: uint8 [B, 3, H, W], or clips [B, F, 3, H, W]; a network of images takes the frames of clips.
            labels: int64 [B].
            keep: whether their features are kept.
        """
        (network,) = self._network
        if images.ndim == 5 and not network.takes_clips:
            images = images.flatten(0, 1)
        features = network(images.to(next(network.parameters()).device))
        for output, distance in self.distances.items():
            distance.update(features[output], real=True)
        if keep:
            self.kept.update(features[self.main], real=True)
        if labels is not None:
            self.label_counts = self.label_counts + torch.bincount(labels, minlength=len(self.label_counts))

    def compute(self) -> Summary:
        """All of it. Every rank must call it.

        Raises:
            ValueError: fewer than two samples, or features that are not finite.
        """
        found = {output: distance.moments("real") for output, distance in self.distances.items()}
        moments = {output: (mean, cov) for output, (mean, cov, _) in found.items()}
        samples = found[self.main][2]
        rows = canonical(self.kept.all_rows("real"))
        return Summary(samples, moments, {self.main: rows} if len(rows) else {}, self.label_counts.tolist())
