"""How a network is shared out over devices (FSDP2): what is gathered when, in which precision, and how a checkpoint
becomes shards and shards a checkpoint again. A network states its `blocks` and knows nothing of this.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn

from neural_rdm.backbones.contract import blocks_of
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.core.sharded import Keys
from neural_rdm.residual import gate_names

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


#: precisions under which the matrices of blocks are gathered as bfloat16
HALF = ("bf16-mixed", "bf16-true", "float8-mixed")


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for networks whose parameters are DTensors of their own making.

    A checkpoint's content stays sharded until it is written (`StreamedCheckpointIO` gathers it into one file, or has
    every rank write its own), and has the optimizer's parameters in the optimizer's order, as under every other
    strategy: Lightning would number them as the module does, which mixes them up where groups (the gates') reorder
    them.

    Args:
        data, tensor: devices that take a part of the batch each, and that compute one together.
    """

    #: ranks that take one part of the batch together (see `core.ranks.parts`), those of them that compute the same
    #: numbers, and those that share out one copy of the weights
    together, copies, shards = 1, 1, 1

    lightning_module_state_dict = Strategy.lightning_module_state_dict
    load_model_state_dict = Strategy.load_model_state_dict
    optimizer_state = Strategy.optimizer_state
    load_optimizer_state_dict = Strategy.load_optimizer_state_dict
    lightning_restore_optimizer = Strategy.lightning_restore_optimizer

    def __init__(self, data: int, tensor: int = 1) -> None:
        super().__init__(data_parallel_size=data, tensor_parallel_size=tensor, save_distributed_checkpoint=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Every rank calls the writer, which gathers or shards."""
        self.checkpoint_io.save_checkpoint(checkpoint, self.broadcast(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint of any strategy and number of ranks; of each sharded parameter, of its averages and of its
        moments, this rank keeps its own part."""
        assert self.lightning_module is not None
        named = dict(self.lightning_module.named_parameters())
        ordered = [[p for group in o.param_groups for p in group["params"]] for o in self.optimizers]

        def like(keys: Keys, tensor: Tensor) -> Tensor | None:
            """The parameter that a tensor of the checkpoint belongs to, and is laid out as."""
            parameter: Tensor | None = None
            match keys:
                case ("optimizer_states", int(which), "state", int(number), _):
                    parameter = ordered[which][number]
                case (_, *_, str(name)):
                    parameter = named.get(name, named.get(f"net.{name}"))
            return parameter if parameter is not None and parameter.shape == tensor.shape else None

        io: Any = self.checkpoint_io
        content: dict[str, Any] = io.load_checkpoint(self.broadcast(checkpoint_path), like=like)
        return content


class FSDP2(Sharded):
    """Fully sharded data parallelism, which `shard` carries out.

    Args:
        devices: of all nodes together.
        reshard_after_forward: see `parallel.fsdp2`.
        replicas: copies of the network, each shared out over `devices / replicas` devices (HSDP).
    """

    def __init__(self, devices: int, reshard_after_forward: bool, replicas: int = 1) -> None:
        super().__init__(devices)
        self.reshard_after_forward, self.replicas = reshard_after_forward, replicas
        self.shards = devices // replicas

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The devices: [shards], or [replicas, shards] of neighbours, which share a node where they can."""
        from torch.distributed.device_mesh import init_device_mesh

        if self.replicas == 1:
            return self.device_mesh["data_parallel"]
        sizes = (self.replicas, self.shards)
        return init_device_mesh(self.root_device.type, sizes, mesh_dim_names=("replicate", "shard"))


def shards(module: pl.LightningModule) -> bool:
    """Whether `shard` will shard this module's network."""
    return _strategy(module) is not None


def _strategy(module: pl.LightningModule) -> FSDP2 | None:
    strategy = module.trainer.strategy if module._trainer is not None else None
    return strategy if isinstance(strategy, FSDP2) and strategy._device_mesh is not None else None


def matrices(net: nn.Module) -> set[nn.Parameter]:
    """The matrices of a network's blocks, without gates: what each block gathers when it runs."""
    gates = gate_names(net)
    inside = {id(p) for block in blocks_of(net, "sharded (strategy=fsdp2)") for p in block.parameters()}
    return {p for name, p in net.named_parameters() if id(p) in inside and p.ndim > 1 and name not in gates}


def islands(net: nn.Module) -> list[Float32Linear]:
    """The layers of a network's blocks that compute in float32 whatever the precision."""
    blocks = blocks_of(net, "sharded (strategy=fsdp2)")
    return [layer for block in blocks for layer in block.modules() if isinstance(layer, Float32Linear)]


def shard(module: pl.LightningModule) -> None:
    """Shard `module.net` where the strategy is FSDP2; otherwise, and the second time, do nothing.

    Every block's matrices are one group, gathered when the block runs; all the rest (embeddings, the last layer, and of
    the blocks gates, biases and scales) is another, gathered once a step. Under `trainer.precision=bf16-mixed` matrices
    travel and are kept between gathers as bfloat16, everything else as float32, as autocast would use them; islands
    (`Float32Linear`) are groups of their own inside their block. Gradients are summed over ranks in float32.
    """
    strategy = _strategy(module)
    if strategy is None:
        return
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    net: Any = module.net
    if isinstance(net, FSDPModule):
        return
    blocks = blocks_of(net, "sharded (strategy=fsdp2)")
    heavy = matrices(net)
    options: Any = {"mesh": strategy.mesh, "reshard_after_forward": strategy.reshard_after_forward}
    half = strategy.precision_plugin.precision in HALF
    alone = islands(net) if half else []
    own = {p for layer in alone for p in layer.parameters()}
    # the rest comes first: what a block does not hold back for it would belong to the block
    fully_shard(net, **options, ignored_params=heavy | own)
    for layer in alone:
        fully_shard(layer, **options)
    if half:  # inputs stay as autocast has them: float32 in the stream
        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    light = set(net.parameters()) - heavy
    for block in blocks:
        fully_shard(block, **options, ignored_params=light)
