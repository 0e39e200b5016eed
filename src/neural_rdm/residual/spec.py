"""Which residual rule a network uses, and how its gates are shaped: the one argument `residual=` of every backbone."""

from __future__ import annotations

from dataclasses import dataclass

from neural_rdm.residual.rules import RULES, BetaForm, Granularity, Unit


@dataclass(frozen=True)
class Residual:
    """A residual rule and the shape of its gates (theory, sections 1 and 2).

    Args:
        rule: `gated`, `adaln`, `skip`, `resnet` or `rezero`.
        granularity: `channel` or `scalar`.
        time_conditioned: gates are `static + W e(t)`, W = 0 at the start.
        beta_form: `additive` or `linear` (`gated` only).
        gamma: weight of the sensitivity supervision that goes with this rule (the paper's 0.35 where the gates can be
            supervised); used where an experiment sets `gamma: ${residual.gamma}`, by no unit.

    Raises:
        ValueError: an unknown rule or value, naming the choices.
    """

    rule: str = "gated"
    granularity: Granularity = "channel"
    time_conditioned: bool = False
    beta_form: BetaForm = "additive"
    gamma: float = 0.0

    def __post_init__(self) -> None:
        for key, choices in {
            "rule": tuple(RULES),
            "granularity": ("channel", "scalar"),
            "beta_form": ("additive", "linear"),
        }.items():
            if getattr(self, key) not in choices:
                raise ValueError(f"residual {key}={getattr(self, key)!r} is not one of {', '.join(choices)}")
        if self.beta_form == "linear" and self.rule != "gated":
            raise ValueError(
                f"beta_form=linear is a form of the gated rule's beta; residual rule={self.rule!r} has no such form"
            )

    @classmethod
    def of(cls, residual: str | Residual) -> Residual:
        """Accept a rule's name or a whole `Residual`."""
        return residual if isinstance(residual, Residual) else cls(residual)

    @property
    def unit_class(self) -> type[Unit]:
        """The class of this rule's units."""
        return RULES[self.rule]

    def unit(self, dim: int, dim_out: int | None = None, channel_axis: int = -1, time_dim: int | None = None) -> Unit:
        """Build one unit; `time_dim` is the width of the timestep embedding that the network can hand to it."""
        if self.time_conditioned and time_dim is None:
            raise ValueError("residual time_conditioned=true: this network hands no timestep embedding to its units")
        return self.unit_class(
            dim,
            dim_out,
            channel_axis,
            granularity=self.granularity,
            time_dim=time_dim if self.time_conditioned else None,
            beta_form=self.beta_form,
        )

    def gate_init(self, requested: float | None = None) -> float:
        """Starting value for a block's own gate in series with the unit (the adaLN gate): 0, as in adaLN-Zero, except
        where the rule itself starts at zero, where it is 1.

        Raises:
            ValueError: `requested` is 0 although the rule starts at zero: two zero factors in series get gradient 0,
                both, for ever (theory, section 1, Trap).
        """
        identity = self.unit_class.start == "identity"
        if requested is None:
            return 1.0 if identity else 0.0
        if identity and requested == 0:
            raise ValueError(
                f"adaln_gate_init=0 with residual={self.rule!r}: alpha also starts at 0, and two zeros in series "
                "never receive a gradient. Leave adaln_gate_init unset (it becomes 1) or choose another rule."
            )
        return requested
