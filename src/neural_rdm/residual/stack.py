"""The stream that runs through a network's residual units, and the stack that opens and closes it.

The stream is a tensor, or a tuple of them where a rule keeps several copies or a history; see `Noted` as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, Union

from torch import Tensor, nn

Tensors: TypeAlias = tuple[Tensor, ...]


class Noted(NamedTuple):
    """A stream of several tensors, and what was worked out from them once for all later units.

    The notes are no part of the stream: whatever maps its tensors (a reshape, a probe's tap) leaves the notes behind,
    and who needs them works them out from the new tensors.
    """

    tensors: Tensors
    notes: Tensors


Stream: TypeAlias = Union[Tensor, Tensors, Noted]  # noqa: UP007 (evaluated by Python 3.10)


def tensors_of(stream: Stream) -> Tensors:
    """The tensors of a stream, without notes."""
    if isinstance(stream, Tensor):
        return (stream,)
    return stream.tensors if isinstance(stream, Noted) else stream


class Stack(nn.Module):
    """The stream between a stack's first unit and its last: here, and for the paper's five rules, the tensor itself.

    A rule whose stream is more than that subclasses it, and may give it parameters.
    """

    def open(self, z: Tensor) -> Stream:
        """The stream before the first unit, from the tensor z [B, ..., D]."""
        return z

    def close(self, stream: Stream, e: Tensor | None = None) -> Tensor:
        """The tensor [B, ..., D] that leaves the stack behind its last unit; a stream may be closed on the way, too.

        Args:
            e: the timestep embedding [B, E], where the network hands one to its units.
        """
        assert isinstance(stream, Tensor)
        return stream

    def map(self, fn: Callable[..., Tensor], *streams: Stream) -> Stream:
        """The stream of `fn(x, ...)` for the corresponding tensors of `streams`: a reshape, a resampling, a shortcut.

        Raises:
            ValueError: the streams hold different numbers of tensors: one has run through units that the other has not.
        """
        return map_stream(fn, *streams)

    def add(self, stream: Stream, x: Tensor) -> Stream:
        """The stream with x [broadcast] added once to what the units read (Latte's table of frames)."""
        return map_stream(lambda z: z + x, stream)

    def plain_values(self) -> dict[str, float | Tensor]:
        """The value of each of its parameters, by name, at which stack and plain units together are `z + F(z)`."""
        return {}


def map_stream(fn: Callable[..., Tensor], *streams: Stream) -> Stream:
    """`fn` of every tensor of a stream, or of the corresponding tensors of several; see `Stack.map`."""
    if isinstance(streams[0], Tensor):
        return fn(*streams)
    parts = [tensors_of(stream) for stream in streams]
    counts = [len(part) for part in parts]
    if len(set(counts)) > 1:
        raise ValueError(
            f"streams of {' and '.join(map(str, counts))} tensors do not go together: this residual rule keeps a "
            "history, which cannot be joined with a part of the stream that its units passed by"
        )
    return tuple(fn(*tensors) for tensors in zip(*parts, strict=True))
