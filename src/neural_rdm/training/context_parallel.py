"""Context parallelism: how the tokens of long sequences are shared out among devices that compute one batch together
(Jacobs et al. 2023, *DeepSpeed Ulysses*, arXiv 2309.14509). A network (DiT, Latte) knows nothing of it.

Behind the patch embedding every device of a group keeps an equal share of each frame's places, with all frames, up to
the last layer, whose outputs are put together. Attention over places has to see all of them: queries, keys and values
are exchanged, so that each device attends with some of the heads over the whole sequence, and are exchanged back.
Attention over the frames at a place, and all the rest, needs nothing from others.

    [R, N / W, 3, heads, d] --all to all--> [R, N, 3, heads / W, d] --attention, all to all--> [R, N / W, D]

Each device's gradient is that of its own tokens. It is multiplied by W where the outputs were put together, so that the
mean over all devices, which every data-parallel strategy takes, is the gradient of the batch.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
import torch
from timm.layers import Attention
from torch import Tensor, nn

from neural_rdm.backbones.attention import SelfAttention
from neural_rdm.backbones.dit import DiT
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import units
from neural_rdm.training.together import Group, Joined


def share(module: pl.LightningModule) -> None:
    """Share out the tokens of `module.net` where the strategy says so (`strategy.context`); otherwise, and the second
    time, do nothing.

    Raises:
        ConfigError: a network that cannot be shared out so.
    """
    strategy, net = module.trainer.strategy, cast(Any, module.net)
    size = getattr(strategy, "context", 1)
    if size == 1 or "_context" in net.__dict__:
        return
    check(net, size)
    from torch.distributed.device_mesh import init_device_mesh

    sizes = (module.trainer.world_size // size, size)
    mesh = init_device_mesh(strategy.root_device.type, sizes, mesh_dim_names=("data", "context"))
    share_in(net, Group(mesh.get_group("context")))


def check(net: nn.Module, size: int) -> None:
    """Refuse a network whose tokens `size` devices cannot share out, or would without being right.

    Raises:
        ConfigError: saying what to type.
    """
    if not isinstance(net, DiT):
        raise ConfigError(f"strategy.context={size}: {type(net).__name__} is neither a DiT nor a Latte")
    for name, number in (("places of a frame", net.side**2), ("heads", net.num_heads)):
        if number % size:
            raise ConfigError(f"strategy.context={size} does not divide the {number} {name}")
    if net.style.register_tokens or net.style.attention != "auto":
        raise ConfigError(f"strategy.context={size} needs backbone.register_tokens=0 and backbone.attention=auto")
    if (rule := next((unit.rule_name for _, unit in units(net) if unit.across_tokens), None)) is not None:
        raise ConfigError(
            f"strategy.context={size}: residual.rule={rule} looks across the tokens, of which each device has a share; "
            "pass strategy.context=1 or another rule"
        )


def share_in(net: Any, group: Group) -> None:
    """Share out the tokens of a network, in place, in a group of devices."""
    net.__dict__["_context"] = group.size

    def own(_: Any, args: Any, tokens: Tensor) -> Tensor:
        return tokens.chunk(group.size, dim=1)[group.rank]

    def joined(_: Any, args: Any, patches: Tensor) -> Tensor:
        whole: Tensor = Joined.apply(patches, group, 1, group.size)
        return whole

    net.registers.register_forward_hook(own)
    net.final_layer.register_forward_hook(joined)
    for name, block in net.blocks.named_children():
        if int(name) % net.kinds == 0:
            _exchange_around(block.attn, group)


def _exchange_around(attention: Any, group: Group) -> None:
    """Let an attention see all tokens, with this rank's share of its heads."""
    heads = attention.num_heads, attention.head_dim

    def before(_: Any, args: Any, made: Tensor) -> Tensor:  # [R, N / W, 3 heads d] -> [R, N, 3 heads/W d]
        whole: Tensor = _Exchanged.apply(made.unflatten(-1, (3, *heads)), group, 3, 1)
        return whole.flatten(2)

    def behind(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # [R, N, heads/W d] -> [R, N / W, heads d]
        return (_Exchanged.apply(args[0], group, 1, 2),)

    if type(attention) is Attention:  # whose own forward pass takes the number of tokens from before the exchange
        attention.__class__ = SelfAttention
    attention.num_heads //= group.size
    attention.qkv.register_forward_hook(before)
    attention.proj.register_forward_pre_hook(behind)


class _Exchanged(torch.autograd.Function):
    """Each rank's part along one axis goes to that rank, and what comes is put together along another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, split: int, join: int) -> Tensor:
        ctx.group, ctx.axes = group, (split, join)
        return group.exchange(x, split, join)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        split, join = ctx.axes
        return ctx.group.exchange(grad, join, split), None, None, None
