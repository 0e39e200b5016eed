"""What a run does on several devices: the strategies (how FSDP2 shards is in `sharding`), and sums over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, nn

from neural_rdm.core.arguments import Count, Positive, checked
from neural_rdm.core.errors import ConfigError, UserError, WriteError
from neural_rdm.core.extras import install
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.weights import full as full
from neural_rdm.core.weights import local as local
from neural_rdm.training.sharding import FSDP2
from neural_rdm.training.tensor_parallel import TensorParallel


@checked()
def single(devices: Count = 1, num_nodes: Count = 1) -> str:
    """One process; Lightning picks the device from trainer.accelerator."""
    return "auto"


@checked()
def ddp(
    devices: Count = 1,
    num_nodes: Count = 1,
    static_graph: bool = False,
    timeout_minutes: Positive = 30.0,
    context: Count = 1,
) -> Strategy:
    """A copy of the network on every device. Every parameter must reach the loss: no rule has an unused gate.

    Args:
        static_graph: PyTorch's promise that every step uses the same parameters, which lets it overlap more.
        timeout_minutes: how long a rank waits for the others before all of them stop.
        context: neighbouring devices that share out the tokens of one part of the batch (DiT, Latte), see
            `context_parallel`; has to divide heads and places of a frame.
    """
    made = DDPStrategy(
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
        static_graph=static_graph,
        timeout=timedelta(minutes=timeout_minutes),
    )
    return _in_context(made, context)


@checked()
def fsdp2(devices: Count = 1, num_nodes: Count = 1, reshard_after_forward: bool = True, context: Count = 1) -> Strategy:
    """Fully sharded data parallelism (FSDP2) over all devices.

    Args:
        reshard_after_forward: free each block's gathered weights behind its forward pass, and gather them again for the
            backward one: less memory, half as much communication more.
        context: see `ddp`.
    """
    return _in_context(FSDP2(devices * num_nodes, reshard_after_forward), context)


@checked()
def hsdp(
    devices: Count = 1,
    num_nodes: Count = 1,
    replicas: Count | None = None,
    reshard_after_forward: bool = True,
    context: Count = 1,
) -> Strategy:
    """Hybrid sharding (HSDP): groups of devices hold a copy of the network each, and shard it as `fsdp2` does.

    Args:
        replicas: such groups; None for one a node, so that weights are gathered inside nodes and only gradients cross
            them.
        reshard_after_forward: see `fsdp2`.
        context: see `ddp`.
    """
    return _in_context(FSDP2(devices * num_nodes, reshard_after_forward, replicas or num_nodes), context)


def _in_context(strategy: Any, context: int) -> Strategy:
    """A data-parallel strategy in which so many neighbours take one part of the batch together."""
    strategy.together = strategy.context = context
    made: Strategy = strategy
    return made


@checked()
def tp(devices: Count = 1, num_nodes: Count = 1, tensor: Count | None = None) -> Strategy:
    """Tensor parallelism, for transformers: groups of devices compute one part of the batch together.

    Args:
        tensor: devices of a group, which have to divide the heads; None for all of them. Several groups copy the
            network and average their gradients.
    """
    return TensorParallel(devices * num_nodes, tensor or devices * num_nodes)


@checked()
def deepspeed(
    devices: Count = 1, num_nodes: Count = 1, stage: Literal[2, 3] = 2, offload_optimizer: bool = False
) -> Strategy:
    """DeepSpeed ZeRO.

    Args:
        stage: 2 shards optimizer and gradients, 3 the weights as well.
        offload_optimizer: keep the optimizer's state in the memory of the CPU.

    Raises:
        ConfigError: DeepSpeed is not installed, or there is no GPU (Lightning refuses it on CPUs).
    """
    if not torch.cuda.is_available():
        raise ConfigError("strategy=deepspeed_zero2/3 needs GPUs; on CPUs use strategy=ddp or strategy=fsdp2")
    try:
        from lightning.pytorch.strategies import DeepSpeedStrategy

        return DeepSpeedStrategy(stage=stage, offload_optimizer=offload_optimizer)
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(f"strategy=deepspeed_zero2/3 needs DeepSpeed: {install('deepspeed')}") from error


def copies(trainer: pl.Trainer) -> int:
    """How many ranks compute the same numbers of the same samples (tensor parallelism): a sum over ranks has each so
    many times."""
    return getattr(trainer.strategy, "copies", 1)


def processes() -> int:
    """How many processes really train together."""
    started = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if started else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place; every rank must call it."""
    if processes() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def refuse(error: UserError) -> NoReturn:
    """Raise an error that every rank has found out about; only the first one says it."""
    raise error if is_first_rank() else SystemExit(error.exit_code)


def written(job: Callable[[], object]) -> None:
    """Write something, each rank its part. Where one of them cannot, all stop at once and the first one says why.

    Raises:
        WriteError: on the first rank.
    """
    problem: WriteError | None = None
    try:
        job()
    except WriteError as error:
        problem = error
    every: list[Any] = [None if problem is None else str(problem)]
    if processes() > 1:
        every *= processes()
        torch.distributed.all_gather_object(every, None if problem is None else str(problem))
    if (failed := next((each for each in every if each is not None), None)) is not None:
        refuse(problem or WriteError(failed))


def norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """The norm of each of these tensors, of a sharded one that of this rank's part: float32 [len(tensors)] on their
    device, for which nothing waits.

    Args:
        order: of the norm. The second also overflows where the squares do, as Adam's second moment would.
    """
    held = [part if part.numel() else part.new_zeros(1) for part in map(local, tensors)]
    return torch.stack([norm.float() for norm in torch._foreach_norm(held, order)])


def not_finite(norms: Tensor) -> Tensor:
    """1.0 for each norm that is not finite on some rank, else 0.0: [len(norms)]. Every rank must call it."""
    return sum_over_ranks((~norms.isfinite()).float()).clamp_(max=1.0)


def gradient_norm(net: nn.Module) -> Tensor:
    """The norm of the whole gradient; every rank must call it."""
    return full(torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None]))
