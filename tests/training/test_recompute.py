"""Activation checkpointing: the same gradients, less memory, and nothing else changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from neural_rdm import DiT
from neural_rdm.backbones.counting import held
from neural_rdm.core.errors import ConfigError
from neural_rdm.training.recompute import recompute


def network() -> DiT:
    torch.manual_seed(0)
    net = DiT(8, 2, 1, 32, 4, 4, num_classes=10)
    for parameter in net.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return net


def gradients(net: DiT) -> list[torch.Tensor]:
    net.zero_grad()
    net(torch.ones(2, 1, 8, 8), torch.tensor([3.0, 700.0]), torch.tensor([1, 10])).square().mean().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("how", ["full", "selective", 2])
def test_everything_is_as_before(how: Any) -> None:
    net = network()
    again = copy.deepcopy(net)
    recompute(again, how)
    recompute(again, how)  # Lightning configures a model more than once
    assert again.state_dict().keys() == net.state_dict().keys()
    assert [type(b).__name__ for b in again.blocks] == ["DiTBlock"] * 4
    assert all(isinstance(b, type(a)) for a, b in zip(net.blocks, again.blocks, strict=True))
    assert all(map(torch.equal, gradients(net), gradients(again)))


def test_attention_is_computed_once_where_it_is_kept() -> None:
    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += "attention" in str(func) and "backward" not in str(func)
            return func(*args, **(kwargs or {}))

    def attentions(how: Any) -> int:
        net = network()
        recompute(net, how)
        with Count() as count:
            gradients(net)
        return count.calls

    assert [attentions(how) for how in ("none", "full", "selective", 2)] == [4, 8, 4, 6]


def test_memory_goes_in_the_order_of_their_names() -> None:
    def kept(how: Any) -> int:
        net = network()
        recompute(net, how)
        return held(net, 8, backward=False).kept

    none, half, selective, full = (kept(how) for how in ("none", 2, "selective", "full"))
    assert none > half > selective > full
    assert full < none / 5


def test_a_network_without_blocks_is_refused() -> None:
    recompute(nn.Linear(2, 2), "none")
    with pytest.raises(ConfigError, match=r"Linear cannot be checkpointed \(trainer.activation_checkpointing\)"):
        recompute(nn.Linear(2, 2), "full")
