"""In which precision a network trains: what is computed in 16 or 8 bits, what is kept in them, and TF32.

Whatever it is, islands stay float32: the timestep's embedding, modulation and gates (`backbones.layers.Float32Linear`),
the residual stream with the statistics of its norms, the schedule and the loss, the averages and AdamW's moments.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from neural_rdm.backbones.contract import blocks_of
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.core.errors import ConfigError
from neural_rdm.training.sharding import islands, matrices

Precision: TypeAlias = Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "float8-mixed"]


class Bfloat16(MixedPrecision):
    """Autocast to bfloat16 under a name of our own, which says what else `prepare` has done to the network.

    Args:
        precision: `bf16-true` or `float8-mixed`.
        device: the kind of device that computes.
    """

    def __init__(self, precision: str, device: str) -> None:
        super().__init__("bf16-mixed", device)
        self.precision: Any = precision

    def autocast_context_manager(self) -> torch.autocast:
        """Products in bfloat16."""
        return torch.autocast(self.device, dtype=torch.bfloat16, cache_enabled=False)


def device_of(accelerator: str) -> str:
    """The kind of device that `trainer.accelerator` stands for on this machine."""
    if accelerator == "mps" or (accelerator == "auto" and torch.backends.mps.is_available()):
        return "mps"
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def chosen(precision: str, device: str) -> Precision:
    """The precision that `auto` stands for on a kind of device; any other as it is."""
    known: Any = precision
    return known if precision != "auto" else "bf16-mixed" if device == "cuda" else "32-true"


def told(precision: str, accelerator: str, allowed: bool) -> str:
    """The precision of a run in words; of GPUs also that of what is left in float32 (see `tf32`)."""
    device = device_of(accelerator)
    bits = "TF32, 10 bits of mantissa" if allowed else "all bits"
    rest = f"; float32 products with {bits} (trainer.tf32={str(allowed).lower()})" if device == "cuda" else ""
    return f"precision {chosen(precision, device)}{rest}"


def plugin(precision: Precision, device: str) -> MixedPrecision | None:
    """Lightning's plugin of a precision; None for float32.

    Raises:
        ConfigError: float8 on a GPU that has no products of 8 bits.
    """
    if precision == "32-true":
        return None
    if precision == "float8-mixed" and device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise ConfigError(
            "trainer.precision=float8-mixed needs a GPU with products of 8 bits (Ada, Hopper or newer), which "
            f"{torch.cuda.get_device_name()} is not; pass trainer.precision=bf16-mixed"
        )
    if precision == "16-mixed" or precision == "bf16-mixed":
        return MixedPrecision(precision, device)
    return Bfloat16(precision, device)


def prepare(net: nn.Module, precision: str) -> None:
    """Give a network's weights and layers the form that a precision asks for, in place; names stay. A second call
    changes nothing more.

    `bf16-true` keeps the matrices of blocks in bfloat16, without a copy in float32; the optimizer then rounds at random
    (see `adamw`). `float8-mixed` has the linear layers of blocks multiply in 8 bits, scaled tensor by tensor (torchao).

    Raises:
        ConfigError: the network states no blocks.
    """
    if precision == "bf16-true":
        for parameter in narrow(net):
            parameter.data = parameter.data.bfloat16()
    elif precision == "float8-mixed":
        from torchao.float8 import convert_to_float8_training
        from torchao.float8.float8_linear import Float8Linear

        def fits(layer: nn.Module, name: str) -> bool:
            if not isinstance(layer, nn.Linear) or isinstance(layer, (Float32Linear, Float8Linear)):
                return False
            return not (layer.in_features % 16 or layer.out_features % 16)

        for block in blocks_of(net, "trained with trainer.precision=float8-mixed"):
            convert_to_float8_training(block, module_filter_fn=fits)


def narrow(net: nn.Module) -> set[nn.Parameter]:
    """The weights that `bf16-true` keeps in 16 bits: the matrices of blocks that are no islands."""
    alone = {id(layer.weight) for layer in islands(net)}
    return {p for p in matrices(net) if id(p) not in alone}


def tf32(allowed: bool, device: str) -> None:
    """Whether GPUs may multiply float32 matrices with 10 bits of mantissa (TF32): what is left in float32, islands
    among it, several times as fast. Torch's switch is that of CPUs as well, some of which can do so too: where one
    computes (`device`), nothing is allowed."""
    allowed = allowed and device == "cuda"
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
