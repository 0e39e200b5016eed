"""How much a network computes for one sample, counted on tensors without memory: weights are not touched or copied."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from neural_rdm.backbones.contract import Backbone

TOKENS = 77  # of a text, where the network does not say how many


class _Bound(nn.Module):
    """A network whose call is a function of its weights and buffers, which `functional_call` replaces."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        found: torch.Tensor = self.net(*inputs)
        return found


def flops(net: Backbone, tokens: int | None = None, backward: bool = True) -> int:
    """FLOPs of a forward and a backward pass for one sample: of its matrix products, convolutions and attentions, a
    multiply and an add counted as two (`torch.utils.flop_counter`). The optimizer's step and what is computed twice to
    save memory are not among them.

    Weights may be anywhere, and blocks compiled, but not sharded; the network is left as it is. Since the
    tensors hold nothing, it fails where a network asks for a value (`.item()`, `bool(tensor)`), for which a GPU would
    stop and wait.

    Args:
        net: the network.
        tokens: of a text, for a network that reads texts of any length; 77 where nobody says.
        backward: False counts the forward pass alone, in a third of the time; it is a third of both but for the
            gradient of the input, which nobody takes.

    Raises:
        Exception: whatever a network of one's own that cannot run without values raises.
    """

    def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, grad: bool = False) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, requires_grad=grad)

    # Compiled blocks run as they were written: met inside these modes, their compiler would give them up for good. The
    # plain attention, because the counter does not know every fused one.
    eager = torch.compiler.set_stance("force_eager")
    with eager, FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(backward):
        state = {
            f"net.{name}": empty(tuple(value.shape), value.dtype, value.requires_grad)
            for name, value in chain(net.named_parameters(), net.named_buffers())
        }
        y = empty((1,), torch.long) if net.num_classes else None
        context = empty((1, net.context_length or tokens or TOKENS, net.context_dim)) if net.context_dim else None
        inputs = empty((1, *net.input_shape)), empty((1,)), y, context
        with FlopCounterMode(display=False) as counter:
            out = functional_call(_Bound(net), state, inputs)
            if backward:
                out.sum().backward()
    return int(counter.get_total_flops())
