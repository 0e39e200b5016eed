"""Which residual rule a network uses, with its options: the one argument `residual=` of every backbone."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import torch

from neural_rdm.core.arguments import NonNegative, checked, nearest, problem
from neural_rdm.core.errors import ArgumentError
from neural_rdm.residual import rivals as _rivals  # noqa: F401  # the rules of this package have their names
from neural_rdm.residual.unit import RULES, Place, Stack, Unit


@checked()
class Residual:
    """A residual rule with its options.

    Args:
        rule: the name of a rule, one of `RULES`, or its class. A rule of another package has its name once that
            package is imported.
        gamma: weight of the sensitivity supervision that goes with this rule (the paper's 0.35 where the gates can be
            supervised); used where an experiment sets `gamma: ${residual.gamma}`, by no unit.
        options: the keyword arguments of the rule's class; see there.

    Raises:
        ValueError: no rule, or an unknown rule, option or value, naming the choices.
    """

    def __init__(self, rule: str | type[Unit] = "gated", *, gamma: NonNegative = 0.0, **options: Any) -> None:
        if not isinstance(rule, str | type):
            raise ValueError(f"residual rule={rule!r} is no rule; pass its name, its class or a Residual")
        if isinstance(rule, str) and rule not in RULES:
            raise ValueError(f"residual rule={rule!r} is not one of {', '.join(RULES)}.{nearest(rule, RULES)}")
        self.unit_class: type[Unit] = RULES[rule] if isinstance(rule, str) else rule
        self.gamma = gamma
        known = options_of(self.unit_class)
        for key, value in options.items():
            if key not in known:
                has = f"its options are {', '.join(known)}" if known else "it has no options"
                raise ValueError(f"residual rule={self.rule!r} has no option {key}={value!r}; {has}")
            if (wrong := problem(key, value, known[key][1])) is not None:
                raise ArgumentError(wrong.at("residual "), key=key)
        self.options: dict[str, Any] = {key: options.get(key, default) for key, (default, _) in known.items()}

    @classmethod
    def of(cls, residual: str | type[Unit] | Residual) -> Residual:
        """Accept a rule's name, its class, or a whole `Residual`."""
        return residual if isinstance(residual, Residual) else cls(residual)

    @property
    def rule(self) -> str:
        """The rule's name."""
        return self.unit_class.rule_name or self.unit_class.__name__

    def plan(self, count: int, dim: int, time_dim: int | None = None) -> Plan:
        """Begin a stack of `count` units on a stream of `dim` channels; `time_dim` is the width of the timestep
        embedding that the network can hand to them.
        """
        return Plan(self, Place(dim, dim, time_dim=time_dim, count=count))

    def unit(self, dim: int, dim_out: int | None = None, channel_axis: int = -1, **place: Any) -> Unit:
        """Build one unit by itself; the further arguments are those of `Place`."""
        return self.unit_at(Place(dim, dim if dim_out is None else dim_out, channel_axis, **place))

    def unit_at(self, place: Place) -> Unit:
        """Build the unit that stands at `place`."""
        return self.unit_class(place, **self.options)

    def stack(self, place: Place) -> Stack:
        """Build the stack whose units have the width and the number that `place` says."""
        return self.unit_class.make_stack(place, **self.options)

    def gate_init(self, requested: float | None = None) -> float:
        """Starting value for a block's own gate in series with the unit (the adaLN gate): 0, as in adaLN-Zero, except
        where the rule itself starts at zero, where it is 1.

        Raises:
            ValueError: `requested` is 0 although the rule starts at zero: two zero factors in series get gradient 0,
                both, for ever (theory, section 1, Trap).
        """
        closed = self.closes_branch
        if requested is None:
            return 1.0 if closed else 0.0
        if closed and requested == 0:
            raise ValueError(
                f"adaln_gate_init=0 with residual={self.rule!r}: its branches start at 0 too, and two zeros in series "
                "never receive a gradient. Leave adaln_gate_init unset (it becomes 1) or choose another rule."
            )
        return requested

    @property
    def closes_branch(self) -> bool:
        """Whether the rule itself starts with all branches closed, so that nothing in series with it may be zero."""
        return self.unit_class.starts(**self.options) == "identity"

    @property
    def folds(self) -> bool:
        """Whether the gates, whatever values they take, fit into the last layer of their unit's branch (where no gate
        of the block's own stands behind that layer).
        """
        if not self.unit_class.single:
            return False
        unit = self.unit(4, time_dim=4)
        with torch.no_grad():
            for parameter in unit.parameters():
                parameter.fill_(0.5)
        try:
            unit.affine(gated_behind=False)
        except ValueError:
            return False
        return True

    def as_dict(self) -> dict[str, Any]:
        """The keyword arguments that make it again, as plain values."""
        return {"rule": self.rule, **self.options}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Residual) and (self.unit_class, self.options) == (other.unit_class, other.options)

    def __hash__(self) -> int:
        return hash((self.unit_class, tuple(self.options.items())))

    def __repr__(self) -> str:
        changed = {k: v for k, v in self.options.items() if v != options_of(self.unit_class)[k][0]}
        return f"Residual({', '.join([repr(self.rule), *(f'{k}={v!r}' for k, v in changed.items())])})"


class Plan:
    """The places of one stack, handed out in run order while a network is built.

    Attributes:
        stack: the stack itself, which the network keeps.
    """

    def __init__(self, residual: Residual, place: Place) -> None:
        self.residual, self._place = residual, place
        self.stack = residual.stack(place)
        self._next = 0

    def unit(self, role: str, block: int) -> Unit:
        """The next unit: see `Place` for the arguments.

        Raises:
            ValueError: all units that were announced are built.
        """
        first = self._place
        if self._next == first.count:
            raise ValueError(f"a stack of {first.count} units has no further one ({role} of block {block})")
        place = Place(
            first.dim, first.dim_out, first.channel_axis, first.time_dim, role, block, self._next, first.count
        )
        self._next += 1
        unit = self.residual.unit_at(place)
        unit.join(self.stack)
        return unit


def options_of(unit_class: type[Unit]) -> dict[str, tuple[Any, Any]]:
    """The options of a rule by name: default and annotation."""
    hints = get_type_hints(unit_class.__init__, include_extras=True)
    parameters = inspect.signature(unit_class.__init__).parameters.values()
    return {p.name: (p.default, hints.get(p.name, Any)) for p in parameters if p.kind is p.KEYWORD_ONLY}
