"""What each of two processes runs; only the standard library at the top, since a spawned process imports this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def every_rule(rank: int, port: int, folder: Path) -> None:
    """Each rule's gradients, and those of the options that go beside one, on half of a batch a process, copied (DDP)
    and sharded (FSDP2), against the whole batch's: `RULE differs ...` lines go to `folder/RANK.txt`, which is empty
    where all agree.
    """
    import copy
    import os
    import warnings

    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from neural_rdm.backbones.options import keyed
    from neural_rdm.training import parallel
    from neural_rdm.training.optim import Optimizer
    from tests.backbones import test_options as beside
    from tests.residual.test_conformance import RULES_HERE, moved, network

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo")
    generator = torch.Generator().manual_seed(3)
    x, t, y = (
        torch.randn(4, 2, 4, 4, generator=generator).double(),
        torch.tensor([5, 700, 40, 300]),
        torch.arange(4) % 3,
    )
    own, all_of_it = slice(2 * rank, 2 * rank + 2), slice(None)

    def gradients(net: nn.Module, part: slice) -> dict[str, torch.Tensor]:
        with keyed(0, torch.arange(4)[part]):
            net(x[part], t[part], y[part]).square().mean().backward()
        named = net.named_parameters()
        return {n.removeprefix("module."): parallel.full(p.grad).clone() for n, p in named if p.grad is not None}

    def stepped(net: nn.Module, part: slice) -> dict[str, torch.Tensor]:
        optimizer = Optimizer(name="muon", lr=1e-2).build(net)
        gradients(net, part)
        optimizer.step()
        return {n: parallel.full(p.detach()).clone() for n, p in net.named_parameters()}

    def sharded(net: nn.Module) -> Any:
        from torch.distributed.fsdp import fully_shard

        for block in net.blocks:
            fully_shard(block)
        return fully_shard(net)

    wrong = []
    bodies = {rule: moved(network("dit", rule)) for rule in RULES_HERE}
    bodies |= {f"{kind} with options": beside.network(kind, **beside.options(kind)).train() for kind in ("dit", "uvit")}
    for rule, whole in bodies.items():
        halves = {"DDP": DistributedDataParallel(copy.deepcopy(whole)), "FSDP2": sharded(copy.deepcopy(whole))}
        cases = [(kind, gradients(net, own)) for kind, net in halves.items()]
        expected = gradients(copy.deepcopy(whole), all_of_it)
        if rule in ("gated", "hc"):
            cases.append(("Muon under FSDP2", stepped(sharded(copy.deepcopy(whole)), own)))
        for kind, found in cases:
            wanted = stepped(copy.deepcopy(whole), all_of_it) if kind.startswith("Muon") else expected
            if found.keys() != wanted.keys():
                wrong.append(f"{rule} differs in its keys under {kind}: {sorted(found.keys() ^ wanted.keys())}")
            tolerance = 1e-5 if kind.startswith("Muon") else 1e-10
            for name in found.keys() & wanted.keys():
                if not torch.allclose(found[name], wanted[name], rtol=tolerance, atol=1e-5 * tolerance**0.5):
                    wrong.append(f"{rule} differs in {name} under {kind}")
    (folder / f"{rank}.txt").write_text("\n".join(wrong), encoding="utf-8")
    torch.distributed.destroy_process_group()
