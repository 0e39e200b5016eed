"""The LightningModules, kept thin: a batch's random draws, a forward pass, a loss; everything else is a callback."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from neural_rdm.backbones.contract import Backbone, blocks_of
from neural_rdm.backbones.options import keyed
from neural_rdm.conditioning.conditions import encoded, null_condition
from neural_rdm.conditioning.labels import drop_labels, dropout_mask
from neural_rdm.core import seeding
from neural_rdm.core.errors import UserError
from neural_rdm.data.base import Batch
from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective
from neural_rdm.latents.first_stage import Autoencoder, Identity
from neural_rdm.training import context_parallel, parallel, precision, sharding, tensor_parallel
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.recompute import How, recompute
from neural_rdm.training.scaling import unscale

if TYPE_CHECKING:
    from neural_rdm.conditioning.text import TextEncoder


class NeuralRDM(pl.LightningModule):
    """Training of a residual diffusion network.

    Args:
        net: the network, which says what conditions it (see `Backbone`).
        objective: the diffusion process and its loss.
        optimizer: see `Optimizer`.
        first_stage: encodes pixels, or draws latents of moments; not used where the data are latents.
        text: encodes captions, for a network with a text context; None for any other.
        seed: keys every draw together with a sample's position in the run.
        max_steps: optimizer steps of the run, for the schedule (`trainer.estimated_stepping_batches` would reset a
            stateful loader).
        encode: whether batches are pixels (or moments) that go through the first stage.
        compile_blocks: compile every block of the network with torch.compile.
        activation_checkpointing: which blocks compute twice to save memory, see `recompute`.
    """

    net: Backbone

    def __init__(
        self,
        net: Backbone,
        objective: DDPMObjective | FlowObjective,
        optimizer: Optimizer,
        first_stage: Identity | Autoencoder,
        text: TextEncoder | None = None,
        seed: int = 0,
        max_steps: int = 400_000,
        encode: bool = False,
        compile_blocks: bool = False,
        activation_checkpointing: How = "none",
    ) -> None:
        super().__init__()
        self.net = net
        self.objective, self.optimizer, self.first_stage, self.text = objective, optimizer, first_stage, text
        self.seed, self.max_steps, self.encode, self.compile_blocks = seed, max_steps, encode, compile_blocks
        self.activation_checkpointing = activation_checkpointing
        #: told the timesteps [B] of every batch before it runs, where a callback wants to know
        self.on_timesteps: Callable[[Tensor], None] | None = None
        #: of this step's gradient, a norm for each parameter of the optimizer [n], where a callback has found them
        self.gradient_norms: Tensor | None = None

    def configure_model(self) -> None:
        """Round, checkpoint, compile and shard the network; Lightning calls this more than once. What cannot be done
        with it every rank finds out, and the first one says.
        """
        try:
            self._configure()
        except UserError as error:
            parallel.refuse(error)

    def _configure(self) -> None:
        attached = self._trainer is not None  # by itself, a network is neither rounded nor shared out
        if attached:
            precision.prepare(self.net, str(self.trainer.precision))
        recompute(self.net, self.activation_checkpointing)
        if self.compile_blocks and not getattr(self, "_compiled", False):
            for block in blocks_of(self.net, "compiled (trainer.compile)"):
                block.compile()  # in place: keys get no `_orig_mod.` prefix
            self._compiled = True
        if attached:
            context_parallel.share(self)
            sharding.shard(self)
            tensor_parallel.shard(self)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Losses of one micro-batch: `loss` (the mean to minimise) and its detached parts."""
        losses = self.losses(batch, "train", drop=True)
        means = {name: value.mean() for name, value in losses.items()}
        return {name: value if name == "loss" else value.detach() for name, value in means.items()}

    def validation_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """Per-sample losses [B] with noise and timesteps that are the same at every validation."""
        return self.losses(batch, "val", drop=False)

    def losses(self, batch: Batch, stage: str, drop: bool) -> dict[str, Tensor]:
        """Per-sample losses [B]; noise, timesteps and dropout are keyed by (seed, stage, position)."""
        x, position = batch["x"], batch["position"]
        if self.encode:
            x = self.first_stage.encode(x, self.seed, position)
        u = torch.from_numpy(seeding.uniform(self.seed, f"{stage} timestep", position))
        t = self.objective.timesteps(u).to(x.device, non_blocking=True)
        noise = seeding.normal(self.seed, f"{stage} noise", position, x.shape[1:], x.device)
        if self.on_timesteps is not None:
            self.on_timesteps(t)
        xt = self.objective.process.q_sample(x, t, noise)
        with keyed(self.seed, position):  # stochastic depth
            out = self.net(xt, t, **self.condition(batch, drop))
        return self.objective.loss(out, x, xt, t, noise)

    def condition(self, batch: Batch, drop: bool) -> dict[str, Tensor]:
        """What the network is shown beside x and t; when `drop`, nothing at all for some of the samples.

        Whether a sample loses its condition is drawn once for everything that conditions the network.
        """
        rate = self.net.class_dropout_prob if drop else 0.0
        dropped = dropout_mask(self.seed, batch["position"], rate)
        shown: dict[str, Tensor] = {}
        if self.net.num_classes and "y" in batch:
            y, null = batch["y"], self.net.null_class
            shown["y"] = y if null is None else drop_labels(y, dropped.to(y.device, non_blocking=True), null)
        if self.text is not None:
            shown |= self._tokens(self.text, batch, dropped)
        return shown

    def _tokens(self, text: TextEncoder, batch: Batch, dropped: Tensor) -> dict[str, Tensor]:
        """The texts of a batch as the network takes them, the null prompt for those that are `dropped`."""
        device = batch["x"].device
        if "context" not in batch:
            captions = ["" if gone else said for said, gone in zip(batch["caption"], dropped.tolist(), strict=True)]
            return encoded(text, captions, device)
        null, gone = encoded(text, [""], device), dropped.to(device, non_blocking=True)[:, None]
        return {
            "context": torch.where(gone[..., None], null["context"], batch["context"].float()),
            "context_mask": torch.where(gone, null["context_mask"], batch["context_mask"]),
        }

    def null_condition(self) -> dict[str, Tensor]:
        """What stands for "no condition" in guidance, one row; empty where the network was never trained without."""
        return null_condition(self.net, self.text)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step, whose gradients carry no loss scale any more when callbacks and clipping come to read them."""

        def closure() -> Any:
            assert optimizer_closure is not None
            result = optimizer_closure()
            unscale(self.trainer, optimizer.optimizer)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer was told, once `optimizer.clip_after` steps are done."""
        norms, self.gradient_norms = self.gradient_norms, None
        if self.trainer.global_step < self.optimizer.clip_after or gradient_clip_val is None:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        whole = all(parallel.local(p) is p for p in parameters)
        if norms is not None and whole and gradient_clip_algorithm in (None, "norm"):
            # what `clip_grad_norm_` does, but for reading all gradients once more
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, torch.linalg.vector_norm(norms))
        elif isinstance(self.trainer.precision_plugin, MixedPrecision):
            # Lightning refuses every fused optimizer here, although no loss scale is left (see `optimizer_step`)
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        """The optimizer and its per-step schedule."""
        optimizer = self.optimizer.build(self.net, list(self.objective.parameters()), self.seed)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(self.optimizer.factor, max_steps=self.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class NeuralRDMF(NeuralRDM):
    """Neural-RDM-F: flow-shaped networks (DiT, Latte; paper, Sec. 2.2), units in a row without long skips."""


class NeuralRDMU(NeuralRDM):
    """Neural-RDM-U: U-shaped networks (LDM and ADM U-Nets, U-ViT; paper, Sec. 2.2, Eq. 3), whose read-in units are
    joined to their read-out units by long skips.
    """

    def configure_model(self) -> None:
        """Also keep convolutions in the layout that is fastest for them, channels last (FSDP2 shards none in it)."""
        if not sharding.shards(self):
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().configure_model()


def module_class(net: Backbone) -> type[NeuralRDM]:
    """The module for a network: a U-shaped one says so in its attribute `u_shaped`."""
    return NeuralRDMU if net.u_shaped else NeuralRDMF
