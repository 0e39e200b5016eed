"""What devices send to one another in a training step, and how long a step is at most and at least: computed, not
measured.

Of a ring of n devices, an all-gather or a reduce-scatter of S bytes has each send (n - 1) / n S, an all-reduce twice as
much (Patarasu & Yuan 2009). With P weights, of which H are matrices that are gathered in 16 bits, I those of islands
(`sharding.islands`) and L all the rest:

| strategy | bytes that a device sends in a step                                                              |
|----------|--------------------------------------------------------------------------------------------------|
| `ddp`    | 2 (n - 1) / n 4 P                                                                                  |
| `fsdp2`  | (n - 1) / n (2 (2 H + 4 I) + 4 L + 4 P): two gathers of blocks, one of the rest, one reduce-scatter |
| `hsdp`   | the same among the s devices of a replica, and 2 (r - 1) / r 4 P / s between r replicas            |
| `tp`     | 2 (r - 1) / r 4 P' between r groups, P' the weights that a device of a group has                   |

What devices of a group send one another, `tp`'s or those of `strategy.context`, depends on the network and the batch;
it is counted (`together.Imagined`).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from neural_rdm.core.ranks import NODE
from neural_rdm.training.memory import FLOAT
from neural_rdm.training.precision import narrow
from neural_rdm.training.sharding import matrices


@dataclass(frozen=True)
class Links:
    """How fast devices send, in bytes a second, each way.

    Attributes:
        inside: to the others of their node.
        outside: to other nodes, the node's cards shared out among its devices.
    """

    inside: float
    outside: float


#: NVIDIA's data sheets: fourth NVLink, 900 GB/s in both directions together; one 400 Gb/s card (ConnectX-7) a GPU
HOPPER = Links(450e9, 50e9)


@dataclass(frozen=True)
class Traffic:
    """Bytes that a device sends in a step.

    Attributes:
        ring: in the ring of all that share out weights or, under `ddp`, gradients.
        size: devices of that ring.
        copied: to those of other replicas, or groups, that have the same share.
        grouped: to those that compute one batch together, of its node.
    """

    ring: float
    size: int
    copied: float = 0.0
    grouped: float = 0.0

    def seconds(self, links: Links, reached: float = 1.0) -> float:
        """How long it takes if nothing is computed meanwhile. A ring through several nodes is as fast as all cards of a
        node together, which carry it side by side; a ring of one device a node as fast as one. Latency is not counted.

        Args:
            reached: share of the links' speed.
        """
        speed = links.inside if self.size <= NODE else min(links.inside, NODE * links.outside)
        return (self.ring / speed + self.copied / links.outside + self.grouped / links.inside) / reached


def traffic(net: nn.Module, devices: int, shards: int, half: bool = True) -> Traffic:
    """The traffic of a step.

    Args:
        net: the network, its tensors anywhere.
        devices: in all.
        shards: among how many of them weights are shared out; 1 for `ddp`, all for `fsdp2`, else `hsdp`.
        half: the matrices of blocks are gathered in 16 bits.
    """
    total = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    if shards == 1:
        return Traffic(2 * (devices - 1) / devices * FLOAT * trained, devices)
    heavy, replicas = matrices(net), devices // shards
    blocks = sum(p.numel() for p in heavy)
    saved = 2 * sum(p.numel() for p in narrow(net)) if half else 0
    gathered = 2 * (FLOAT * blocks - saved) + FLOAT * (total - blocks)
    ring = (shards - 1) / shards * (gathered + FLOAT * trained)
    return Traffic(ring, shards, 2 * (replicas - 1) / replicas * FLOAT * trained / shards)


def averaged(part: nn.Module, groups: int) -> Traffic:
    """The traffic between groups of tensor parallelism, which average their gradients.

    Args:
        part: what a device of a group has of the network (`memory.of_one_device`).
        groups: how many there are, each in a node of its own.
    """
    trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
    return Traffic(0.0, 1, 2 * (groups - 1) / groups * FLOAT * trained)
