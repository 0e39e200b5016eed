"""All metrics of one feature network at once: it runs a single time for each batch of images or clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from neural_rdm.metrics.feature_sets import FeatureMetric, TwoSets
from neural_rdm.metrics.frechet import FrechetDistance
from neural_rdm.metrics.inception import InceptionScore
from neural_rdm.metrics.kernel import KernelDistance
from neural_rdm.metrics.neighbours import PrecisionRecall
from neural_rdm.metrics.networks import FeatureNetwork
from neural_rdm.metrics.reference import SPATIAL, Reference

#: names beside those of the outputs that have a Frechet distance
SCORE, KEPT = "score", "kept"


class KeptFeatures(TwoSets):
    """Several metrics of one pair of sets, whose features are kept, and exchanged between ranks, once.

    Those metrics have no number for which a side has too few samples.
    """

    def __init__(self, feature_space: str, dim: int, metrics: Sequence[TwoSets]) -> None:
        super().__init__(feature_space, dim)
        self._metrics = list(metrics)  # in a list: they hold no state of their own

    def between(self, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """What each metric says of the two sets."""
        able = [metric for metric in self._metrics if min(len(real), len(generated)) >= metric.least]
        return {name: value for metric in able for name, value in metric.between(real, generated).items()}


class Evaluation(Metric):
    """Everything that one feature network says of generated samples against real ones.

    Real samples are a `reference`, or they are added by `update(..., real=True)`, or both: the images in an ADM
    reference file, added so, serve precision, recall and the kernel distance, while its moments serve the Frechet
    distances. Every rank calls `compute`; batch size, order and the split over ranks change nothing but float32's
    rounding inside the network.

    Args:
        network: on the device where it runs; states are on the metric's own device, `to` moves them.
        reference: moments and, perhaps, features of real samples under this network; None takes real samples.
        spatial: also the Frechet distance of spatial features (sFID), where the network and the reference have them.
        splits: of the Inception Score, which is there where the network is one that scores (`FeatureNetwork.scores`).
        subsets, subset_size: of the kernel distance, which is there, with precision and recall, where real features are
            known; subsets of fewer samples where there are fewer.
        space: what the names of the numbers say instead of the network's name.

    Raises:
        ValueError: a reference of another network.
    """

    generated_count: Tensor
    real_count: Tensor

    def __init__(
        self,
        network: FeatureNetwork,
        reference: Reference | None = None,
        spatial: bool = True,
        splits: int = 10,
        subsets: int = 100,
        subset_size: int = 1000,
        space: str | None = None,
    ) -> None:
        super().__init__()
        if reference is not None and (
            reference.network != network.name or reference.network_hash not in (None, network.weights_hash)
        ):
            raise ValueError(f"the reference is of {reference.network}, or other weights of it, not of {network.name}")
        self._network = [network]  # in a list: neither its weights nor its device are this metric's
        self.reference, self.main, self.space = reference, network.main(), space or network.name
        self.dim = network.outputs[self.main]
        for side in ("generated", "real"):
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        stored = {} if reference is None else reference.moments
        features = {} if reference is None else reference.features
        children: dict[str, FeatureMetric] = {}
        for output in (self.main, SPATIAL) if spatial else (self.main,):
            if output not in network.outputs or (stored and output not in stored):
                continue
            space = self.space if output == self.main else f"{self.space}_{SPATIAL}"
            children[output] = distance = FrechetDistance(space, network.outputs[output])
            if reference is not None and output in stored:
                distance.set_reference(*stored[output], count=reference.count)
        if network.scores:
            children[SCORE] = InceptionScore(self.space, network.outputs["logits"], splits)
        if reference is None or self.main in features or reference.holds_images:
            neighbours = PrecisionRecall(self.space, self.dim)
            kernel = KernelDistance(self.space, self.dim, subsets, subset_size)
            children[KEPT] = both = KeptFeatures(self.space, self.dim, (neighbours, kernel))
            if self.main in features:
                both.set_reference(features[self.main])
        self.metrics: Any = nn.ModuleDict(children)
        self._score = f"; Inception Score in {splits} shuffled splits" if SCORE in children else ""
        self._kept = f"k=3, {subsets} subsets of at most {subset_size}"

    @property
    def protocol(self) -> str:
        """In one line what the numbers depend on, besides the samples and how they were made."""
        (network,) = self._network
        others = "not the published ones" if network.weights.sha256 else "no published ones are known"
        what = "published" if network.official else others
        line = f"features {network.name} (weights {network.weights_hash[:8]}, {what}); "
        if self.reference is None:
            return f"{line}real samples without a file{self._score}"
        facts, reference = self.facts, self.reference
        known = [str(facts[key]) for key in ("reference_data", "reference_split", "reference_size") if key in facts]
        if "reference_frames" in facts:
            known += [f"{facts['reference_frames']} frames, every {facts['reference_interval']}."]
        count = "an unknown count of" if reference.count is None else reference.count
        real = f"{reference.format}, {count} samples{' of ' * bool(known)}{' '.join(known)}"
        line += f"statistics{'' if reference.hash is None else f' {reference.hash[:8]}'} ({real}){self._score}"
        if KEPT in self.metrics:
            rows = reference.features.get(self.main)
            kept = "its images" if rows is None else f"{len(rows)} of them"
            line += f"; {kept} for precision, recall and the kernel distance ({self._kept})"
        return line

    @property
    def facts(self) -> dict[str, Any]:
        """The same as plain values: `features...` of the network, `reference...` of the real samples."""
        (network,) = self._network
        facts: dict[str, Any] = {
            "features": network.name,
            "features_hash": network.weights_hash,
            "features_official": network.official,
        }
        if (reference := self.reference) is None:
            return facts
        told, size = reference.facts, reference.facts.get("image_size")
        known = {
            "hash": reference.hash,
            "format": reference.format,
            "count": reference.count,
            "data": told.get("data"),
            "split": told.get("split"),
            "size": None if size is None else "x".join(map(str, reversed(size))),
            "frames": told.get("num_frames"),
            "interval": told.get("frame_interval"),
            "container": told.get("container"),
            "lossless": told.get("lossless"),
        }
        return facts | {f"reference_{key}": value for key, value in known.items() if value is not None}

    def update(self, images: Tensor, real: bool = False) -> None:
        """Add samples: uint8 [B, 3, H, W], or clips [B, F, 3, H, W]; a network of images takes the frames of clips.

        Real ones serve what the reference, if there is one, leaves open.

        Raises:
            ValueError: samples of another type or shape, or real ones that nothing waits for.
        """
        (network,) = self._network
        if images.ndim == 5 and not network.takes_clips:
            images = images.flatten(0, 1)
        served = [(name, m) for name, m in self.metrics.items() if not real or m.takes_real]
        if not served:
            raise ValueError(f"stored statistics stand for all real samples of {self.space}; add generated ones only")
        features = network(images.to(next(network.parameters()).device))
        side = "real" if real else "generated"
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(images))
        for name, metric in served:
            if name == SCORE:
                metric.update(features["logits"].double().softmax(1))
            else:
                metric.update(features[self.main if name == KEPT else name], real=real)

    def compute(self) -> dict[str, float]:
        """Every number by its name, and `count`, the generated samples (frames, where clips were taken apart).

        | name | of |
        |---|---|
        | `frechet_SPACE`, `frechet_SPACE_spatial` | main and spatial features |
        | `inception_score_SPACE`, `..._std` | class probabilities |
        | `precision_SPACE`, `recall_SPACE`, `kernel_distance_SPACE`, `..._std` | main features |

        SPACE is the network: with "inception" the first two are FID and sFID, with "i3d" the first one is the FVD.

        Raises:
            ValueError: fewer than two samples of a side, or features that are not finite.
        """
        found: dict[str, float] = {}
        for name, metric in self.metrics.items():
            if name == SCORE and int(self.generated_count) < metric.splits:
                continue
            value = metric.compute()
            found |= {n: float(v) for n, v in (value if isinstance(value, dict) else {metric.name: value}).items()}
        return found | {"count": int(self.generated_count)}

    def reset(self, real: bool = True) -> None:
        """Forget all samples or, with `real=False`, the generated ones; a reference stays."""
        kept = self.real_count
        super().reset()
        if not real:
            self.real_count = kept
        for metric in self.metrics.values():
            metric.reset(real=real)
