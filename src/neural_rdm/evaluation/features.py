"""The report `metric=images` and `metric=videos`: distances in the features of a named network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from neural_rdm.backbones.contract import Backbone
from neural_rdm.conditioning.conditions import condition_of
from neural_rdm.config.primary import ClipFeatures, ImageFeatures
from neural_rdm.core.arguments import at_least, checked
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.base import DataModule
from neural_rdm.evaluation import constraints
from neural_rdm.evaluation.measuring import Measured, Report, Subject
from neural_rdm.evaluation.sample_files import SampleFiles, open_samples
from neural_rdm.evaluation.sample_parts import balanced
from neural_rdm.media.images import ROUNDING, to_bytes
from neural_rdm.metrics.clip import CLIPScore
from neural_rdm.metrics.networks import NETWORKS, FeatureNetwork, feature_network
from neural_rdm.metrics.networks.text_image import CLIP
from neural_rdm.metrics.reference import Reference, read_reference
from neural_rdm.metrics.suite import Evaluation
from neural_rdm.reports.runs import GENERATED

TEXTS = 512  # prompts that are encoded at a time


class Held:
    """A feature network with its metrics.

    Args:
        frames: it takes the single frames of clips; the names of its numbers say so.
    """

    def __init__(self, network: FeatureNetwork, reference: Reference, frames: bool = False) -> None:
        self.network, self.reference, self.frames = network, reference, frames
        self.evaluation = Evaluation(network, reference, space=f"{network.name}_frames" if frames else None)
        self._seen = not reference.holds_images
        self._size, self._count = "", 0

    def begin(self, device: torch.device, first: bool) -> None:
        """Forget the generated samples. The images that an ADM reference holds are looked at once, by the `first` rank:
        precision, recall and the kernel distance need features of real samples.
        """
        self.network.to(device)
        self.evaluation.to(device)
        self.evaluation.reset(real=False)
        if not self._seen and first:
            assert self.reference.path is not None
            files = open_samples(self.reference.path)
            with progress_bar("real images of the statistics", len(files)) as advance:
                for batch, _ in files.batches(64):
                    self.evaluation.update(batch.to(device), real=True)
                    advance(len(batch))
        self._seen = True

    def add(self, samples: Tensor) -> None:
        """Look at samples, uint8.

        Raises:
            ConfigError: clips of another length than those behind the statistics.
        """
        length = self.reference.facts.get("num_frames")
        if length is not None and self.network.takes_clips and samples.shape[1] != length:
            raise ConfigError(
                f"clips of {samples.shape[1]} frames, and statistics ({self.reference.path}) of clips of {length}; "
                "make both of one length, with num_frames"
            )
        self._size = f"{samples.shape[-1]}x{samples.shape[-2]}"
        self.evaluation.update(samples)

    def numbers(self) -> dict[str, float]:
        """Every number by its name."""
        found = self.evaluation.compute()
        self._count = int(found["count"])  # of all ranks
        return {f"{name}_frames" if self.frames and name == "count" else name: v for name, v in found.items()}

    def protocol(self) -> str:
        """What the numbers depend on, and what is to be thought of before they are compared."""
        facts, count = self.evaluation.facts, self._count
        text = f"{'Frames: f' if self.frames else 'F'}{self.evaluation.protocol[1:]}."
        if facts.get("reference_lossless") is False:
            text += f" The real samples were read from {facts['reference_container']}, which is lossy."
        if self._size and facts.get("reference_size", self._size) != self._size:
            text += f" The samples are {self._size}, the real ones {facts['reference_size']}."
        if count <= self.evaluation.dim:
            text += f" No more samples ({count}) than dimensions ({self.evaluation.dim}): distances are biased upwards."
        return text


@checked(constraints.known_reference, constraints.frames_of_clips, constraints.known_weights)
class FeatureReport(Report):
    """Distances between generated samples and the statistics of real ones, in the features of a named network.

    What is measured follows from the network and the statistics, see `metrics.suite.Evaluation`. Samples are rounded to
    bytes as they are when they are saved. A class-conditional network is asked for every class equally often, one that
    reads texts for the data's own validation captions, all different as long as there are such (see `data.prompts`).
    Numbers fall with `count`: compare equal counts only.

    Args:
        features: feature network: `inception` (FID, sFID, IS) or `efficientnet_lite0` (needs no download) for images,
            `i3d` (FVD), `c3d` (the Inception Score of clips) or `efficientnet_lite0_video` for clips.
        reference: statistics of real samples: a file of `python -m neural_rdm.stats`, or one that ADM, torch-fidelity
            or clean-fid published.
        count: generated samples: 50,000 for an FID, 2,048 clips for an FVD.
        features_path, features_sha256: of the network's weights where they are not to be downloaded; the hash where
            they are not the published ones.
        frame_features, frame_reference: for clips, a network and statistics of images: every frame is measured by
            itself as well; the names of these numbers say `_frames`.
        frame_features_path, frame_features_sha256: as above, of that network.
        clip: for networks that read texts, a CLIP model (hub name or folder): how well images fit their captions.

    Raises:
        ConfigError: networks of the wrong kind, or one without its statistics.
    """

    def __init__(
        self,
        features: ImageFeatures | ClipFeatures,
        reference: str | None = None,
        count: Annotated[int, at_least(2)] = 50_000,
        features_path: str | None = None,
        features_sha256: str | None = None,
        frame_features: ImageFeatures | None = None,
        frame_reference: str | None = None,
        frame_features_path: str | None = None,
        frame_features_sha256: str | None = None,
        clip: str | None = None,
    ) -> None:
        assert reference is not None  # see `constraints.known_reference`
        self.clips = NETWORKS[features].takes_clips
        self.features, self.reference, self.count = features, reference, count
        self.features_path, self.features_sha256 = features_path, features_sha256
        self.frame_features, self.frame_reference = frame_features, frame_reference
        self.frame_features_path, self.frame_features_sha256 = frame_features_path, frame_features_sha256
        self.clip = clip
        self._held: list[Held] = []
        self._pairs: tuple[CLIP, CLIPScore] | None = None

    @property
    def drawn(self) -> int:
        """`count`."""
        return self.count

    def with_count(self, count: int) -> FeatureReport:
        """The same report on `count` samples; network and statistics are read only once."""
        self.evaluations()
        report = copy.copy(self)
        report.count = count
        return report

    def check(self, data: DataModule, net: Backbone, pixels: bool) -> None:
        """Refuse samples that these networks cannot see; load the networks and statistics, so that they are there."""
        if not pixels:
            raise ConfigError(
                "metric=images and videos want pixels; these are latents, and no first_stage decodes them"
            )
        clips, network = len(data.sample_shape) == 4, NETWORKS[self.features]
        if clips != self.clips:
            kinds = ", ".join(name for name, network in NETWORKS.items() if network.takes_clips == clips)
            what = "clips" if clips else "images"
            raise ConfigError(f"metric.features={self.features} does not take {what}; choose one of {kinds}")
        if clips and not network.min_frames <= data.sample_shape[0] <= (network.max_frames or data.sample_shape[0]):
            bound = "at least " * (network.max_frames is None)
            raise ConfigError(f"metric.features={self.features} wants {bound}{network.min_frames} frames a clip")
        if self.clip is not None and net.context_dim is None:
            raise ConfigError(f"metric.clip={self.clip} compares images with texts, and this network reads none")
        self.evaluations()

    def evaluations(self) -> list[Held]:
        """The metrics, of whole samples and, if asked for, of frames; networks and statistics are read once.

        Raises:
            UserError: weights or statistics that are missing or do not fit each other.
        """
        if not self._held:
            network = feature_network(self.features, self.features_path, self.features_sha256)
            self._held = [Held(network, read_reference(self.reference, network))]
            if self.frame_features is not None:
                frames = feature_network(self.frame_features, self.frame_features_path, self.frame_features_sha256)
                assert self.frame_reference is not None
                self._held.append(Held(frames, read_reference(self.frame_reference, frames), frames=True))
            if self.clip is not None:
                model = CLIP(self.clip)
                self._pairs = model, CLIPScore(model.name)
        return self._held

    def rows(self, subject: Subject) -> Measured:
        """Draw, measure. The ranks share the drawing and add up what they saw."""
        shown, how = self._shown(subject)
        self._begin(subject.device, subject.writes)

        def use(x: Tensor, positions: range) -> None:
            texts = shown[positions.start : positions.stop] if subject.text is not None and shown is not None else None
            self._add(to_bytes(x if subject.decode is None else subject.decode(x)), texts)

        each = self.count if subject.text is None else TEXTS
        for start in range(0, self.count, each):
            part = range(start, min(start + each, self.count))
            texts = [] if shown is None else shown[part.start : part.stop]
            if subject.text is not None:
                subject.text.remember(subject.data.tokens([str(text) for text in texts]))
            subject.draw(condition_of(texts, subject.text), part, use)
        line = f"{subject.protocol(f'{self.count} {how}')} Rounding: {ROUNDING}."
        facts = {**subject.facts(), "rounding": ROUNDING, "count": self.count}
        if subject.text is not None and shown is not None:
            facts["captions"] = len(set(shown))  # the others are the same once more
        return self._measured(line, facts)

    def rows_of_files(
        self, files: SampleFiles, batch_size: int, device: torch.device, line: str, facts: dict[str, Any] | None = None
    ) -> Measured:
        """See `Report`."""
        if self.clip is not None:
            raise ConfigError("metric.clip needs the texts of the samples: pass run=DIR, or leave it out for samples=")
        if (files.kind == "clip") != self.clips:
            kinds = ", ".join(n for n, network in NETWORKS.items() if network.takes_clips == (files.kind == "clip"))
            raise ConfigError(f"{files.path} holds {files.kind}s; choose metric.features from {kinds}")
        self._begin(device)
        with progress_bar("measuring", len(files)) as advance:
            for batch, _ in files.batches(batch_size):
                self._add(batch.to(device))
                advance(len(batch))
        counts = [] if files.labels is None else np.unique(files.labels, return_counts=True)[1].tolist()
        classes = f" of {len(counts)} classes, {min(counts)} to {max(counts)} each," if counts else ""
        kept, mark = files.container, {} if files.container.lossless else {"container": str(files.container)}
        how = f"sha256 {files.fingerprint[:8]}; kept as {kept}"
        how += "" if kept.lossless else ", whose loss is a part of these numbers"
        line = f"{len(files)} samples{classes} of {files.path} ({how}): {line}"
        facts = {**(facts or {}), "count": len(files), "samples_hash": files.fingerprint, **kept._asdict()}
        return self._measured(line, facts, mark)

    def _shown(self, subject: Subject) -> tuple[Sequence[int | str] | None, str]:
        """What each sample shows, and the words for it."""
        if subject.text is not None:
            prompts = subject.data.prompts(self.count) or []
            words = f"samples of {len(prompts)} different captions ({subject.data.prompts_of})"
            if self.count > len(prompts):
                words += f", up to {-(-self.count // max(1, len(prompts)))} of each, for there are no more"
            return balanced(prompts, self.count), words
        classes = subject.net.num_classes
        if classes > 0:
            exact = "" if self.count % classes == 0 else ", the first ones once more"
            return balanced(range(classes), self.count), f"samples, {classes} classes equally often{exact}"
        return None, "unconditional samples"

    def _begin(self, device: torch.device, first: bool = True) -> None:
        for held in self.evaluations():
            held.begin(device, first)
        if self._pairs is not None:
            for part in self._pairs:
                part.to(device)
            self._pairs[1].reset()

    def _add(self, samples: Tensor, texts: Sequence[Any] | None = None) -> None:
        """Samples as bytes [B, C, H, W] or [B, F, C, H, W], of one channel or three, and the texts that they show."""
        if samples.shape[-3] not in (1, 3):
            raise ConfigError(f"samples of {samples.shape[-3]} channels are no pictures; leave the metric out: ~metric")
        samples = samples.expand(*samples.shape[:-3], 3, *samples.shape[-2:])
        for held in self.evaluations():
            held.add(samples)
        if self._pairs is not None and texts is not None:
            model, score = self._pairs
            score.update(*model(samples, texts))

    def _measured(self, line: str, facts: dict[str, Any], mark: Mapping[str, str] | None = None) -> Measured:
        """The row, the protocol and the facts of the samples that were added, which `line` and `facts` describe; `mark`
        stands in the row, for tables that show no protocol.
        """
        row: dict[str, Any] = {"name": GENERATED, **(mark or {})}
        lines, held = [], self.evaluations()
        try:
            with progress_bar("computing the distances", None):
                for each in held:
                    row |= each.numbers()
                    lines.append(each.protocol())
        except ValueError as error:  # fewer than two samples
            raise DataError(str(error)) from error
        if self._pairs is not None:
            model, score = self._pairs
            row[score.name] = float(score.compute())
            lines.append(f"CLIP score: {model.name} (weights {model.weights_hash[:8]}), times 100.")
        facts = facts | held[0].evaluation.facts
        facts |= {f"{name}_frames": value for each in held[1:] for name, value in each.evaluation.facts.items()}
        return [row], " ".join([*lines, line]), facts
