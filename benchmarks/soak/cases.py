"""The commands that are injured, as small as they can be: seconds each, and every part that writes is on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

#: a run of eight steps that saves every second, and keeps two
TRAIN = (
    "backbone.depth=1",
    "backbone.hidden_size=16",
    "backbone.num_heads=2",
    "data.batch_size=8",
    "sampler.steps=2",
    "callbacks.samples.per_class=1",
    "callbacks.samples.max_classes=2",
    "trainer.max_steps=8",
    "checkpoint.every_n_steps=2",
    "log_every_n_steps=1",
    "callbacks.validation.every_n_steps=4",
    "callbacks.samples.every_n_steps=4",
    "data.limit=64",
    "logger=csv",
)
PLAIN = (*TRAIN, "~metric", "~callbacks.sensitivity")
DDP = (*PLAIN, "strategy=ddp", "trainer.devices=2")
FSDP2 = (*PLAIN, "strategy=fsdp2", "trainer.devices=2", "checkpoint.sharded=true", "checkpoint.async=true")
#: what latents and pictures of `inputs` need
STAGE = ("first_stage=kl_f8", "first_stage.path={inputs}/stage", "first_stage.downsample=2", "first_stage.scale=0.5")
PICTURES = ("data=image_folder", "data.root={inputs}/pictures", "data.image_size=16")
SAMPLE = ("run={inputs}/run", "count=12", "batch_size=2", "files=[npz,png]")
ENCODE = (*PICTURES, *STAGE, "shard_size=2")
STATS = (*PICTURES, "features=efficientnet_lite0", "keep_features=4", "batch_size=2", "accelerator=cpu")
LATENT_NET = ("backbone.input_size=8", "backbone.in_channels=4", "backbone.num_classes=2", "data.batch_size=4")


@dataclass(frozen=True)
class Case:
    """A command.

    Attributes:
        args: `{inputs}` stands for the folder of `make_inputs`.
        weight: how often it is drawn, beside the others.
        needs: the folder of the inputs that it reads while it works.
        has: "ranks" or "workers", processes of its own that can be killed.
        outside: how many of it torchrun starts.
    """

    name: str
    module: str
    args: tuple[str, ...]
    weight: float = 1.0
    needs: str = ""
    has: str = ""
    outside: int = 0

    @property
    def trains(self) -> bool:
        """Whether it is one run of training."""
        return self.module == "train"

    def line(self, inputs: Path, folder: str = "run") -> list[str]:
        """Its arguments, for a folder to write to."""
        key = "hydra.sweep.dir" if self.module == "sweep" else "hydra.run.dir"
        return [*(arg.replace("{inputs}", str(inputs)) for arg in self.args), f"{key}={folder}"]

    def again(self, inputs: Path, folder: Path) -> list[str]:
        """What a person types after it was stopped: the same, or for a run that has begun `resume=`."""
        if self.trains and (folder / "config.yaml").is_file():
            return [f"resume={folder.name}"]
        return self.line(inputs, folder.name)


CASES = (
    Case("train", "train", PLAIN, 3),
    Case("train, accumulation", "train", (*PLAIN, "trainer.accumulate_grad_batches=2"), 2),
    Case("train, workers", "train", (*PLAIN, "data.num_workers=2"), 2, has="workers"),
    Case("train, checkpoints written beside it", "train", (*PLAIN, "checkpoint.async=true"), 2),
    Case("train, ddp 2", "train", DDP, 2, has="ranks"),
    Case("train, fsdp2 2", "train", FSDP2, 1.5, has="ranks"),
    Case("train, with metric and sensitivities", "train", (*TRAIN, "metric.per_class=1"), 0.5),
    Case(
        "train, from latents",
        "train",
        (*PLAIN, *PICTURES, *STAGE, *LATENT_NET, "data.source=latents", "data.latents={inputs}/latents"),
        1.5,
        needs="latents",
        has="workers",
    ),
    Case("train, from pictures", "train", (*PLAIN, *PICTURES, *STAGE, *LATENT_NET), 1.5, "pictures", "workers"),
    Case("sweep", "sweep", (*PLAIN, "trainer.max_steps=4", "residual=gated,resnet"), 1, has="ranks"),
    Case("sample", "sample", SAMPLE, 2),
    Case("encode", "encode", ENCODE, 2, needs="pictures"),
    Case("train, ddp 2 by torchrun", "train", DDP, 1, has="ranks", outside=2),
    Case("train, fsdp2 2 by torchrun", "train", FSDP2, 0.5, has="ranks", outside=2),
    Case("sample, by torchrun", "sample", SAMPLE, 1, has="ranks", outside=2),
    Case("encode, by torchrun", "encode", ENCODE, 1, needs="pictures", has="ranks", outside=2),
    Case("stats", "stats", STATS, 1, needs="pictures"),
    Case("stats, by torchrun", "stats", STATS, 1, needs="pictures", has="ranks", outside=2),
    Case("evaluate", "evaluate", ("run={inputs}/run", "metric=digits", "metric.per_class=1"), 1),
    Case("report", "report", ("runs={inputs}/sweep",), 1),
)  # fmt: skip


def make_inputs(folder: Path, run: object) -> None:
    """Pictures, an autoencoder, and what commands read that others have made.

    Args:
        run: `run(module, arguments, cwd)` starts a command and waits for it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for label in range(2):
        for i in range(8):
            path = folder / "pictures" / ("train" if i < 6 else "val") / f"c{label}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            low = np.random.default_rng(10 * label + i).integers(0, 255, (3, 4, 3), dtype=np.uint8)
            Image.fromarray(low).resize((20, 18), Image.Resampling.BICUBIC).save(path)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    stage = AutoencoderKL(**blocks, block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4)
    stage.save_pretrained(folder / "stage")
    named = {case.name: case for case in CASES}
    for name, target in (("train", "run"), ("sweep", "sweep"), ("encode", "latents")):
        run(named[name].module, named[name].line(folder, target), folder)  # type: ignore[operator]
