"""What every residual rule is made of: the unit (one residual addition), the stack that the units of a network form,
and the registry of rules. The rules themselves, the paper's equation first, are in `rules.py`.

A network knows nothing of a rule but this:

    plan = residual.plan(count=2 * depth, dim=hidden_size)     # once, when it is built
    self.stack = plan.stack                                    # may hold parameters
    self.attn_unit = plan.unit("attn", block=0)                # in run order

    stream = self.stack.open(z)
    stream = self.attn_unit(stream, lambda h: self.attn(self.norm(h)))
    z = self.stack.close(stream)

The stream is a tensor, or a tuple of them where a rule keeps several copies or a history. A network never looks into
it: reshapes go through `map`, what is added once goes through `add`, and the branch always sees one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from neural_rdm.residual.stack import Stack, Stream, map_stream
from neural_rdm.residual.taps import close_branch, close_overlap, open_overlap, tap, watch, watch_write

Start = Literal["plain", "identity", "other"]
Branch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Place:
    """Where a unit stands, which a rule may make use of.

    Args:
        dim: channels of the stream that the branch reads (D).
        dim_out: channels of the stream that it writes; another number only where a shortcut changes the width.
        channel_axis: -1 for tokens [B, ..., D], 1 for maps [B, D, H, W].
        time_dim: E, the width of the timestep embedding that the network hands to its units; None where it hands none.
        role: what the branch is: `attn`, `cross`, `mlp`, `conv` or `outer` (a branch that holds further units).
        block: number of the block that it belongs to, in run order.
        index: its own number in run order, 0 ... count - 1.
        count: units of the stack.
    """

    dim: int
    dim_out: int
    channel_axis: int = -1
    time_dim: int | None = None
    role: str = ""
    block: int = 0
    index: int = 0
    count: int = 1


class Unit(nn.Module):
    """One residual addition. This class is the plain one, `z + F(z)`; with a block's own gate g, `z + g * F(z)`.

    A rule overrides `read`, `write` or both, and says below what it is. Its options are the keyword arguments of its
    constructor.

    Args:
        place: where it stands.
    """

    #: what it is called in configurations; set by `rule`
    rule_name: ClassVar[str] = ""
    #: what a unit computes where its parameters start: `plain` (z + F), `identity` (z) or `other`
    start: Start = "plain"
    #: where `plain` holds only up to the eps of norms: the largest relative move of a trained network's output [D]
    plain_within: float = 0.0
    #: whether the stream is one tensor; else a network of diffusers, which hands on one, cannot have it
    single: bool = True
    #: why the stream cannot be closed, mixed with a long skip and opened again (U-ViT); None where it can
    no_reopening: str | None = None
    #: why units cannot be put into a trained stack (`surgery.grow`); None where they can
    no_growth: str | None = None
    #: why gamma cannot supervise it; None where it can
    no_supervision: str | None = "it has no gates"
    #: which of its parameters the reports follow
    has_alpha: bool = False
    has_beta: bool = False
    #: whether alpha multiplies the branch, so that alpha = 0 and beta = 0 leave the stream as it is
    scales_branch: bool = False
    #: whether alpha multiplies the stream itself
    scales_stream: bool = False
    #: the gate that multiplies the stream itself, for a rule whose stream is one tensor
    stream_gate: Literal["alpha", "beta"] | None = None
    #: whether the stream enters the sum as it is, so that its gradient there is the unit's exit gradient itself
    adds_to_stream: bool = True
    #: whether its parameters depend on the timestep embedding
    time_conditioned: bool = False
    across_tokens: bool = False  # whether what it writes at a token depends on others, beside the branch

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        #: set by `dynamics.probe` for one step: the zero tensor [2] or [4] whose gradient collects squared norms
        self.probe: Tensor | None = None
        #: set with it: zeros of the shapes of `gate_parameters(stream_gate)`, whose gradients collect <s_i, s_{i+1}>
        self.overlap: tuple[Tensor, ...] | None = None
        #: set by `dynamics.statistics` for one step: the rows [T, 7] of this unit and the bins [B, T] of the samples
        self.watched: tuple[Tensor, Tensor] | None = None
        self.off = False  # whether it is left out: the stream passes as if its branch did not exist (`dynamics.lens`)
        self.entered = False  # whether the block has tapped the stream before the branch reads it (`foreign.blocks`)
        self.loan: Tensor | None = None  # what the block has opened there, where branches are measured

    @classmethod
    def make_stack(cls, place: Place, **options: Any) -> Stack:
        """The stack of this rule's units, with the same options; `place` gives width and number of its units."""
        return Stack()

    @classmethod
    def starts(cls, **options: Any) -> Start:
        """What `start` is with these options."""
        return cls.start

    def join(self, stack: Stack) -> None:
        """Be told of the stack that it is a unit of: for a rule whose units share what their stack holds."""

    @property
    def dim(self) -> int:
        """Channels of the stream that the branch reads."""
        return self.place.dim

    @property
    def dim_out(self) -> int:
        """Channels of the stream that it writes."""
        return self.place.dim_out

    @property
    def channel_axis(self) -> int:
        """-1 for tokens, 1 for maps."""
        return self.place.channel_axis

    # -- the rule: the two lines that a subclass overrides

    def read(self, z: Stream, e: Tensor | None = None) -> Tensor:
        """What the branch reads from the stream."""
        return self._tensor(z)

    def write(self, z: Stream, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Stream:
        """The stream after the unit, from the stream before it and the branch's output."""
        z = self._tensor(z)
        return z + f if g is None else add_scaled(z, self.spread(g, z), f)

    def gated(self, f: Tensor, g: Tensor | None) -> Tensor:
        """The branch's output behind the block's own gate, where it has one: what `write` adds up."""
        return f if g is None else self.spread(g, f) * f

    # -- one unit in a forward pass

    def forward(
        self,
        z: Stream,
        branch: Branch,
        g: Tensor | None = None,
        e: Tensor | None = None,
        shortcut: Branch | None = None,
    ) -> Stream:
        """`write(shortcut(z), branch(read(z)))`; the shapes of `z` and of the result differ only through `shortcut`.

        Args:
            z: the stream, of tensors [B, ..., D] (or [B, D, H, W] with `channel_axis=1`).
            branch: F, from what is read to a tensor of the same number of rows.
            g: the block's own adaLN gate [B, dim_out], where it has one.
            e: the timestep embedding [B, E], for rules that depend on it.
            shortcut: what the stream itself goes through where the block changes its size or width.
        """
        if self.off:
            return z if shortcut is None else map_stream(shortcut, z)
        if self.probe is not None or self.watched is not None or self.overlap is not None:
            return self._measured(z, branch, g, e, shortcut)
        before = z if shortcut is None else map_stream(shortcut, z)
        return self.write(before, branch(self.read(z, e)), g, e)

    def _measured(
        self, z: Stream, branch: Branch, g: Tensor | None, e: Tensor | None, shortcut: Branch | None
    ) -> Stream:
        """The same unit with its taps: entry and exit, and with four rows the two ways between them as well."""
        rows = () if self.probe is None else self.probe.unbind()
        entry, exits, identity = rows[:1], rows[1:2], rows[3:]
        if self.entered and identity:
            z = close_branch(self._tensor(z), self.loan)
        z, loan = z if self.entered else _tapped(z, *entry), None
        if self.overlap is not None and shortcut is None:  # through a shortcut the gate's effect is not elementwise
            z = self._tensor(z)
            z, loan = open_overlap(z, self.spread(_overlap_row(self.overlap, e), z))
        stream = z
        if identity:
            z = z if self.entered else _tapped(z, rows[2])
            if shortcut is None and self.adds_to_stream:
                exits += identity  # one gradient, measured once
            else:
                stream = _tapped(stream, *identity)
        before = stream if shortcut is None else map_stream(shortcut, stream)
        read = self.read(z, e)
        f = branch(read)
        if self.watched is not None and not isinstance(z, Tensor):
            f = watch_write(f, self.gated(f, g), read, *self.watched, self.channel_axis)
        out = self.write(before, f, g, e)
        if self.watched is not None and isinstance(out, Tensor):
            assert isinstance(before, Tensor)
            out = watch(out, before, *self.watched, self.channel_axis)
        return _tapped(out if loan is None else close_overlap(self._tensor(out), loan), *exits)

    # -- what others ask of a rule

    def plain_values(self) -> dict[str, float | Tensor]:
        """The value of each of its parameters, by name, at which it computes `z + F(z)`: one number, or a tensor.

        Raises:
            ValueError: there are none.
        """
        return {}

    def identity_values(self) -> Mapping[str, float | Tensor] | None:
        """The value of each of its parameters, by name, at which it leaves the stream as it is; None where there are
        none: only a branch whose last layer is zero does.
        """
        return None

    def affine(self, gated_behind: bool) -> tuple[Tensor | None, Tensor | None]:
        """What it comes to if its branch ends in an affine layer: a factor and a shift of that layer's output
        ([dim_out], or [1], each), None for none. Folding puts them into the layer.

        Args:
            gated_behind: the block multiplies the layer's output by a gate of its own.

        Raises:
            ValueError: it cannot be expressed so, in words that follow the unit's name.
        """
        return None, None

    def gate_parameters(self, gate: Literal["alpha", "beta"]) -> list[nn.Parameter]:
        """All parameters that a gate is made of: its static value, and the weight [D, E] of a time-conditioned one."""
        names = [gate, f"{gate}_time"] if self.time_conditioned else [gate]
        return [getattr(self, name) for name in names]

    def spread(self, gate: Tensor, z: Tensor) -> Tensor:
        """View a gate [D] or [B, D] so that it broadcasts against `z` along the channel axis."""
        if self.channel_axis == 1:
            return gate.reshape(*gate.shape, *(1,) * (z.ndim - 2))
        return gate if gate.ndim == 1 else gate.reshape(gate.shape[0], *(1,) * (z.ndim - 2), gate.shape[-1])

    @staticmethod
    def _tensor(z: Stream) -> Tensor:
        assert isinstance(z, Tensor), "a rule whose stream is several tensors says itself what is read and written"
        return z

    def extra_repr(self) -> str:
        return f"{self.dim}" + (f", {self.dim_out}" if self.dim_out != self.dim else "")


# -- sums and measurements


def add_scaled(z: Tensor, scale: Tensor, f: Tensor) -> Tensor:
    """`z + scale * f` in one `addcmul`, which keeps only `f` and `scale` for the backward pass.

    Under autocast CUDA promotes `addcmul` to float32 and would keep a float32 copy of `f`; there the product is formed
    in f's own type and only the sum is promoted.
    """
    if torch.is_autocast_enabled(f.device.type):
        return z + scale.to(f.dtype) * f
    return torch.addcmul(z, scale, f)


def _tapped(stream: Stream, *rows: Tensor) -> Stream:
    """The stream with taps: each row collects the squared norm of the gradient of all of its tensors together."""
    return map_stream(lambda z: tap(z, *rows), stream)


def _overlap_row(leaves: tuple[Tensor, ...], e: Tensor | None) -> Tensor:
    """Zeros that depend on the leaves as the effective gate does on its parameters."""
    static, *time = leaves
    if not time or e is None:  # without e the rule itself refuses
        return static
    with torch.autocast(static.device.type, enabled=False):  # which would round the products
        return static + nn.functional.linear(e.detach().to(static.dtype), time[0])


# -- the rules by name, and the units of a network

RULES: dict[str, type[Unit]] = {}
Rule = TypeVar("Rule", bound=type[Unit])


def rule(name: str) -> Callable[[Rule], Rule]:
    """Class decorator: register a rule under the name by which `residual=` chooses it.

    Raises:
        ValueError: another class has the name.
    """

    def register(unit: Rule) -> Rule:
        known = RULES.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (unit.__module__, unit.__qualname__):
            raise ValueError(f"a residual rule called {name!r} exists already: {known.__module__}.{known.__qualname__}")
        unit.rule_name = name
        RULES[name] = unit
        return unit

    return register


def units(model: nn.Module) -> Iterator[tuple[str, Unit]]:
    """Yield (name, unit) of every residual addition of `model` in run order.

    A network whose registration order is not its run order lists it itself, in a method `unit_order()`.
    """
    order = getattr(model, "unit_order", None)
    yield from order() if order is not None else ((n, m) for n, m in model.named_modules() if isinstance(m, Unit))


def gate_names(model: nn.Module) -> set[str]:
    """The names of all parameters that belong to the residual rule: its units' and its stacks'. They get no weight
    decay and a learning rate of their own.
    """
    return {
        f"{name}.{parameter}" if name else parameter
        for name, module in model.named_modules()
        if isinstance(module, (Unit, Stack))
        for parameter, _ in module.named_parameters()
    }


def plain_state(model: nn.Module) -> dict[str, float | Tensor]:
    """The value of every parameter in `gate_names` at which each unit computes `z + F(z)`.

    Raises:
        ValueError: the rule has no such values.
    """
    return {
        f"{name}.{parameter}" if name else parameter: value
        for name, module in model.named_modules()
        if isinstance(module, (Unit, Stack))
        for parameter, value in module.plain_values().items()
    }


@torch.no_grad()
def make_plain(model: nn.Module) -> None:
    """Set the parameters of every unit of `model` so that it computes `z + F(z)`; see `plain_state`."""
    parameters = dict(model.named_parameters())
    for name, value in plain_state(model).items():
        parameters[name].copy_(torch.as_tensor(value))
