"""The primary configuration of each command: its top-level keys and ranges (`schema` has the nodes below them)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Optional

from neural_rdm.core.fields import Problem, at_least, between, matching, node, nodes, one_of, positive, verbatim
from neural_rdm.core.schema import Checkpoint, Pretrained, RunData, Trainer

WEIGHTS = r"ema|raw|ema-[0-9][0-9.e-]*"


def _weights() -> Any:
    """Which weights of a checkpoint a command uses."""
    return matching(WEIGHTS, "ema, raw, or ema-DECAY for one of callbacks.ema.further")


@dataclass
class Train:
    """The primary configuration of `python -m neural_rdm.train`."""

    seed: int = between(0, 2**63 - 1)
    log_every_n_steps: int = positive()
    resume: Optional[str] = field()
    #: of a resume: go on although the data are not as they were when the run began
    accept_data: bool = field()
    #: the group choices that made this configuration; written into a run's config.yaml, never typed
    choices: Optional[dict[str, str]] = field()
    pretrained: Pretrained = field()
    train_only: str = one_of("all", "gates", "gates+norms")
    gamma: float = at_least(0)
    target: str = one_of("isometry", "floor")
    supervision: str = one_of("local", "exact")
    checkpoint: Checkpoint = field()
    trainer: Trainer = field()
    backbone: Any = node()
    residual: Any = node()
    diffusion: Any = node()
    first_stage: Any = node()
    condition: Any = node(optional=True)
    data: Any = node()
    optimizer: Any = node()
    strategy: Any = node()
    sampler: Any = node()
    metric: Any = node(optional=True)
    callbacks: Optional[dict[str, Any]] = nodes()
    logger: Optional[dict[str, Any]] = nodes()


@dataclass
class OfRun:
    """What every command asks that runs a trained network; `cli.runs.inherit` refuses a missing run."""

    run: Optional[str]
    #: the run's experiment, which names the output folder; filled in, never typed
    experiment: Optional[str]
    weights: str = _weights()
    seed: int = between(0, 2**63 - 1)
    batch_size: int = positive()
    accelerator: str = one_of("auto", "cpu", "gpu")
    #: where the run's data are now
    data: RunData = field()


@dataclass
class Sample(OfRun):
    """The primary configuration of `python -m neural_rdm.sample`."""

    per_class: int = positive()
    count: Optional[int] = positive()
    classes: Optional[list[int]] = field()
    prompts: Optional[list[str]] = field()
    files: list[str] = field()
    fps: int = positive()
    sampler: Any = node()

    def check(self) -> list[Problem]:
        """Refuse kinds of files that there are not."""
        if unknown := [kind for kind in self.files if kind not in ("npz", "png", "gif", "mp4")]:
            return [("files", f"{unknown[0]} is not one of npz, png, gif, mp4; pass for example files=[npz,png]")]
        return []


@dataclass
class Evaluate(OfRun):
    """The primary configuration of `python -m neural_rdm.evaluate`."""

    samples: Optional[str] = field()
    num_frames: Optional[int] = positive()
    frame_interval: int = positive()
    frame_folders: bool = field()
    guidance: Optional[list[float]] = field()
    averages: Optional[list[str]] = field()
    sampler: Any = node(optional=True)
    metric: Any = node()

    def check(self) -> list[Problem]:
        """Refuse settings that are none."""
        if self.guidance is not None and (not self.guidance or min(self.guidance) < 0):
            return [("guidance", f"{list(self.guidance)} is not a list of cfg_scales, such as [1,1.5,4]")]
        wrong = [name for name in self.averages or [] if not re.fullmatch(WEIGHTS, name)]
        if wrong or self.averages == []:
            return [("averages", f"{wrong or '[]'}: give weights such as [ema,raw,ema-0.999]")]
        if self.samples is None and (self.num_frames is not None or self.frame_interval != 1 or self.frame_folders):
            what = "frame_interval and frame_folders are of samples=; a run's clips are as its network draws them"
            return [("num_frames", what)]
        if self.samples is not None and (self.guidance or self.averages):
            return [("samples", "are measured as they are; guidance and averages are of a run")]
        return []


@dataclass
class Lens(OfRun):
    """The primary configuration of `python -m neural_rdm.lens`."""

    samples: int = positive()
    times: list[float] = field()

    def check(self) -> list[Problem]:
        """Refuse noise levels that are no shares."""
        if not self.times or not all(0 <= share <= 1 for share in self.times):
            return [("times", f"{list(self.times)} must be shares of the timesteps in [0, 1], such as [0.1,0.5,0.9]")]
        return []


@dataclass
class Report:
    """The primary configuration of `python -m neural_rdm.report`."""

    runs: Optional[str] = verbatim()
    published: bool = field()
    ep_fid: Optional[float] = positive()

    def check(self) -> list[Problem]:
        """Refuse to report on nothing."""
        if self.runs is None and not self.published:
            return [("runs", "has no value; pass runs=DIR, or published=true for the paper's own tables")]
        if self.runs is None and self.ep_fid is not None:
            return [("ep_fid", "is measured on runs; pass runs=DIR as well")]
        return []


@dataclass
class Deepen:
    """The primary configuration of `python -m neural_rdm.deepen`."""

    checkpoint: str
    #: see OfRun
    experiment: Optional[str]
    depth: int = positive()
    placement: str = one_of("interleave", "append", "prepend", "middle")
    operator: str = one_of("identity", "duplicate", "stack", "halved")
    max_steps: Optional[int] = positive()


@dataclass
class Encode:
    """The primary configuration of `python -m neural_rdm.encode`."""

    #: the experiment or data set, which names the output folder; filled in, never typed
    experiment: Optional[str]
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, Optional[int]] = field()
    data: Any = node()
    first_stage: Any = node()
    condition: Any = node(optional=True)
    dtype: str = one_of("float16", "bfloat16", "float32")
    shard_size: Optional[int] = positive()
    accelerator: str = one_of("auto", "cpu", "gpu")

    def check(self) -> list[Problem]:
        """Refuse what there is nothing to encode of."""
        if "source" not in self.data:
            return [("data", "these data are no files of pictures; choose for example data=imagenet")]
        if self.data["source"] != "pixels":
            return [("data.source", "latents are made of pixels; leave data.source out")]
        if "path" not in self.first_stage:
            return [("first_stage", "nothing is encoded without a first stage; choose for example first_stage=kl_f8")]
        return []


@dataclass
class Convert:
    """The primary configuration of `python -m neural_rdm.convert`."""

    run: str
    #: see OfRun
    experiment: Optional[str]
    to: str = one_of("official", "diffusers")
    weights: str = _weights()


@dataclass
class OfData:
    """What every command asks that looks at a data set without a network."""

    #: the choice of `data`, which names the output folder; filled in, never typed
    dataset: str
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, Optional[int]] = field()
    data: Any = node()
    seed: int = between(0, 2**63 - 1)

    def check(self) -> list[Problem]:
        """Refuse latents: they are looked at with the network that made them."""
        if self.data.get("source") == "latents":
            return [("data.source", "this command looks at pixels; leave data.source out")]
        return []


@dataclass
class Preview(OfData):
    """The primary configuration of `python -m neural_rdm.preview`."""

    split: str = one_of("train", "val")
    count: int = positive()
    fps: int = positive()


@dataclass
class Prepare(OfData):
    """The primary configuration of `python -m neural_rdm.prepare`."""

    condition: Any = node(optional=True)
    decode: int = at_least(0)
    subset: Optional[int] = positive()
    subset_dir: Optional[str] = field()
    copy: bool = field()

    def check(self) -> list[Problem]:
        """A subset needs a size and a place."""
        if (self.subset is None) != (self.subset_dir is None):
            given, other = ("subset", "subset_dir=DIR") if self.subset_dir is None else ("subset_dir", "subset=N")
            return [(given, f"a small part of a data set needs its size and its place; pass {other} as well")]
        return super().check()


@dataclass
class Stats:
    """The primary configuration of `python -m neural_rdm.stats`."""

    #: the choice of `data`, or the name of the samples; names the output folder; filled in, never typed
    dataset: Optional[str]
    #: what a network would say of its input, for the data sets that ask it
    backbone: dict[str, Optional[int]] = field()
    data: Any = node(optional=True)
    split: str = one_of("train", "val")
    samples: Optional[str] = field()
    num_frames: Optional[int] = positive()
    frame_interval: int = positive()
    frame_folders: bool = field()
    features: str = one_of("inception", "i3d", "efficientnet_lite0", "efficientnet_lite0_video")
    features_path: Optional[str] = field()
    features_sha256: Optional[str] = field()
    count: Optional[int] = at_least(2)
    keep_features: Optional[int] = positive()
    seed: int = between(0, 2**63 - 1)
    batch_size: int = positive()
    accelerator: str = one_of("auto", "cpu", "gpu")
    out: str = field()

    def check(self) -> list[Problem]:
        """One kind of samples, and a name that ends as it must."""
        if (self.data is None) == (self.samples is None):
            return [("data", "statistics of what? Pass data=NAME data.root=DIR, or samples=FILE.npz or a folder")]
        if not self.out.endswith(".npz") or "/" in self.out or self.out == ".npz":
            return [("out", f"{self.out} is no name of a file .npz; choose the folder with hydra.run.dir=DIR")]
        return []


#: primary configuration -> its class
COMMANDS: dict[str, type] = {
    "train": Train,
    "sample": Sample,
    "evaluate": Evaluate,
    "lens": Lens,
    "report": Report,
    "deepen": Deepen,
    "convert": Convert,
    "encode": Encode,
    "preview": Preview,
    "prepare": Prepare,
    "stats": Stats,
}
