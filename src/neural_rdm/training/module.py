"""The LightningModules, kept thin: a batch's random draws, a forward pass, a loss; everything else is a callback."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from neural_rdm.conditioning.labels import drop_labels, dropout_mask
from neural_rdm.core import seeding
from neural_rdm.data.base import Batch
from neural_rdm.diffusion.objectives import EpsilonObjective
from neural_rdm.latents.first_stage import KL, Identity
from neural_rdm.training import parallel
from neural_rdm.training.optim import Optimizer


class NeuralRDM(pl.LightningModule):
    """Training of a residual diffusion network.

    Args:
        net: `net(x, t, y) -> prediction`.
        objective: the diffusion process and its loss.
        optimizer: see `Optimizer`.
        first_stage: encodes pixels; not used where the data are latents.
        seed: keys every draw together with a sample's position in the run.
        max_steps: optimizer steps of the run, for the schedule (`trainer.estimated_stepping_batches` would reset a
            stateful loader).
        encode: whether batches are pixels that the first stage has to encode.
        compile_blocks: compile every block of the network with torch.compile.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: EpsilonObjective,
        optimizer: Optimizer,
        first_stage: Identity | KL,
        seed: int = 0,
        max_steps: int = 400_000,
        encode: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.objective, self.optimizer, self.first_stage = objective, optimizer, first_stage
        self.seed, self.max_steps, self.encode, self.compile_blocks = seed, max_steps, encode, compile_blocks

    def configure_model(self) -> None:
        """Compile and shard the network; Lightning calls this more than once."""
        if self.compile_blocks and not getattr(self, "_compiled", False):
            for block in self.net.blocks:
                block.compile()  # in place: keys get no `_orig_mod.` prefix
            self._compiled = True
        parallel.shard(self)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Losses of one micro-batch: `loss` (the mean to minimise) and its detached parts."""
        losses = self.losses(batch, "train", drop=True)
        means = {name: value.mean() for name, value in losses.items()}
        return {name: value if name == "loss" else value.detach() for name, value in means.items()}

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Per-sample losses [B] with noise and timesteps that are the same at every validation."""
        return self.losses(batch, "val", drop=False)

    def losses(self, batch: Batch, stage: str, drop: bool) -> dict[str, Tensor]:
        """Per-sample losses [B]; noise, timesteps and label dropout are keyed by (seed, stage, position)."""
        x, position = batch["x"], batch["position"]
        if self.encode:
            x = self.first_stage.encode(x, self.seed, position)
        u = torch.from_numpy(seeding.uniform(self.seed, f"{stage} timestep", position))
        t = self.objective.timesteps(u).to(x.device, non_blocking=True)
        noise = seeding.normal(self.seed, f"{stage} noise", position, x.shape[1:], x.device)
        xt = self.objective.process.q_sample(x, t, noise)
        return self.objective.loss(self.net(xt, t, self.labels(batch, drop)), x, xt, t, noise)

    def labels(self, batch: Batch, drop: bool) -> Tensor | None:
        """The labels [B] that the network is shown, some replaced by the null class when `drop`."""
        y = batch.get("y") if getattr(self.net, "num_classes", 0) else None
        if y is None or not drop or self.net.null_class is None:
            return y
        mask = dropout_mask(self.seed, batch["position"], self.net.class_dropout_prob)
        return drop_labels(y, mask.to(y.device, non_blocking=True), self.net.null_class)

    def configure_optimizers(self) -> Any:
        """The optimizer and its per-step schedule."""
        optimizer = self.optimizer.build(self.net)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(self.optimizer.factor, max_steps=self.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class NeuralRDMF(NeuralRDM):
    """Neural-RDM-F: flow-shaped networks (DiT; paper, Sec. 2.2), whose units follow one another without long skips."""
