"""Tensor parallelism: how the blocks of a transformer are shared out among devices that compute one batch together
(Shoeybi et al. 2019, *Megatron-LM*, arXiv 1909.08053). A network knows nothing of it.

Every attention has its heads, and every MLP its hidden channels, on all devices of a group, and two sums for each block
go through the group in the forward pass, two in the backward one:

    x [B, N, D], whole --qkv, fc1: rows of the weight--> heads / hidden --proj, fc2: columns of it--> sum over the group

The weights that make modulation are shared out by rows too, and what they make is gathered [B, 6 D]. All the rest (the
stream and its norms, embeddings, gates, long skips, the last layer) every device of the group has and computes alike.
Parameters are DTensors, so that optimizer, clipping, averages and checkpoints are those of sharded training; while the
network runs, each layer sees its own part as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from timm.layers import Attention, Mlp, SwiGLU
from torch import Tensor, nn

from neural_rdm.backbones.attention import CrossAttention
from neural_rdm.backbones.contract import blocks_of
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.weights import local
from neural_rdm.training.sharding import Sharded
from neural_rdm.training.together import Group, Joined

DONE = "shared out (strategy=tp)"


class TensorParallel(Sharded):
    """Groups of neighbours compute one part of the batch together, each a part of every block; several groups take
    their parts of the batch, and average their gradients once a step.

    Args:
        devices: of all nodes together.
        size: devices of a group.
    """

    def __init__(self, devices: int, size: int) -> None:
        super().__init__(devices // size, size)
        #: ranks that have the same samples, and the same values of what is not shared out
        self.together = self.copies = size

    def optimizer_step(self, optimizer: Any, closure: Callable[[], Any], model: Any = None, **options: Any) -> Any:
        """A step, on gradients that are averaged over the groups before any callback reads them."""

        def averaged() -> Any:
            result = closure()
            group = self.device_mesh.get_group("data_parallel")
            self._average(optimizer, group, self.world_size // self.together)
            return result

        return super().optimizer_step(optimizer, averaged, model, **options)

    @staticmethod
    def _average(optimizer: Any, group: Any, groups: int) -> None:
        if groups == 1:
            return
        found = [p.grad for each in optimizer.param_groups for p in each["params"] if p.grad is not None]
        parts = [local(grad) for grad in found]
        for work in [torch.distributed.all_reduce(part, group=group, async_op=True) for part in parts]:
            work.wait()
        torch._foreach_div_(parts, groups)


def shard(module: pl.LightningModule) -> None:
    """Share out `module.net` where the strategy is `TensorParallel`; otherwise, and the second time, do nothing.

    Raises:
        ConfigError: a network without blocks of attention and MLP, or whose heads or channels do not divide.
    """
    strategy, net = module.trainer.strategy, cast(Any, module.net)
    if not isinstance(strategy, TensorParallel) or any(isinstance(m, _Held) for m in net.modules()):
        return
    mesh = strategy.device_mesh
    _share_in(net, Group(mesh.get_group("tensor_parallel")), partial(_distributed, mesh=mesh))


def imagine(net: nn.Module, group: Group) -> None:
    """Cut a network down, in place, to what one device of a group has of it; its parameters stay ordinary ones.

    Raises:
        ConfigError: as `shard`.
    """
    _share_in(net, group, partial(_first, size=group.size))


class _Cut(NamedTuple):
    """The axis along which a parameter is shared out, and how many tensors (q, k, v) it holds, each shared out so."""

    dim: int
    tensors: int = 1


def _share_in(net: nn.Module, group: Group, lay_out: Callable[[nn.Parameter, _Cut | None], nn.Parameter]) -> None:
    """Share out a network, in place, in a group; each parameter becomes what `lay_out` makes of it."""
    cuts = _cuts(net, group.size)
    for layer in list(net.modules()):
        for name, parameter in list(layer._parameters.items()):
            if parameter is not None:
                layer._parameters[name] = lay_out(parameter, cuts.get(parameter))
    for layer in list(net.modules()):
        if type(layer).forward is not nn.Module.forward:
            kind = layer.__dict__.pop("_kind", _Held)
            layer.__class__ = _held(type(layer), kind)  # type: ignore[arg-type]
            layer.__dict__["_group"] = group


def _cuts(net: nn.Module, size: int) -> dict[nn.Parameter, _Cut]:
    """The parameters that are shared out among `size` devices; their layers are told what they do."""
    found: dict[nn.Parameter, _Cut] = {}

    def columns(layer: Any, tensors: int = 1, kind: type[_Held] = _Columns) -> None:
        """The outputs are shared out."""
        if (channels := layer.out_features // tensors) % size:
            raise ConfigError(f"strategy=tp: {channels} channels do not divide among strategy.tensor={size} devices")
        for parameter in layer.parameters():
            found[parameter] = _Cut(0, tensors)
        layer.__dict__["_kind"] = kind

    def rows(layer: Any) -> None:
        """The inputs are shared out, and the outputs summed up."""
        found[layer.weight] = _Cut(1)
        layer.__dict__["_kind"] = _Rows

    def heads(layer: Any) -> None:
        if layer.num_heads % size:
            raise ConfigError(
                f"strategy=tp: {layer.num_heads} heads do not divide among strategy.tensor={size} devices"
            )
        layer.num_heads //= size

    for block in blocks_of(net, DONE):
        before = len(found)
        for layer in block.modules():
            if isinstance(layer, Attention):
                heads(layer)
                layer.attn_dim //= size
                columns(layer.qkv, 3)
                rows(layer.proj)
                for part in (layer, *layer.q_norm.modules(), *layer.k_norm.modules()):
                    part.__dict__["_kind"] = _Partial  # what these hold acts on this device's heads alone
            elif isinstance(layer, CrossAttention):
                heads(layer)
                columns(layer.q)
                columns(layer.kv, 2)
                rows(layer.proj)
            elif isinstance(layer, (Mlp, SwiGLU)):
                for first in [layer.fc1] if isinstance(layer, Mlp) else [layer.fc1_g, layer.fc1_x]:
                    columns(first)
                rows(layer.fc2)
            elif isinstance(layer, Float32Linear) and layer.out_features % size == 0:
                columns(layer, kind=_Gathered)
        if len(found) == before:
            raise ConfigError(f"strategy=tp: blocks of {type(net).__name__} have no attention and no MLP that it knows")
    return found


def _distributed(parameter: nn.Parameter, cut: _Cut | None, mesh: Any) -> nn.Parameter:
    """A parameter that every rank has whole, as a DTensor on [data_parallel, tensor_parallel]."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    inside: Any = Replicate()
    if cut is not None:
        inside = Shard(cut.dim) if cut.tensors == 1 else _StridedShard(cut.dim, split_factor=cut.tensors)
    shared = distribute_tensor(parameter.detach(), mesh, [Replicate(), inside], src_data_rank=None)
    return nn.Parameter(shared, requires_grad=parameter.requires_grad)


def _first(parameter: nn.Parameter, cut: _Cut | None, size: int) -> nn.Parameter:
    """The part of a parameter that the first of `size` devices has."""
    if cut is None:
        return parameter
    tensors = parameter.detach().chunk(cut.tensors, cut.dim)
    own = torch.cat([tensor.chunk(size, cut.dim)[0] for tensor in tensors], cut.dim)
    return nn.Parameter(own, requires_grad=parameter.requires_grad)


# -- what layers do differently

_running = 0  # how many forward passes of such layers are under way


@contextmanager
def _run() -> Iterator[None]:
    global _running
    _running += 1
    try:
        yield
    finally:
        _running -= 1


class _Held(nn.Module):
    """In front of a layer's own class: while it runs, its parameters are this rank's parts, plain tensors."""

    _group: Group

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        own: Any = super()
        with _run():
            return own.forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found: Any = super().__getattr__(name)
        return local(found) if _running else found


class _Partial(_Held):
    """Its parameters are whole, but act on this rank's part of the heads: their gradients are summed up."""

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        return _Copied.apply(found, self._group) if _running and isinstance(found, Tensor) else found


class _Columns(_Held):
    """A linear layer that makes this rank's part of its outputs of all its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(_Copied.apply(x, self._group))
        return made


class _Gathered(_Columns):
    """The same, whose outputs are then put together."""

    def forward(self, x: Tensor) -> Tensor:
        whole: Tensor = Joined.apply(super().forward(x), self._group, -1)
        return whole


class _Rows(_Held):
    """A linear layer that makes all its outputs of this rank's part of its inputs: a sum over the group."""

    def forward(self, x: Tensor) -> Tensor:
        with _run():
            whole: Tensor = _Summed.apply(nn.functional.linear(x, self.weight), self._group)
            return whole if self.bias is None else whole + self.bias.to(whole.dtype)


@cache
def _held(own: type[nn.Module], kind: type[_Held]) -> type[nn.Module]:
    return type(own.__name__, (kind, own), {"__doc__": own.__doc__})


class _Copied(torch.autograd.Function):
    """The same tensor on every rank, each of which does something else with it: gradients are summed up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.group.sum(grad), None


class _Summed(torch.autograd.Function):
    """The sum over ranks, with which all of them go on alike: each has the whole gradient already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.sum(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
