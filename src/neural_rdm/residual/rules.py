"""The paper's equation, `z_{i+1} = z_i + alpha_i * F_i(z_i, t, c) + beta_i`: one residual addition, and its rivals.

A *unit* is one residual addition. It says what its branch F reads from the stream z (`read`) and how the branch's
output is written back (`write`). `ResNet` is the plain unit; every other rule of Sec. 3.5 overrides one or both of
these lines.

| name     | paper                          | formula                      | mark |
|----------|--------------------------------|------------------------------|------|
| `gated`  | Variant-0, Eq. 1, 2, 17        | `z + alpha*F(z) + beta`      | [R] reconstructed |
| `adaln`  | Variant-1, pre-processing      | `z + F(alpha*z + beta)`      | [R] |
| `skip`   | Variant-2                      | `alpha*z + F(z) + beta`      | [O] ours: the formula is lost |
| `resnet` | Variant-3                      | `z + F(z)`                   | [P] the paper's words |
| `rezero` | Variant-4                      | `z + alpha*F(z)`, alpha = 0  | [P] |

Symbols: `z` the stream [B, ..., D] (or [B, D, H, W] with `channel_axis=1`), `f = F(read(z))` the branch's output, `g`
[B, D] the block's own adaLN gate where it has one, `e` [B, E] the timestep embedding, for time-conditioned gates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from neural_rdm.residual.taps import close_overlap, open_overlap, tap, watch

Granularity = Literal["channel", "scalar"]
BetaForm = Literal["additive", "linear"]


def _spread(gate: Tensor, z: Tensor, channel_axis: int) -> Tensor:
    """View a gate [D] or [B, D] so that it broadcasts against `z` along `channel_axis` (-1 or 1)."""
    if channel_axis == 1:
        return gate.reshape(*gate.shape, *(1,) * (z.ndim - 2))
    return gate if gate.ndim == 1 else gate.reshape(gate.shape[0], *(1,) * (z.ndim - 2), gate.shape[-1])


def _add_scaled(z: Tensor, scale: Tensor, f: Tensor) -> Tensor:
    """`z + scale * f` in one `addcmul`, which keeps only `f` and `scale` for the backward pass.

    Under autocast CUDA promotes `addcmul` to float32 and would keep a float32 copy of `f`; there the product is formed
    in f's own type and only the sum is promoted.
    """
    if torch.is_autocast_enabled(f.device.type):
        return z + scale.to(f.dtype) * f
    return torch.addcmul(z, scale, f)


class Unit(nn.Module):
    """One residual addition under the plain rule, `z + F(z)`; with a block gate `g`, `z + g * F(z)`.

    Args:
        dim: channels of the stream that the branch reads (D).
        dim_out: channels of the stream that the branch writes, where a shortcut changes the width; default `dim`.
        channel_axis: -1 for tokens [B, ..., D], 1 for maps [B, D, H, W].
        granularity: `channel` (one gate a channel) or `scalar` (one a unit, for ablation: LayerNorm hides a scalar
            beta).
        time_dim: E, the width of the timestep embedding, for time-conditioned gates; None for static ones.
        beta_form: `additive` (Eq. 1) or `linear` (`beta * z`, the drift reading of Eq. 6); only `gated` knows the
            second.
    """

    has_alpha = False
    has_beta = False
    alpha_start = 1.0
    #: whether alpha multiplies the branch, so that alpha = 0 and beta = 0 leave the stream as it is
    scales_branch = False
    #: whether alpha multiplies the stream itself
    scales_stream = False
    #: what the unit computes at its start: `plain` (z + F) or `identity` (z)
    start: Literal["plain", "identity"] = "plain"

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        channel_axis: int = -1,
        granularity: Granularity = "channel",
        time_dim: int | None = None,
        beta_form: BetaForm = "additive",
    ) -> None:
        super().__init__()
        self.dim, self.dim_out, self.channel_axis = dim, dim if dim_out is None else dim_out, channel_axis
        self.beta_form = beta_form
        gate_dim = self._gate_dim() if granularity == "channel" else 1
        if self.has_alpha:
            self.alpha = nn.Parameter(torch.full((gate_dim,), self.alpha_start))
        if self.has_beta:
            self.beta = nn.Parameter(torch.zeros(gate_dim))
        self.time_conditioned = time_dim is not None and self.has_alpha
        if time_dim is not None and self.has_alpha:
            self.alpha_time = nn.Parameter(torch.zeros(gate_dim, time_dim))
            if self.has_beta:
                self.beta_time = nn.Parameter(torch.zeros(gate_dim, time_dim))
        #: whether the stream enters the sum as it is, so that its gradient there is the unit's exit gradient itself
        self.adds_to_stream = not self.scales_stream and beta_form == "additive"
        #: set by `dynamics.probe` for one step: the zero tensor [2] or [4] whose gradient collects squared norms
        self.probe: Tensor | None = None
        #: set by `dynamics.probe` for one step: zeros of the shapes of `gate_parameters(stream_gate)`, whose gradients
        #: collect <s_i, s_{i+1}> entry by entry
        self.overlap: tuple[Tensor, ...] | None = None
        #: set by `dynamics.statistics` for one step: the rows [T, 7] of this unit and the bins [B, T] of the samples
        self.watched: tuple[Tensor, Tensor] | None = None
        #: whether the unit is left out: the stream passes as if its branch did not exist (`dynamics.lens`)
        self.off = False

    def _gate_dim(self) -> int:
        return self.dim_out  # gates that act in `write`; `AdaLN` acts in `read`

    # -- the rule: the two lines that a subclass overrides

    def read(self, z: Tensor, e: Tensor | None = None) -> Tensor:
        """What the branch reads from the stream."""
        return z

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:
        """The stream after the unit, from the stream before it and the branch's output."""
        return z + f if g is None else _add_scaled(z, self._spread(g, z), f)

    # -- one unit in a forward pass

    def forward(
        self,
        z: Tensor,
        branch: Callable[[Tensor], Tensor],
        g: Tensor | None = None,
        e: Tensor | None = None,
        shortcut: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`write(shortcut(z), branch(read(z)))`; the shapes of `z` and of the result differ only through `shortcut`."""
        if self.off:
            return z if shortcut is None else shortcut(z)
        if self.probe is not None or self.watched is not None or self.overlap is not None:
            return self._measured(z, branch, g, e, shortcut)
        return self.write(z if shortcut is None else shortcut(z), branch(self.read(z, e)), g, e)

    def _measured(
        self,
        z: Tensor,
        branch: Callable[[Tensor], Tensor],
        g: Tensor | None,
        e: Tensor | None,
        shortcut: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """The same unit with its taps: entry and exit, and with four rows the two ways between them as well."""
        rows = () if self.probe is None else self.probe.unbind()
        entry, exits, legs = rows[:1], rows[1:2], rows[3:]
        z, loan = tap(z, *entry), None
        if self.overlap is not None and shortcut is None:  # through a shortcut the gate's effect is not elementwise
            z, loan = open_overlap(z, self._spread(self._overlap_row(self.overlap, e), z))
        stream = z
        if legs:
            z = tap(z, rows[2])
            if shortcut is None and self.adds_to_stream:
                exits += legs  # one gradient, measured once
            else:
                stream = tap(stream, *legs)
        before = stream if shortcut is None else shortcut(stream)
        out = self.write(before, branch(self.read(z, e)), g, e)
        if self.watched is not None:
            out = watch(out, before, *self.watched, self.channel_axis)
        return tap(out if loan is None else close_overlap(out, loan), *exits)

    @staticmethod
    def _overlap_row(leaves: tuple[Tensor, ...], e: Tensor | None) -> Tensor:
        """Zeros that depend on the leaves as the effective gate does on its parameters."""
        static, *time = leaves
        if not time or e is None:  # without e the rule itself refuses, in `effective`
            return static
        with torch.autocast(static.device.type, enabled=False):  # which would round the products
            return static + nn.functional.linear(e.detach().to(static.dtype), time[0])

    # -- gates

    @property
    def stream_gate(self) -> Literal["alpha", "beta"] | None:
        """The gate that multiplies the stream itself (`skip`'s alpha, the linear beta), else None."""
        if self.scales_stream:
            return "alpha"
        return "beta" if self.has_beta and self.beta_form == "linear" else None

    def gate_parameters(self, gate: Literal["alpha", "beta"]) -> list[nn.Parameter]:
        """All parameters that a gate is made of: its static value, and the weight [D, E] of a time-conditioned one."""
        names = [gate, f"{gate}_time"] if self.time_conditioned else [gate]
        return [getattr(self, name) for name in names]

    def effective(self, gate: Literal["alpha", "beta"], e: Tensor | None) -> Tensor:
        """The gate's value [D] (static) or [B, D] (time-conditioned: `gate + W e`, theory section 1)."""
        static: Tensor = getattr(self, gate)
        if not self.time_conditioned:
            return static
        if e is None:
            raise ValueError(
                "time-conditioned gates need the timestep embedding e [B, E]; this network hands none to its units"
            )
        return static + nn.functional.linear(e, getattr(self, f"{gate}_time"))

    def _spread(self, gate: Tensor, z: Tensor) -> Tensor:
        return _spread(gate, z, self.channel_axis)

    # -- the stream: one tensor for all five rules; a rule with several streams overrides these

    @classmethod
    def open(cls, z: Tensor) -> Tensor:
        """The stream before a stack's first unit."""
        return z

    @classmethod
    def close(cls, stream: Tensor) -> Tensor:
        """The tensor that leaves a stack after its last unit."""
        return stream

    @classmethod
    def map(cls, stream: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply `fn` (a reshape, a resampling) to every tensor of the stream."""
        return fn(stream)

    def extra_repr(self) -> str:
        return f"{self.dim}" + (f", {self.dim_out}" if self.dim_out != self.dim else "")


class ResNet(Unit):
    """Variant-3: `z + F(z)` [P]. The plain unit, under the paper's name."""


class Gated(Unit):
    """Variant-0, the paper's own, Eq. 1: `z + alpha * F(z) + beta` [R]; `beta_form=linear`: `z + alpha * F(z) + beta *
    z`.

    alpha is multiplied onto the block's gate g first, so that its gradient keeps no second copy of the branch's output.
    """

    has_alpha = has_beta = scales_branch = True

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:
        alpha, beta = self.effective("alpha", e), self.effective("beta", e)
        out = _add_scaled(z, self._spread(alpha if g is None else g * alpha, z), f)
        beta = self._spread(beta, z)
        # in place: nothing keeps what addcmul returned, and a second tensor of the stream's size is one too many
        return out.add_(beta) if self.beta_form == "additive" else torch.addcmul(out, beta, z)


class AdaLN(Unit):
    """Variant-1: `z + F(alpha * z + beta)` [R]."""

    has_alpha = has_beta = True

    def _gate_dim(self) -> int:
        return self.dim

    def read(self, z: Tensor, e: Tensor | None = None) -> Tensor:
        return torch.addcmul(self._spread(self.effective("beta", e), z), self._spread(self.effective("alpha", e), z), z)


class Skip(Unit):
    """Variant-2: `alpha * z + F(z) + beta` [O]."""

    has_alpha = has_beta = scales_stream = True

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:
        z = torch.addcmul(self._spread(self.effective("beta", e), z), self._spread(self.effective("alpha", e), z), z)
        return super().write(z, f, g, e)


class ReZero(Unit):
    """Variant-4: `z + alpha * F(z)`, `alpha = 0` at the start [P]."""

    has_alpha = scales_branch = True
    alpha_start = 0.0
    start = "identity"

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:
        alpha = self.effective("alpha", e)
        return _add_scaled(z, self._spread(alpha if g is None else g * alpha, z), f)


RULES: dict[str, type[Unit]] = {"gated": Gated, "adaln": AdaLN, "skip": Skip, "resnet": ResNet, "rezero": ReZero}


def units(model: nn.Module) -> Iterator[tuple[str, Unit]]:
    """Yield (name, unit) of every residual addition of `model` in run order.

    A network whose registration order is not its run order lists it itself, in a method `unit_order()`.
    """
    order = getattr(model, "unit_order", None)
    yield from order() if order is not None else ((n, m) for n, m in model.named_modules() if isinstance(m, Unit))


def is_gate(name: str) -> bool:
    """Whether a parameter name belongs to a residual rule: these get no weight decay and a learning rate of their
    own.
    """
    return name.rsplit(".", 1)[-1] in ("alpha", "beta", "alpha_time", "beta_time")
