"""The primary configuration of each command: its top-level keys and ranges. What a node below them may hold is said by
the class that it names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from neural_rdm.config.primary_networks import WEIGHTS, Convert, Deepen, Inspect, Weights
from neural_rdm.config.primary_train import Sweeping, Train
from neural_rdm.config.reader import Node
from neural_rdm.core.arguments import (
    Accelerator,
    Count,
    Natural,
    Positive,
    Problem,
    Seed,
    Verbatim,
    at_least,
    between,
)

#: the feature networks of `metrics.networks` that take images, and those that take clips
ImageFeatures = Literal["inception", "efficientnet_lite0"]
ClipFeatures = Literal["i3d", "c3d", "efficientnet_lite0_video"]


def known_weights(features: str, features_path: str | None, features_sha256: str | None) -> Problem | None:
    """A feature network that nobody publishes under a hash that is known here is named with its file and hash."""
    if features != "c3d" or None not in (features_path, features_sha256):
        return None
    said = "has no published file that is known here: pass {at}features_path=FILE, a C3D fine-tuned on UCF-101, and"
    return Problem("features", f"{said} {{at}}features_sha256=HEX, what it hashes to", features)


@dataclass
class RunData:
    """Where the data of a run are now."""

    root: str | None
    latents: str | None


@dataclass
class OfRun:
    """What every command asks that runs a trained network; `runs.load.inherit` refuses a missing run."""

    run: str | None
    #: the run's experiment, which names the output folder; filled in, never typed
    experiment: str | None
    weights: Weights
    seed: Seed
    batch_size: Count
    accelerator: Accelerator
    #: where the run's data are now
    data: RunData


@dataclass
class Sample(OfRun):
    """The primary configuration of `python -m neural_rdm.sample`."""

    per_class: Count
    count: Count | None
    classes: list[int] | None
    prompts: list[str] | None
    files: list[str]
    fps: Count
    precision: Literal["auto", "32-true", "bf16-mixed"]
    compile: bool
    sampler: Node

    def check(self) -> Problem | None:
        """Refuse kinds of files that there are not."""
        if unknown := [kind for kind in self.files if kind not in ("npz", "png", "gif", "mp4", "datasets")]:
            return Problem(
                "files", f"{unknown[0]} is not one of npz, png, gif, mp4, datasets; pass for example files=[npz,png]"
            )
        return None


@dataclass
class Evaluate(OfRun):
    """The primary configuration of `python -m neural_rdm.evaluate`."""

    samples: str | None
    num_frames: Count | None
    frame_interval: Count
    frame_folders: bool
    guidance: list[float] | None
    averages: list[str] | None
    sampler: Node | None
    metric: Node

    def check(self) -> Problem | None:
        """Refuse settings that are none."""
        if self.guidance is not None and (not self.guidance or min(self.guidance) < 0):
            return Problem("guidance", f"{list(self.guidance)} is not a list of cfg_scales, such as [1,1.5,4]")
        wrong = [name for name in self.averages or [] if not re.fullmatch(WEIGHTS, name)]
        if wrong or self.averages == []:
            return Problem("averages", f"{wrong or '[]'}: give weights such as [ema,raw,ema-0.999]")
        if self.samples is None and (self.num_frames is not None or self.frame_interval != 1 or self.frame_folders):
            what = "frame_interval and frame_folders are of samples=; a run's clips are as its network draws them"
            return Problem("num_frames", what)
        if self.samples is not None and (self.guidance or self.averages):
            return Problem("samples", "are measured as they are; guidance and averages are of a run")
        return None


@dataclass
class Lens(OfRun):
    """The primary configuration of `python -m neural_rdm.lens`."""

    samples: Count
    times: list[float]

    def check(self) -> Problem | None:
        """Refuse noise levels that are no shares."""
        if not self.times or not all(0 <= share <= 1 for share in self.times):
            return Problem(
                "times", f"{list(self.times)} must be shares of the timesteps in [0, 1], such as [0.1,0.5,0.9]"
            )
        return None


@dataclass
class Demo(OfRun):
    """The primary configuration of `python -m neural_rdm.demo`."""

    port: Annotated[int, between(0, 65535)]
    count: Annotated[int, between(1, 16)]
    samples: Count
    sampler: Node


@dataclass
class Report:
    """The primary configuration of `python -m neural_rdm.report`."""

    runs: Verbatim | None
    base: Verbatim | None
    best_by: str | None
    quality: Positive | None
    published: bool
    ep_fid: Positive | None

    def check(self) -> Problem | None:
        """Refuse to report on nothing."""
        if self.runs is None and not self.published:
            return Problem("runs", "has no value; pass runs=DIR, or published=true for the paper's own tables")
        for key in ("ep_fid", "base", "best_by", "quality"):
            if self.runs is None and getattr(self, key) is not None:
                return Problem(key, "is of runs; pass runs=DIR as well")
        return None


@dataclass
class Encode:
    """The primary configuration of `python -m neural_rdm.encode`."""

    #: the experiment or data set, which names the output folder; filled in, never typed
    experiment: str | None
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, int | None]
    data: Node
    first_stage: Node
    condition: Node | None
    dtype: Literal["float16", "bfloat16", "float32"]
    shard_size: Count | None
    accelerator: Accelerator

    def check(self) -> Problem | None:
        """Refuse what there is nothing to encode of."""
        if "source" not in self.data:
            return Problem("data", "these data are no files of pictures; choose for example data=imagenet")
        if self.data["source"] != "pixels":
            return Problem("data.source", "latents are made of pixels; leave data.source out")
        if "path" not in self.first_stage:
            return Problem(
                "first_stage", "nothing is encoded without a first stage; choose for example first_stage=kl_f8"
            )
        return None


@dataclass
class OfData:
    """What every command asks that looks at a data set without a network."""

    data: Node
    #: the choice of `data`, which names the output folder; filled in, never typed
    dataset: str
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, int | None]
    seed: Seed

    def check(self) -> Problem | None:
        """Refuse latents: they are looked at with the network that made them."""
        if self.data.get("source") == "latents":
            return Problem("data.source", "this command looks at pixels; leave data.source out")
        return None


@dataclass
class Preview(OfData):
    """The primary configuration of `python -m neural_rdm.preview`."""

    split: Literal["train", "val"]
    count: Count
    fps: Count


@dataclass
class Prepare(OfData):
    """The primary configuration of `python -m neural_rdm.prepare`."""

    condition: Node | None
    decode: Natural
    subset: Count | None
    subset_dir: str | None
    copy: bool

    def check(self) -> Problem | None:
        """A subset needs a size and a place."""
        if (self.subset is None) != (self.subset_dir is None):
            given, other = ("subset", "subset_dir=DIR") if self.subset_dir is None else ("subset_dir", "subset=N")
            return Problem(given, f"a small part of a data set needs its size and its place; pass {other} as well")
        return super().check()


@dataclass
class Stats:
    """The primary configuration of `python -m neural_rdm.stats`."""

    #: the choice of `data`, or the name of the samples; names the output folder; filled in, never typed
    dataset: str | None
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, int | None]
    data: Node | None
    split: Literal["train", "val"]
    samples: str | None
    num_frames: Count | None
    frame_interval: Count
    frame_folders: bool
    features: ImageFeatures | ClipFeatures
    features_path: str | None
    features_sha256: str | None
    count: Annotated[int, at_least(2)] | None
    keep_features: Count | None
    seed: Seed
    batch_size: Count
    accelerator: Accelerator
    out: str

    def check(self) -> Problem | None:
        """One kind of samples, and a name that ends as it must."""
        if (self.data is None) == (self.samples is None):
            return Problem("data", "statistics of what? Pass data=NAME data.root=DIR, or samples=FILE.npz or a folder")
        if not self.out.endswith(".npz") or "/" in self.out or self.out == ".npz":
            return Problem("out", f"{self.out} is no name of a file .npz; choose the folder with hydra.run.dir=DIR")
        return known_weights(self.features, self.features_path, self.features_sha256)


#: primary configuration -> its class
COMMANDS: dict[str, type] = {
    "train": Train,
    "sweep": Sweeping,
    "sample": Sample,
    "evaluate": Evaluate,
    "lens": Lens,
    "inspect": Inspect,
    "demo": Demo,
    "report": Report,
    "deepen": Deepen,
    "convert": Convert,
    "encode": Encode,
    "preview": Preview,
    "prepare": Prepare,
    "stats": Stats,
}
