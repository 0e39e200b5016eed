"""The paper's equation, `z_{i+1} = z_i + alpha_i * F_i(z_i, t, c) + beta_i`: one residual addition, and its rivals.

A *unit* is one residual addition. It says what its branch F reads from the stream z (`read`) and how the branch's
output is written back (`write`). `ResNet` is the plain unit; every other rule of Sec. 3.5 overrides one of these lines.

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

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from neural_rdm.residual.unit import Place, Start, Unit, add_scaled, rule

Granularity = Literal["channel", "scalar"]
BetaForm = Literal["additive", "linear", "none"]


class Gates(Unit):
    """A unit with an alpha and perhaps a beta: what the other four share.

    Args:
        place: where it stands.
        granularity: `channel` (one gate a channel) or `scalar` (one a unit, for ablation: LayerNorm hides a scalar
            beta).
        time_conditioned: gates are `static + W e(t)`, W = 0 at the start (theory, section 1 [O]).

    Raises:
        ValueError: time-conditioned gates in a network that hands no timestep embedding to its units.
    """

    has_alpha = True
    no_supervision: str | None = None
    alpha_start = 1.0

    def __init__(self, place: Place, *, granularity: Granularity = "channel", time_conditioned: bool = False) -> None:
        super().__init__(place)
        width = self.gate_width() if granularity == "channel" else 1
        self.alpha = nn.Parameter(torch.full((width,), self.alpha_start))
        if self.has_beta:
            self.beta = nn.Parameter(torch.zeros(width))
        self.time_conditioned = time_conditioned
        if time_conditioned:
            if place.time_dim is None:
                raise ValueError(
                    "residual time_conditioned=true: this network hands no timestep embedding to its units"
                )
            self.alpha_time = nn.Parameter(torch.zeros(width, place.time_dim))
            if self.has_beta:
                self.beta_time = nn.Parameter(torch.zeros(width, place.time_dim))

    def gate_width(self) -> int:
        """How many channels the gates have: those of the stream that is written, where they act in `write`."""
        return self.dim_out

    def effective(self, gate: Literal["alpha", "beta"], e: Tensor | None) -> Tensor:
        """The gate's value [D] (static) or [B, D] (time-conditioned: `gate + W e`, theory section 1)."""
        static: Tensor = getattr(self, gate)
        if not self.time_conditioned:
            return static
        if e is None:
            raise ValueError(
                "time-conditioned gates need the timestep embedding e [B, E]; this network hands none to its units"
            )
        with torch.autocast(e.device.type, enabled=False):  # which would round the gate
            return static + nn.functional.linear(e.to(static.dtype), getattr(self, f"{gate}_time"))

    def plain_values(self) -> dict[str, float | Tensor]:
        """alpha 1, and nothing else."""
        return {name: float(name == "alpha") for name, _ in self.named_parameters()}

    def identity_values(self) -> Mapping[str, float | Tensor] | None:
        """All gates 0, where alpha multiplies the branch."""
        return {name: 0.0 for name, _ in self.named_parameters()} if self.scales_branch else None

    def affine(self, gated_behind: bool) -> tuple[Tensor | None, Tensor | None]:
        """alpha and beta, where they fit into the branch's last layer."""
        gates = {name: parameter.detach() for name, parameter in self.named_parameters()}
        alpha, beta = gates.pop("alpha"), gates.pop("beta", None)
        for name, value in gates.items():
            if value.any():
                raise ValueError(f"its gates depend on time ({name} is not 0)")
        scale = None if bool((alpha == 1).all()) else alpha
        shift = None if beta is None or not beta.any() else beta
        if scale is not None and not self.scales_branch:
            raise ValueError(
                f"under its rule alpha, which is not 1 (it moves by {(scale - 1).abs().max():.3g}), scales the stream, "
                "which no layer of a plain network does"
            )
        if shift is not None and (reason := self.beta_stays(gated_behind)):
            raise ValueError(f"its beta, which is not 0 (largest {shift.abs().max():.3g}), {reason}")
        return scale, shift

    def beta_stays(self, gated_behind: bool) -> str | None:
        """Why beta does not fit into the branch's last layer, in words that follow `its beta`; None where it does."""
        return "stands behind the block's adaLN gate, which a plain network cannot express" if gated_behind else None


@rule("gated")
class Gated(Gates):
    """Variant-0, the paper's own, Eq. 1: `z + alpha * F(z) + beta` [R]; `beta_form=linear`: `z + alpha * F(z) + beta *
    z`; `beta_form=none`: `z + alpha * F(z)`, which folds into any network that `gated` is trained in.

    alpha is multiplied onto the block's gate g first, so that its gradient keeps no second copy of the branch's output.

    Args:
        beta_form: `additive` (Eq. 1), `linear` (`beta * z`, the drift reading of Eq. 6 [O]) or `none` (no beta [O]).
    """

    has_beta = scales_branch = True

    def __init__(
        self,
        place: Place,
        *,
        granularity: Granularity = "channel",
        time_conditioned: bool = False,
        beta_form: BetaForm = "additive",
    ) -> None:
        self.has_beta = beta_form != "none"
        super().__init__(place, granularity=granularity, time_conditioned=time_conditioned)
        self.beta_form = beta_form
        self.adds_to_stream = beta_form != "linear"
        self.stream_gate = "beta" if beta_form == "linear" else None

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        alpha = self.effective("alpha", e)
        out = add_scaled(z, self.spread(alpha if g is None else g * alpha, z), f)
        if not self.has_beta:
            return out
        beta = self.spread(self.effective("beta", e), z)
        # in place: nothing keeps what addcmul returned, and a second tensor of the stream's size is one too many
        return out.add_(beta) if self.beta_form == "additive" else torch.addcmul(out, beta, z)

    def beta_stays(self, gated_behind: bool) -> str | None:
        """The linear form acts on the stream."""
        return "is multiplied by the stream" if self.beta_form == "linear" else super().beta_stays(gated_behind)


@rule("adaln")
class AdaLN(Gates):
    """Variant-1: `z + F(alpha * z + beta)` [R]."""

    has_beta = True
    no_supervision = "the norm behind its alpha cancels the scale of alpha"

    def gate_width(self) -> int:
        """Those of the stream that is read."""
        return self.dim

    def read(self, z: Tensor, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        return torch.addcmul(self.spread(self.effective("beta", e), z), self.spread(self.effective("alpha", e), z), z)

    def beta_stays(self, gated_behind: bool) -> str | None:
        """It is read."""
        return "stands in front of the branch's norm"


@rule("skip")
class Skip(Gates):
    """Variant-2: `alpha * z + F(z) + beta` [O]."""

    has_beta = scales_stream = True
    adds_to_stream = False
    stream_gate = "alpha"

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        z = torch.addcmul(self.spread(self.effective("beta", e), z), self.spread(self.effective("alpha", e), z), z)
        return z + f if g is None else add_scaled(z, self.spread(g, z), f)


@rule("resnet")
class ResNet(Unit):
    """Variant-3: `z + F(z)` [P]. The plain unit, under the paper's name."""


@rule("rezero")
class ReZero(Gates):
    """Variant-4: `z + alpha * F(z)`, `alpha = 0` at the start [P]."""

    scales_branch = True
    alpha_start = 0.0
    start: Start = "identity"

    def write(self, z: Tensor, f: Tensor, g: Tensor | None = None, e: Tensor | None = None) -> Tensor:  # type: ignore[override]  # its stream is a tensor
        alpha = self.effective("alpha", e)
        return add_scaled(z, self.spread(alpha if g is None else g * alpha, z), f)
