"""The memory that training takes on each device, worked out before any of it is taken."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from neural_rdm.backbones.contract import Backbone, blocks_of
from neural_rdm.backbones.counting import Held
from neural_rdm.core.errors import ConfigError
from neural_rdm.training import context_parallel, tensor_parallel
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.precision import narrow
from neural_rdm.training.recompute import How, recompute
from neural_rdm.training.sharding import matrices
from neural_rdm.training.together import Group, Imagined

GIB = 2**30
ALONE = Imagined(1)
FLOAT = 4  # bytes: weights, gradients, optimizer and averages are float32, but for what `precision.narrow` names


@dataclass(frozen=True)
class Memory:
    """Bytes of one device at the fullest moment of a step, by what they are for.

    All gradients count: those of the step before are still there in the forward pass, and most of the new ones when the
    last blocks of the backward pass compute.

    Attributes:
        weights, optimizer, averages: there all the time; this device's part of them.
        gradients: this device's part, once all are there.
        activations: kept for the backward pass, behind the forward one.
        passing: what the fullest pass has beyond that, for a moment.
        gathered: whole weights and gradients of blocks that devices share out, while a block computes.
    """

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    passing: int
    gathered: int

    @property
    def most(self) -> int:
        """Bytes at the fullest moment."""
        return sum(vars(self).values())


def of_one_device(net: Backbone, how: How = "none", tensor: Group = ALONE, context: Group = ALONE) -> Backbone:
    """A copy of a network as one device trains it; its tensors hold nothing.

    Args:
        net: the whole network, its tensors anywhere.
        how: which blocks compute twice, see `recompute`.
        tensor, context: the group that shares out its blocks, or the tokens; imagined ones (`together.Imagined`).

    Raises:
        ConfigError: a network that cannot be shared out so.
    """

    def empty(tensor: Tensor) -> Tensor:
        held = tensor.detach().to("meta")
        return nn.Parameter(held, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else held

    copied = copy.deepcopy(net, {id(t): empty(t) for t in chain(net.parameters(), net.buffers())})
    recompute(copied, how)
    if context.size > 1:
        context_parallel.check(copied, context.size)
        context_parallel.share_in(copied, context)
    if tensor.size > 1:
        tensor_parallel.imagine(copied, tensor)
    return copied


def memory(
    net: Backbone,
    optimizer: Optimizer,
    averages: int,
    found: Held,
    shards: int = 1,
    half: bool = False,
    true: bool = False,
    reshards: bool = True,
) -> Memory:
    """The memory of a training step.

    Args:
        net: the network, its tensors anywhere; under tensor parallelism one device's part of it (`of_one_device`).
        averages: how many averages of the weights are kept.
        found: of a batch of one device, see `backbones.counting.held`.
        shards: among how many devices weights, gradients, optimizer and averages are shared out (FSDP2, HSDP).
        half: under bf16-mixed, when matrices travel in 16 bits (`sharding.shard`). Then the activations are too many by
            2 bytes for each of them: their casts, which such a gather makes itself.
        true: under bf16-true, when matrices of blocks and their gradients are kept in 16 bits.
        reshards: `strategy.reshard_after_forward`; without it the gathered weights of all blocks stay until their
            backward pass.
    """
    sizes = {name: p.numel() for name, p in net.named_parameters()}
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    parts = optimizer.parts(net)
    states = sum((1 if name in parts else 2) * sizes[name] for names in optimizer.names(net) for name in names)
    saved = narrow(net) if true else set()
    gradients = (FLOAT * trained - 2 * sum(p.numel() for p in saved if p.requires_grad)) // shards
    gathered = 0
    if shards > 1:
        heavy, light = matrices(net), narrow(net) if half else set()
        blocks = [[p for p in block.parameters() if p in heavy] for block in blocks_of(net, "sharded")]
        each = [sum((2 if p in light else FLOAT) * p.numel() for p in block) for block in blocks]
        rest = sum(sizes.values()) - sum(p.numel() for block in blocks for p in block)
        # the rest of all blocks with its gradients; the block that computes, the next on its way, the block's gradients
        gathered = 2 * FLOAT * rest + max(each) + (2 * max(each) if reshards else sum(each))
    return Memory(
        weights=(FLOAT * sum(sizes.values()) - 2 * sum(p.numel() for p in saved)) // shards + buffers,
        gradients=gradients,
        optimizer=0 if optimizer.offload else FLOAT * states // shards,
        averages=averages * FLOAT * trained // shards,
        activations=found.kept,
        passing=max(found.forward, found.backward) - found.kept,
        gathered=gathered,
    )


def room(device: torch.device) -> int:
    """Bytes that a device has in all; for a CPU those of the machine with its swap, or of the group of processes that
    this one was put into.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    information = Path("/proc/meminfo")
    if information.is_file():
        values = dict(line.split(":") for line in information.read_text().splitlines())
        found += 1024 * int(values.get("SwapTotal", "0 kB").split()[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        found = min(found, int(text))
    return found


def check_room(needed: Callable[[int], Memory], batch: int, has: int) -> str:
    """What to say of a step that does not fit into a device; empty for one that does.

    Args:
        needed: samples of a batch of one device -> memory of a step.
        batch: those of this run.
        has: bytes of the device.

    Raises:
        ConfigError: it needs far more than there is, which no error of the estimate explains.
    """
    needs = needed(batch).most
    if needs <= has:
        return ""
    fitting = max((2**power for power in range(40) if needed(2**power).most <= has), default=0)
    said = (
        f"a step needs about {needs / GIB:.1f} GiB on each device, which has {has / GIB:.1f}: {batch} samples at once, "
        f"of which about {fitting} fit. Lower data.batch_size, raise trainer.accumulate_grad_batches, or pass "
        "trainer.activation_checkpointing=full; python -m neural_rdm.plan tells what each of them does"
    )
    if needs > 1.25 * has:
        raise ConfigError(said)
    return said
