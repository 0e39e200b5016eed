"""Errors that a person can act on. Commands print them without a traceback and exit with code 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that only the user can put right. The message says what is wrong, where, and what to type instead."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot work: unknown key, wrong type, value out of range, choices that do not fit
    together.

    Attributes:
        key: the dotted key that is wrong, or None where it is no single one.
    """

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class ArgumentError(ConfigError, ValueError):
    """The same of the arguments of a constructor, for whoever calls it from Python."""


class DataError(UserError):
    """Data that is missing, empty, or not in the layout that was asked for."""


class WriteError(UserError):
    """A file that cannot be written. The command adds how to go on with it."""


class RankError(UserError):
    """Another process of the run has ended. Nobody made a mistake."""

    exit_code = 1


class CheckpointError(UserError):
    """A checkpoint or run folder that is missing, unreadable, or of another network."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
