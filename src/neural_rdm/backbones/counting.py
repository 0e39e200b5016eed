"""How much a network computes and holds, counted on tensors without memory: weights are not touched or copied."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from neural_rdm.backbones.contract import Backbone

TOKENS = 77  # of a text, where the network does not say how many


Forward = Callable[[], Tensor]
Found = TypeVar("Found")


class _Bound(nn.Module):
    """A network and what is asked of it, during which `functional_call` has replaced its weights and buffers."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ask: Callable[[Forward], Found], inputs: tuple[Tensor | None, ...]) -> Found:
        return ask(lambda: self.net(*inputs))


def _without_memory(
    net: Backbone, batch: int, tokens: int | None, grad: bool, ask: Callable[[Forward, list[Tensor]], Found]
) -> Found:
    """What is asked of the forward pass of a batch on tensors that hold nothing, and of all that it begins with.

    Weights may be anywhere, and blocks compiled, but not sharded; the network is left as it is. Since the tensors hold
    nothing, it fails where a network asks for a value (`.item()`, `bool(tensor)`), for which a GPU would stop and wait.
    """

    def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
        return torch.empty(shape, dtype=dtype, requires_grad=grad)

    # Compiled blocks run as they were written: met inside these modes, their compiler would give them up for good.
    with torch.compiler.set_stance("force_eager"), FakeTensorMode(), torch.set_grad_enabled(grad):
        state = {
            f"net.{name}": empty(tuple(value.shape), value.dtype, value.requires_grad)
            for name, value in chain(net.named_parameters(), net.named_buffers())
        }
        y = empty((batch,), torch.long) if net.num_classes else None
        length = net.context_length or tokens or TOKENS
        context = empty((batch, length, net.context_dim)) if net.context_dim else None
        inputs = empty((batch, *net.input_shape)), empty((batch,)), y, context
        begins = [*state.values(), *(x for x in inputs if x is not None)]
        found: Found = functional_call(_Bound(net), state, (lambda forward: ask(forward, begins), inputs))
        return found


def flops(net: Backbone, tokens: int | None = None, backward: bool = True) -> int:
    """FLOPs of a forward and a backward pass for one sample: of its matrix products, convolutions and attentions, a
    multiply and an add counted as two (`torch.utils.flop_counter`). The optimizer's step and what is computed twice to
    save memory are not among them.

    Args:
        net: the network.
        tokens: of a text, for a network that reads texts of any length; 77 where nobody says.
        backward: False counts the forward pass alone, in a third of the time; it is a third of both but for the
            gradient of the input, which nobody takes.

    Raises:
        Exception: whatever a network of one's own that cannot run without values raises.
    """

    def counted(forward: Forward, _: object) -> int:
        # the plain attention, because the counter does not know every fused one
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            out = forward()
            if backward:
                out.sum().backward()
        return int(counter.get_total_flops())

    return _without_memory(net, 1, tokens, backward, counted)


class Held(NamedTuple):
    """Bytes that a training step holds beside weights, optimizer and averages.

    Attributes:
        forward: at most, in the forward pass.
        kept: behind the forward pass, for the backward one: the activations.
        backward: at most, in the backward pass, without the gradients of the weights.
    """

    forward: int
    kept: int
    backward: int

    def at(self, batch: int, other: Held, batches: tuple[int, int]) -> Held:
        """The bytes of another batch, a straight line through these and those of a second batch.

        Args:
            batch: its samples.
            batches: the samples of this and of `other`.
        """
        here, there = batches
        steps = ((b - a) * (batch - here) // (there - here) for a, b in zip(self, other, strict=True))
        return Held(*(a + step for a, step in zip(self, steps, strict=True)))


def held(net: Backbone, batch: int, tokens: int | None = None, half: bool = False, backward: bool = True) -> Held:
    """The bytes of a forward and a backward pass for a batch of one device, fused attention where torch has one; what
    libraries take for themselves is not among them.

    Args:
        tokens: of a text, as for `flops`.
        half: under autocast to bfloat16, with norms in float32 as on GPUs.
        backward: False leaves the backward pass out, and its bytes are those of its beginning.

    Raises:
        Exception: whatever a network of one's own that cannot run without values raises.
    """

    def counted(forward: Forward, begins: list[Tensor]) -> Held:
        with _Living(begins) as living:
            with torch.autocast("cpu", torch.bfloat16, enabled=half), _NormsOfGPUs() if half else nullcontext():
                loss = forward().float().square().mean()
            first, kept = living.most, living.now
            living.most = kept
            for tensor in begins:
                if tensor.requires_grad:
                    tensor.register_post_accumulate_grad_hook(living.received)
            if backward:
                loss.backward()
            return Held(first, kept, living.most)

    return _without_memory(net, batch, tokens, True, counted)


def held_by_batch(
    net: Backbone, tokens: int | None = None, half: bool = False, backward: bool = True
) -> Callable[[int], Held]:
    """`held` for any batch, from two small ones: bytes are a straight line over the samples."""
    small = 2, 4
    first, second = (held(net, batch, tokens, half, backward) for batch in small)
    return lambda batch: first.at(batch, second, small)


class _Living(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still there, and the most that there were."""

    def __init__(self, begins: list[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known = WeakIdKeyDictionary(ref_type=weakref.ref)  # a view has its tensor's storage
        for tensor in begins:
            self._known[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self._known:
                self._known[storage] = True
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.most = max(self.most, self.now)
        return out

    def received(self, weight: Tensor) -> None:
        """A weight has its gradient, which does not count."""
        self.now -= weight.numel() * weight.element_size()

    def _freed(self, size: int) -> None:
        self.now -= size


class _NormsOfGPUs(TorchFunctionMode):
    """Autocast on GPUs computes norms in float32; on CPUs, which stand for them here, it does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.layer_norm, torch.group_norm, torch.rms_norm):
            args = tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)
        return func(*args, **(kwargs or {}))
