"""Floor 2: metrics, every one a `torchmetrics.Metric` with its exact kernel beside it as a function.

For evaluations and for anybody's own arrays. Begin with `frechet`; `networks` has the features, `suite` all metrics of
one network, `reference` the statistics of real samples on disk.
"""

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
