"""The exponential moving average of the network's weights, kept and saved apart from the raw ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from neural_rdm.core.arguments import Fraction, checked
from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.sharded import distributed
from neural_rdm.training import constraints, parallel
from neural_rdm.training.callbacks.guards import FiniteSteps
from neural_rdm.training.callbacks.steps import Order, StepCallback
from neural_rdm.training.held import callbacks_of

KEY = "ema"  # of the averaged weights in a checkpoint


@checked(constraints.different_decays)
class EMA(StepCallback):
    """`average <- decay * average + (1 - decay) * weight` after every optimizer step, of every trainable weight.

    Averages are float32 whatever the training precision, sharded like the weights, and updated once per optimizer step,
    however many micro-steps that takes.

    Args:
        decay: in [0, 1]; 0.9999 in the recipes of DiT, Latte and LDM.
        warmup: use `min(decay, (1 + n) / (10 + n))` at update n = 1, 2, ..., as LDM does: 2/11 first.
        further: decays of more averages, kept beside the first: the best length is not known before the evaluation.
            Each costs the memory of the weights in float32. Commands find them as `weights=ema-0.999`.

    Raises:
        ValueError: a decay outside [0, 1], or one twice.
    """

    order = Order.AVERAGE

    def __init__(self, decay: Fraction = 0.9999, warmup: bool = False, further: Sequence[Fraction] = ()) -> None:
        self.decay, self.warmup, self.further = decay, warmup, tuple(further)
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self.others: dict[str, dict[str, Tensor]] = {}
        self._loaded: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The first hook after every strategy has restored a checkpoint."""
        super().on_train_start(trainer, pl_module)
        self._prepare(pl_module.net)

    def _prepare(self, net: nn.Module) -> None:
        """Start from the network's weights, or from what a checkpoint held."""
        if not self.averages:
            self.averages, *others = (
                {name: weight.detach().clone().float() for name, weight in _weights(net).items()}
                for _ in range(1 + len(self.further))
            )
            self.others = dict(zip(map(_label, self.further), others, strict=True))
        if self._loaded is not None:
            self._restore(self._loaded)
            self._loaded = None

    def on_step_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Update once per optimizer step; one that was left out changes no average, but counts."""
        self.updates += 1
        most = (1 + self.updates) / (10 + self.updates) if self.warmup else 1.0
        steps = next(iter(callbacks_of(trainer, FiniteSteps)), None)
        kept = 1.0 if steps is None or steps.kept is None else steps.kept
        weights = [parallel.local(weight.detach()).float() for weight in _weights(pl_module.net).values()]
        with torch.no_grad():
            for decay, averages in self._each():
                share = kept * (1.0 - min(decay, most))  # on the device, where it is known whether the step was kept
                shares = [share] * len(weights) if isinstance(share, Tensor) else share
                torch._foreach_lerp_([parallel.local(average) for average in averages.values()], weights, shares)

    def _each(self) -> list[tuple[float, dict[str, Tensor]]]:
        """All averages with their decays."""
        return list(zip((self.decay, *self.further), (self.averages, *self.others.values()), strict=True))

    @contextmanager
    def applied(self, net: nn.Module) -> Iterator[None]:
        """Exchange the network's weights with the averages, in place, for the length of the context.

        Weights are swapped tensor by tensor, so the extra memory is that of the largest one; and those of weights that
        are narrower than their averages (bf16-true), which a swap would round.
        """
        self._prepare(net)  # a run that was resumed after its last step has never started to train
        narrow = {n: w for n, w in _weights(net).items() if w.dtype != self.averages[n].dtype}
        held = [weight.detach().clone() for weight in narrow.values()]
        self._swap(net)
        try:
            yield
        finally:
            self._swap(net)
            with torch.no_grad():
                for weight, raw in zip(narrow.values(), held, strict=True):
                    weight.copy_(raw)

    @torch.no_grad()
    def _swap(self, net: nn.Module) -> None:
        for name, weight in _weights(net).items():
            raw = weight.detach().clone()
            weight.copy_(self.averages[name])
            if raw.dtype == self.averages[name].dtype:
                self.averages[name].copy_(raw)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the averages, under their own key."""
        weights, *others = (averages for _, averages in self._each())  # their writer gathers or shards them
        checkpoint[KEY] = {"updates": self.updates, "weights": weights}
        if others:
            checkpoint[KEY]["further"] = dict(zip(self.others, others, strict=True))

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Remember the averages until the network has its final form (`on_train_start`)."""
        if KEY not in checkpoint:
            raise CheckpointError(
                "this checkpoint holds no averaged weights; it cannot be resumed with the EMA callback"
            )
        self._loaded = checkpoint[KEY]

    def _restore(self, saved: dict[str, Any]) -> None:
        further = saved.get("further", {})
        if further.keys() != self.others.keys():
            raise CheckpointError(
                f"the checkpoint holds further averages {sorted(further)} and callbacks.ema.further asks for "
                f"{sorted(self.others)}; pass callbacks.ema.further={[float(key) for key in sorted(further)]}"
            )
        self.updates = saved["updates"]
        _fill(self.averages, saved["weights"])
        for label, averages in self.others.items():
            _fill(averages, further[label])


def choose(checkpoint: dict[str, Any], weights: str) -> dict[str, Tensor]:
    """The averages that a checkpoint holds under a name: `ema`, or `ema-DECAY` for one of the `further` ones.

    Raises:
        CheckpointError: it holds none of this name.
    """
    held = checkpoint.get(KEY)
    if held is None:
        raise CheckpointError("it holds no averaged weights (no EMA callback in this run); pass weights=raw")
    names = {"ema": held["weights"]} | {f"ema-{label}": w for label, w in held.get("further", {}).items()}
    if weights not in names:
        raise CheckpointError(f"it has no weights={weights}; it has weights={', '.join((*names, 'raw'))}")
    return names[weights]


def _label(decay: float) -> str:
    """A decay in the names of its weights, without loss."""
    return repr(float(decay))


@torch.no_grad()
def _fill(averages: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if saved.keys() != averages.keys():
        odd = sorted(saved.keys() ^ averages.keys())[:5]
        raise CheckpointError(f"the checkpoint's averaged weights are of another network: {', '.join(odd)}, ...")
    for name, average in averages.items():
        average.copy_(distributed(saved[name], average))


@contextmanager
def averaged(trainer: pl.Trainer, net: nn.Module) -> Iterator[str]:
    """The network under its averaged weights where the run has an EMA; yields "ema" or "raw", whichever it is."""
    averages = callbacks_of(trainer, EMA)
    with averages[0].applied(net) if averages else nullcontext():
        yield "ema" if averages else "raw"


def _weights(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
