"""A real Trainer on a tiny network, in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from neural_rdm.backbones.contract import Backbone
from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.uvit import UViT
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.builtin.digits_video import DigitsVideo
from neural_rdm.diffusion.objectives import DDPMObjective
from neural_rdm.diffusion.process import DDPM
from neural_rdm.latents.first_stage import Identity
from neural_rdm.training.callbacks.checkpoints import StreamedCheckpointIO
from neural_rdm.training.module import NeuralRDMF
from neural_rdm.training.optim import Optimizer

#: small networks for the digits, by name
NETWORKS: dict[str, Callable[..., Backbone]] = {
    "dit": lambda **options: DiT(8, 4, 1, 32, 2, 4, num_classes=10, **options),
    "styled": lambda **options: DiT(
        8, 4, 1, 32, 2, 4, num_classes=10, mlp="swiglu", qk_norm=True, positions="rope", value_residual=True, **options
    ),
    "uvit": lambda **options: UViT(8, 4, 1, 32, 2, 4, num_classes=11, mlp_time_embed=True, **options),
    "latte": lambda **options: Latte(8, 4, 1, 32, 4, 4, num_frames=3, num_classes=10, extras="class", **options),
    "latte_styled": lambda **options: Latte(
        8, 4, 1, 32, 4, 4, num_frames=3, num_classes=10, extras="class", qk_norm=True, value_residual=True, **options
    ),
}


def tiny_module(residual: str = "gated", max_steps: int = 8, network: str = "dit", **optimizer: Any) -> NeuralRDMF:
    """A small network for the digits; the same weights every time, none of them zero."""
    torch.manual_seed(0)
    net = NETWORKS[network](residual=residual)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return NeuralRDMF(
        net, DDPMObjective(DDPM()), Optimizer(**{"lr": 1e-2, **optimizer}), Identity(), seed=3, max_steps=max_steps
    )


def fit(
    module: NeuralRDMF,
    folder: Path,
    *callbacks: Any,
    steps: int = 8,
    accumulate: int = 1,
    batch_size: int = 16,
    ckpt: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Train `module` on the digits for `steps` optimizer steps."""
    frames = getattr(module.net, "num_frames", 1)
    data: Any = Digits(batch_size=batch_size)
    if frames > 1:
        data = DigitsVideo(batch_size=batch_size, image_size=8, num_frames=frames)
    data.configure(module.seed, accumulate)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        default_root_dir=folder,
        use_distributed_sampler=False,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{
            "logger": False,
            "plugins": [StreamedCheckpointIO()],
            "enable_checkpointing": any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
            **options,
        },
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt)
    return trainer
