"""Floor 2: metrics; every one a `torchmetrics.Metric`, its exact kernel beside it."""

from neural_rdm.metrics.clip import CLIPScore, clip_score
from neural_rdm.metrics.frechet import FrechetDistance, frechet_distance
from neural_rdm.metrics.inception import InceptionScore, inception_score
from neural_rdm.metrics.kernel import KernelDistance, kernel_distance
from neural_rdm.metrics.neighbours import PrecisionRecall, precision_recall

__all__ = [
    "CLIPScore",
    "FrechetDistance",
    "InceptionScore",
    "KernelDistance",
    "PrecisionRecall",
    "clip_score",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "precision_recall",
]
