"""Every configuration key of the project, its type and its range, without importing anything heavy.

A node of the configuration that carries `_target_` is checked against the class that `TARGETS` gives for it; a test
compares each of these classes with the signature of its target, so the two cannot drift apart. `check` methods hold the
rules that tie several keys together. Keys, types and ranges are applied by `core.config.validate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from neural_rdm.core import noise
from neural_rdm.core.fields import Problem, at_least, between, node, one_of, positive
from neural_rdm.core.schema_data import UCF101, Captioned, Clips, Digits, DigitsVideo, ImageFolder, Synthetic, TarShards
from neural_rdm.core.schema_networks import DiT, Latte, UNet, UViT

# OmegaConf 2.3 reads the annotations of these classes at run time and does not know `X | None`.


@dataclass
class Residual:
    """What every residual rule has; a rule of another package, `PACKAGE.MODULE.CLASS`, checks its options itself."""

    _target_: str
    rule: str = field()
    gamma: float = at_least(0)


@dataclass
class Gates(Residual):
    granularity: str = one_of("channel", "scalar")
    time_conditioned: bool = field()


@dataclass
class Gated(Gates):
    beta_form: str = one_of("additive", "linear")


#: residual.rule -> what its node may hold
RULES: dict[str, type] = {"gated": Gated, "adaln": Gates, "skip": Gates, "resnet": Residual, "rezero": Gates}


@dataclass
class DDPM:
    _target_: str
    schedule: str = one_of("linear", "scaled_linear", "cosine")
    num_timesteps: int = positive()
    beta_start: Optional[float] = between(0, 1)
    beta_end: Optional[float] = between(0, 1)
    prediction: str = one_of("epsilon", "v", "x0")

    def check(self) -> list[Problem]:
        if self.schedule == "cosine":
            nulls = " ".join(f"diffusion.process.{end}=null" for end in ("beta_start", "beta_end"))
            chosen = self.beta_start is not None or self.beta_end is not None
            return [("schedule", f"cosine has no betas to choose; pass {nulls}, or diffusion=cosine")] if chosen else []
        own = noise.ENDS[self.schedule]
        first = own[0] if self.beta_start is None else self.beta_start
        last = own[1] if self.beta_end is None else self.beta_end
        if not 0 < first <= last < 1:
            return [
                (
                    "beta_end",
                    f"{last} and diffusion.process.beta_start={first} must be 0 < beta_start <= beta_end < 1",
                )
            ]
        return []


@dataclass
class LearnedTimes:
    _target_: str
    bins: int = at_least(2)
    uniform: float = between(0, 1)

    def check(self) -> list[Problem]:
        if self.uniform == 0:
            return [
                ("uniform", "0 must be above 0: without a uniform share the weights of rare timesteps are unbounded")
            ]
        return []


@dataclass
class DDPMObjective:
    _target_: str
    process: Any = node()
    loss: str = one_of("hybrid", "simple")
    min_snr_gamma: Optional[float] = positive()
    learned_times: Any = node(optional=True)


@dataclass
class Flow:
    _target_: str
    num_timesteps: int = positive()


@dataclass
class FlowObjective:
    _target_: str
    process: Any = node()
    logit_mean: float = field()
    logit_std: Optional[float] = positive()


@dataclass
class Sampler:
    _target_: str
    name: str = one_of("ddim", "dpm++", "ddpm", "euler", "heun")
    steps: int = between(1, 1000)
    eta: float = between(0, 1)
    cfg_scale: float = at_least(0)
    channels: Any = field()
    interval: Optional[list[float]] = field()
    steps_offset: int = one_of(0, 1)

    def check(self) -> list[Problem]:
        problems = []
        if self.channels != "all" and (not isinstance(self.channels, int) or self.channels < 1):
            problems.append(("channels", f"{self.channels} is neither `all` nor a number of channels, such as 3"))
        if self.interval is not None and (len(self.interval) != 2 or not self.interval[0] < self.interval[1]):
            problems.append(("interval", f"{list(self.interval)} is not two timesteps [low, high], such as [200, 700]"))
        return problems


@dataclass
class IdentityStage:
    _target_: str


@dataclass
class AutoencoderStage:
    """KL, VQ and Tiny."""

    _target_: str
    path: str
    subfolder: Optional[str]
    scale: Optional[float] = positive()
    shift: float = field()
    downsample: int = positive()
    channels: int = positive()
    dtype: str = one_of("float32", "bfloat16", "float16")
    tile: bool = field()
    chunk: int = positive()

    def check(self) -> list[Problem]:
        if self.tile and not self._target_.endswith(".KL"):
            return [("tile", "only a KL autoencoder has tiles; pass tile=false and a smaller chunk")]
        return []


@dataclass
class TextEncoder:
    _target_: str
    kind: str = one_of("clip", "t5", "minilm")
    path: Optional[str] = field()
    dim: int = positive()
    max_length: int = positive()
    cache: Optional[str] = field()
    keep_padding: bool = field()


@dataclass
class Optimizer:
    _target_: str
    lr: float = positive()
    weight_decay: float = at_least(0)
    betas: list[float] = field()
    eps: float = positive()
    gate_lr_scale: float = at_least(0)
    clip: Optional[float] = positive()
    clip_after: int = at_least(0)
    warmup_steps: int = at_least(0)
    skip_nonfinite: int = at_least(0)
    schedule: str = one_of("constant", "cosine")

    def check(self) -> list[Problem]:
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            return [("betas", f"{list(self.betas)} is not two numbers in [0, 1), e.g. [0.9,0.999]")]
        return []


@dataclass
class Strategy:
    """`single`: no options."""

    _target_: str


@dataclass
class DDP:
    _target_: str
    static_graph: bool
    timeout_minutes: float = positive()


@dataclass
class FSDP2:
    _target_: str
    reshard_after_forward: bool


@dataclass
class DeepSpeed:
    _target_: str
    stage: int = one_of(2, 3)
    offload_optimizer: bool = field()


@dataclass
class Trainer:
    accelerator: str = one_of("auto", "cpu", "gpu", "cuda", "mps")
    devices: int = positive()
    num_nodes: int = positive()
    precision: str = one_of("auto", "32-true", "bf16-mixed", "16-mixed")
    max_steps: int = positive()
    accumulate_grad_batches: int = positive()
    compile: bool = field()
    num_threads: Optional[int] = positive()


@dataclass
class Pretrained:
    path: Optional[str] = field()
    reinit: list[str] = field()


@dataclass
class RunData:
    root: Optional[str] = field()
    latents: Optional[str] = field()


@dataclass
class Checkpoint:
    every_n_steps: int = positive()
    keep: int = positive()


@dataclass
class EMA:
    _target_: str
    decay: float = between(0, 1)
    warmup: bool = field()
    further: list[float] = field()


@dataclass
class SampleGrid:
    _target_: str
    every_n_steps: int = positive()
    per_class: int = positive()
    max_classes: int = positive()


@dataclass
class Validation:
    _target_: str
    every_n_steps: int = positive()


@dataclass
class SensitivityLog:
    _target_: str
    every_n_steps: int = positive()
    time_bins: int = between(0, 64)
    alarm: Optional[float] = between(1, 1e9)
    live: bool = field()


@dataclass
class EvaluationLog:
    _target_: str
    every_n_steps: int = positive()
    count: int = at_least(2)
    cfg_scale: Optional[float] = at_least(0)


@dataclass
class Throughput:
    _target_: str
    every_n_steps: int = positive()


@dataclass
class DigitsReport:
    _target_: str
    per_class: int = positive()


@dataclass
class FeatureReport:
    """metric=images and metric=videos."""

    _target_: str
    features: str = one_of("inception", "efficientnet_lite0", "i3d", "efficientnet_lite0_video")
    reference: Optional[str] = field()
    count: int = at_least(2)
    features_path: Optional[str] = field()
    features_sha256: Optional[str] = field()
    frame_features: Optional[str] = one_of("inception", "efficientnet_lite0")
    frame_reference: Optional[str] = field()
    frame_features_path: Optional[str] = field()
    frame_features_sha256: Optional[str] = field()
    clip: Optional[str] = field()

    def check(self) -> list[Problem]:
        if self.reference is None:
            return [
                (
                    "reference",
                    "has no value: pass the statistics of real samples, a file that "
                    f"`python -m neural_rdm.stats data=... features={self.features}` writes",
                )
            ]
        if (self.frame_features is None) != (self.frame_reference is None):
            return [("frame_features", "goes with frame_reference, the statistics of real frames: pass both or none")]
        return []


@dataclass
class CSVLogger:
    _target_: str


@dataclass
class TensorBoardLogger:
    _target_: str
    name: str
    version: str


@dataclass
class WandbLogger:
    _target_: str
    project: str
    offline: bool
    resume: str


#: `_target_` -> what its node may hold
TARGETS: dict[str, type] = {
    "neural_rdm.backbones.dit.DiT": DiT,
    "neural_rdm.backbones.latte.Latte": Latte,
    "neural_rdm.backbones.unet.UNet": UNet,
    "neural_rdm.backbones.uvit.UViT": UViT,
    "neural_rdm.residual.Residual": Residual,
    "neural_rdm.diffusion.objectives.DDPMObjective": DDPMObjective,
    "neural_rdm.diffusion.objectives.FlowObjective": FlowObjective,
    "neural_rdm.diffusion.process.DDPM": DDPM,
    "neural_rdm.diffusion.process.Flow": Flow,
    "neural_rdm.diffusion.times.LearnedTimes": LearnedTimes,
    "neural_rdm.diffusion.samplers.Sampler": Sampler,
    "neural_rdm.latents.first_stage.Identity": IdentityStage,
    "neural_rdm.latents.first_stage.KL": AutoencoderStage,
    "neural_rdm.latents.first_stage.VQ": AutoencoderStage,
    "neural_rdm.latents.first_stage.Tiny": AutoencoderStage,
    "neural_rdm.data.digits.Digits": Digits,
    "neural_rdm.data.digits_text.DigitsText": Digits,
    "neural_rdm.data.digits_video.DigitsVideo": DigitsVideo,
    "neural_rdm.data.synthetic.Synthetic": Synthetic,
    "neural_rdm.data.image_folder.ImageFolder": ImageFolder,
    "neural_rdm.data.imagenet.ImageNet": ImageFolder,
    "neural_rdm.conditioning.text.TextEncoder": TextEncoder,
    "neural_rdm.data.captions.COCO": Captioned,
    "neural_rdm.data.captions.JourneyDB": Captioned,
    "neural_rdm.data.tar_shards.TarShards": TarShards,
    "neural_rdm.data.video.SkyTimelapse": Clips,
    "neural_rdm.data.video.TaichiHD": Clips,
    "neural_rdm.data.video.UCF101": UCF101,
    "neural_rdm.training.optim.Optimizer": Optimizer,
    "neural_rdm.training.parallel.single": Strategy,
    "neural_rdm.training.parallel.ddp": DDP,
    "neural_rdm.training.parallel.fsdp2": FSDP2,
    "neural_rdm.training.parallel.deepspeed": DeepSpeed,
    "neural_rdm.training.ema.EMA": EMA,
    "neural_rdm.training.sampling.SampleGrid": SampleGrid,
    "neural_rdm.training.validation.Validation": Validation,
    "neural_rdm.training.sensitivity.SensitivityLog": SensitivityLog,
    "neural_rdm.training.recording.EvaluationLog": EvaluationLog,
    "neural_rdm.training.logging.Throughput": Throughput,
    "neural_rdm.training.evaluation.DigitsReport": DigitsReport,
    "neural_rdm.training.evaluation.DigitsTextReport": DigitsReport,
    "neural_rdm.training.evaluation.DigitsVideoReport": DigitsReport,
    "neural_rdm.training.features.FeatureReport": FeatureReport,
    "neural_rdm.training.logging.CSVLogger": CSVLogger,
    "lightning.pytorch.loggers.TensorBoardLogger": TensorBoardLogger,
    "lightning.pytorch.loggers.WandbLogger": WandbLogger,
}
