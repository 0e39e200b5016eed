"""Floor 2: metrics; every one a `torchmetrics.Metric`, its exact kernel beside it."""

from neural_rdm.metrics.frechet import FrechetDistance, frechet_distance

__all__ = ["FrechetDistance", "frechet_distance"]
