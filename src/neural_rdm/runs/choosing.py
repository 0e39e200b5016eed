"""Which classes or texts samples are to show."""

from __future__ import annotations

from collections.abc import Sequence

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.base import DataModule

SHOWN = 10  # classes or prompts, where nobody says how many


def choose_classes(num_classes: int, asked: Sequence[int] | None, count: int | None = None) -> list[int] | None:
    """The classes to draw, in the order asked for; None for an unconditional network.

    By default all of them share the `count`; without one it is the first ten.

    Raises:
        ConfigError: a class that the network does not have, or an empty list.
    """
    if num_classes <= 0:
        if asked is not None:
            raise ConfigError(f"classes={list(asked)}: this network is unconditional; leave classes out")
        return None
    if asked is None:
        return list(range(num_classes if count else min(num_classes, SHOWN)))
    if not asked:
        raise ConfigError("classes=[]: nothing to draw; give some, such as classes=[0]")
    if not all(0 <= c < num_classes for c in asked):
        raise ConfigError(
            f"classes={list(asked)}: this network has {num_classes} classes; give some of 0 ... {num_classes - 1}, "
            "such as classes=[0]"
        )
    return list(asked)


def choose_prompts(data: DataModule, asked: Sequence[str] | None, count: int | None = None) -> list[str]:
    """The texts to draw, in the order asked for; by default the data set's own, `count` of them or else ten.

    Raises:
        UserError: an empty list, or no data set at hand to take them from.
    """
    if asked is not None and not asked:
        raise ConfigError("prompts=[]: give at least one, such as prompts=['a red kite']")
    if asked is None:
        try:
            asked = data.prompts(count or SHOWN)
        except DataError as error:
            raise ConfigError(f"pass prompts=['...']: this run's own cannot be read ({error})") from error
    if not asked:
        raise ConfigError("pass prompts=['...']: the data of this run have none of their own")
    return [str(prompt) for prompt in asked]
