"""The exponential moving average of the network's weights, kept and saved apart from the raw ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from neural_rdm.core.errors import CheckpointError
from neural_rdm.training import parallel
from neural_rdm.training.steps import StepCallback

KEY = "ema"  # of the averaged weights in a checkpoint


class EMA(StepCallback):
    """`average <- decay * average + (1 - decay) * weight` after every optimizer step, of every trainable weight.

    Averages are float32 whatever the training precision, sharded like the weights, and updated once per optimizer step,
    however many micro-steps that takes.

    Args:
        decay: in [0, 1]; 0.9999 in the recipes of DiT, Latte and LDM.
        warmup: use `min(decay, (1 + n) / (10 + n))` at update n, as LDM does.
    """

    def __init__(self, decay: float = 0.9999, warmup: bool = False) -> None:
        self.decay, self.warmup = decay, warmup
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first hook after every strategy has restored a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._prepare(pl_module.net)

    def _prepare(self, net: nn.Module) -> None:
        """Start from the network's weights, or from what a checkpoint held."""
        if not self.averages:
            self.averages = {name: weight.detach().clone().float() for name, weight in _weights(net).items()}
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Update once per optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warmup else self.decay
        weights = _weights(pl_module.net)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averages.values()), [w.detach().float() for w in weights.values()], 1.0 - decay
            )
        self.updates += 1

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Exchange the network's weights with the averages, in place, for the length of the context.

        Weights are swapped tensor by tensor, so the extra memory is that of the largest one.
        """
        self._prepare(net)  # a run that was resumed after its last step has never started to train
        self._swap(net)
        try:
            yield
        finally:
            self._swap(net)

    @torch.no_grad()
    def _swap(self, net: nn.Module) -> None:
        for name, weight in _weights(net).items():
            raw = weight.detach().clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(raw)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the averages, under their own key."""
        weights = {name: parallel.full(average) for name, average in self.averages.items()}
        checkpoint[KEY] = {"updates": self.updates, "weights": weights}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the averages until the network has its final form (`on_train_start`)."""
        if KEY not in checkpoint:
            raise CheckpointError(
                "this checkpoint holds no averaged weights; it cannot be resumed with the EMA callback"
            )
        self._loaded = checkpoint[KEY]

    @torch.no_grad()
    def _restore(self, saved: dict[str, Any]) -> None:
        if saved["weights"].keys() != self.averages.keys():
            odd = sorted(saved["weights"].keys() ^ self.averages.keys())[:5]
            raise CheckpointError(f"the checkpoint's averaged weights are of another network: {', '.join(odd)}, ...")
        self.updates = saved["updates"]
        for name, average in self.averages.items():
            if hasattr(average, "device_mesh"):
                from torch.distributed.tensor import distribute_tensor

                average.copy_(
                    distribute_tensor(
                        saved["weights"][name].to(average.device), average.device_mesh, average.placements
                    )
                )
            else:
                average.copy_(saved["weights"][name])


@contextmanager
def averaged(trainer: pl.Trainer, net: nn.Module) -> Iterator[str]:
    """The network under its averaged weights where the run has an EMA; yields "ema" or "raw", whichever it is."""
    for callback in trainer.callbacks:
        if isinstance(callback, EMA):
            with callback.applied(net):
                yield "ema"
            return
    yield "raw"


def _weights(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
