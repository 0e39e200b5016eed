"""What an argument may be, written once, in its annotation: the constructor and the preflight ask the same objects.

    @checked(constraints.heads)
    class DiT(nn.Module):
        def __init__(self, hidden_size: Count = 1152, dropout: Fraction = 0.0, norm: Literal["layer", "rms"] = "layer"):

An annotation gives type, choices and range of a single argument. A *constraint* ties several together: a function
whose parameters bear the names of the arguments (or of constants of the class) that it looks at, and which returns what
is wrong, or None. It lives in a module that imports no torch (`constraints.py` of its room), because the preflight
calls it before torch is loaded; see `config.reader`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from neural_rdm.core.errors import ArgumentError

T = TypeVar("T", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Limits:
    """The range of a number."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __str__(self) -> str:
        if self.above > -math.inf:
            return f"above {self.above}"
        return f"at least {self.low}" if self.high == math.inf else f"between {self.low} and {self.high}"

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, in words that follow it; None: nothing."""
        return None if value > self.above and self.low <= value <= self.high else f"must be {self}"


@dataclasses.dataclass(frozen=True)
class Pattern:
    """The form of a text."""

    expression: str
    meaning: str

    def __str__(self) -> str:
        return self.meaning

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, in words that follow it; None: nothing."""
        return None if re.fullmatch(self.expression, value) else f"must be {self.meaning}"


def above(low: float) -> Limits:
    """A number above `low`."""
    return Limits(above=low)


def at_least(low: float) -> Limits:
    """A number not below `low`."""
    return Limits(low=low)


def between(low: float, high: float) -> Limits:
    """A number in [low, high]."""
    return Limits(low, high)


def matching(expression: str, meaning: str) -> Pattern:
    """A text that fits a regular expression; `meaning` says which texts do."""
    return Pattern(expression, meaning)


#: marks a text that the command line takes whole, with commas, brackets and wildcards in it
VERBATIM = "verbatim"

Count = Annotated[int, above(0)]
Natural = Annotated[int, at_least(0)]
Seed = Annotated[int, between(0, 2**63 - 1)]
Positive = Annotated[float, above(0)]
NonNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, between(0, 1)]
Verbatim = Annotated[str, VERBATIM]
Accelerator = Literal["auto", "cpu", "gpu"]


class Problem(NamedTuple):
    """What is wrong with an argument: its name (dotted below it), and the sentence that follows it.

    `{at}` in the sentence stands for the place of the arguments, such as `diffusion.process.` in a configuration, and
    for nothing in Python.
    """

    key: str
    says: str
    #: said behind the key
    value: Any = inspect.Parameter.empty

    def at(self, place: str) -> str:
        """The whole sentence."""
        shown = "" if self.value is inspect.Parameter.empty else f"={self.value}"
        return f"{place}{self.key}{shown or ':'} {self.says.replace('{at}', place)}"


Constraint = Callable[..., "Problem | None"]


def nearest(word: str, choices: Iterable[str], prefix: str = "") -> str:
    """` Did you mean X?` for the choice most like `word`, with `prefix` in front of it, or an empty string."""
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {prefix}{found[0]}?" if found else ""


def members(kind: Any) -> list[Any]:
    """The annotations that a union joins; any other annotation by itself."""
    return list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]


def is_opaque(kind: Any) -> bool:
    """Whether an annotation says nothing that can be checked, as a class of something built elsewhere."""
    if get_origin(kind) is Annotated:
        return is_opaque(get_args(kind)[0])
    plain = (bool, int, float, str, list, tuple, dict, None, type(None))
    return kind not in plain and get_origin(kind) not in (Literal, list, tuple, dict, Sequence, Mapping)


def described(kind: Any) -> str:
    """An annotation in words: `float or null`, `list[int]`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if len(joined := members(kind)) > 1:
        return " or ".join(described(member) for member in joined if not is_opaque(member))
    if origin is Annotated:
        return described(arguments[0])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (list, tuple, Sequence):
        return f"list[{described(arguments[0])}]"
    return (
        "null" if kind in (None, type(None)) else "mapping" if origin is dict else getattr(kind, "__name__", str(kind))
    )


def told(kind: Any) -> str:
    """An annotation in words, with the range of a number and the form of a text: `int above 0 or null`."""
    if len(joined := members(kind)) > 1:
        return " or ".join(told(member) for member in joined if not is_opaque(member))
    if get_origin(kind) is Annotated:
        inner, *more = get_args(kind)
        forms = [str(pattern) for pattern in more if isinstance(pattern, Pattern)]
        return " ".join([*(forms or [told(inner)]), *(str(limit) for limit in more if isinstance(limit, Limits))])
    return "" if is_opaque(kind) else described(kind)


def problem(key: str, value: Any, kind: Any) -> Problem | None:
    """What is wrong with a value under an annotation; classes are let through."""
    joined = members(kind)
    if len(joined) > 1:
        found = [problem(key, value, member) for member in joined]
        simple = isinstance(value, (str, Real)) and not all(map(is_opaque, joined))
        if any(p is None and not (simple and is_opaque(m)) for p, m in zip(found, joined, strict=True)):
            return None
        own = [p for p, m in zip(found, joined, strict=True) if p and m is not type(None) and not is_opaque(m)]
        told = len(own) == 1 and (own[0].key != key or own[0].value is not inspect.Parameter.empty)
        return own[0] if told else _mistyped(key, value, kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        limits = [limit for limit in arguments[1:] if isinstance(limit, (Limits, Pattern))]
        if (wrong := problem(key, value, arguments[0])) is not None:
            return wrong
        said = next(filter(None, (limit.problem(value) for limit in limits)), None)
        return said and Problem(key, said, value)  # type: ignore[return-value]
    if origin is Literal:
        if any(type(value) is type(choice) and value == choice for choice in arguments):
            return None
        names = list(map(str, arguments))
        return Problem(key, f"is not one of {', '.join(names)}.{nearest(str(value), names)}", value)
    if origin in (list, tuple, Sequence):
        return _of_list(key, value, kind)
    if kind is dict or origin is dict:
        return None if isinstance(value, Mapping) else _mistyped(key, value, kind)
    if is_opaque(kind) or kind in (list, tuple):
        return None
    if kind is float and isinstance(value, Real) and not isinstance(value, bool):
        return None if math.isfinite(value) else Problem(key, "must be a finite number", value)
    fits = {bool: bool, int: Integral, float: (), str: str, None: type(None), type(None): type(None)}[kind]
    well = isinstance(value, fits) and (kind is bool or not isinstance(value, bool))  # type: ignore[arg-type]
    return None if well else _mistyped(key, value, kind)


def _mistyped(key: str, value: Any, kind: Any) -> Problem:
    lists = [member for member in members(kind) if get_origin(member) is list]
    one = any(problem(key, value, get_args(member)[0]) is None for member in lists)  # without its brackets
    return Problem(key, f"{value!r} is of the wrong type; it takes {described(kind)}" + f", such as [{value}]" * one)


def _of_list(key: str, value: Any, kind: Any) -> Problem | None:
    arguments = get_args(kind)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return _mistyped(key, value, kind)
    fixed = get_origin(kind) is tuple and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        return Problem(key, f"{list(value)} must be {len(arguments)} values")
    kinds = arguments if fixed else [arguments[0]] * len(value)
    entries = ((f"{key}[{i}]", entry, kind) for i, (entry, kind) in enumerate(zip(value, kinds, strict=True)))
    return next(filter(None, (problem(*entry) for entry in entries)), None)


def broken(constraints: Iterable[Constraint], values: Mapping[str, Any]) -> Problem | None:
    """What the first of the constraints says that does not hold; values are those of arguments and of class constants.

    A constraint that looks at something that is not there (a class of another package may lack it) is passed over.
    """
    for constraint in constraints:
        names = list(inspect.signature(constraint).parameters)
        if all(name in values for name in names):
            found = constraint(**{name: values[name] for name in names})
            if found is not None:
                return found
    return None


def checked(*constraints: Constraint) -> Callable[[T], T]:
    """Decorate a class, or a function that builds something: its arguments are checked before it runs.

    Each has to be what its annotation says, and all of them together have to hold under `constraints`.

    Raises:
        ArgumentError: (when the result is called) an argument is not, or they do not.
    """

    def wrap(target: T) -> T:
        is_class = isinstance(target, type)
        build: Any = target.__init__ if is_class else target

        @functools.cache
        def read() -> tuple[inspect.Signature, dict[str, Any], set[str]]:
            hints = typing.get_type_hints(target if dataclasses.is_dataclass(target) else build, include_extras=True)
            signature = inspect.signature(build)
            several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
            single = {
                name: hints[name] for name, p in signature.parameters.items() if p.kind not in several and name in hints
            }
            looked_at = {name for constraint in constraints for name in inspect.signature(constraint).parameters}
            return signature, single, looked_at

        @functools.wraps(build)
        def call(*args: Any, **kwargs: Any) -> Any:
            signature, kinds, looked_at = read()
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return build(*args, **kwargs)  # Python says it best
            bound.apply_defaults()
            values = bound.arguments
            wrong = next(filter(None, (problem(name, values[name], kind) for name, kind in kinds.items())), None)
            own = type(args[0]) if is_class else None  # a constant may be that of a derived class
            constants = {name: getattr(own, name) for name in looked_at if own and hasattr(own, name)}
            wrong = wrong or broken(constraints, constants | values)
            if wrong is not None:
                raise ArgumentError(wrong.at(""), key=wrong.key)
            return build(*args, **kwargs)

        if not is_class:
            return typing.cast("T", call)
        target.__init__ = call  # type: ignore[method-assign]
        return target

    return wrap
