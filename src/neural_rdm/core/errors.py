"""Errors that a person can act on. Commands print them without a traceback and exit with code 2."""

from __future__ import annotations

import os
import re


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


class ResourceError(UserError):
    """The machine has run out of something. The command adds how to go on with its work."""


class WriteError(ResourceError):
    """A file that cannot be written."""


class RankError(UserError):
    """Another process of the run has ended. Nobody made a mistake."""

    exit_code = 1


class CheckpointError(UserError):
    """A checkpoint or run folder that is missing, unreadable, or of another network."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its kind where it says nothing. Of a KeyError it is the key alone."""
    said = next(iter(str(error).splitlines()), type(error).__name__)
    return f"there is no {said}" if type(error) is KeyError else said


class LoaderError(DataError):
    """A mistake of the data that is found while they are read. It stays one plain message out of a loader's worker."""

    def __init__(self, message: str) -> None:
        # A worker's exception is made anew from the text of its whole traceback, which ends in "LoaderError: message".
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


class BrokenSample(LoaderError):
    """One sample that cannot be read; a `Source` raises it, `Keyed` (see `base`) deals with it.

    Args:
        reason: what is wrong, as the end of a sentence ("image file is truncated").
        path: the file.
        index: which sample is broken, where it is not the one that was asked for.
    """

    def __init__(self, reason: str, path: str | os.PathLike[str] = "", index: int | None = None) -> None:
        self.reason = printable(" ".join(reason.replace("\0", "").split()))
        self.path, self.index = printable(path), index
        super().__init__(f"cannot read {self.path}: {self.reason}" if self.path else self.reason)


# compiled before they are needed: where memory has run out, no memory is left for that
_HALVES = re.compile(r"[\ud800-\udc7f\udd00-\udfff\u202a-\u202e\u2066-\u2069]")
_COMMANDS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path, or a text that holds one, that can be printed and written as UTF-8: bytes of another encoding, and what
    would command a terminal (all control characters but tab and newline), become \xNN, half characters and what turns
    the direction of letters, so that they read as something else, \uNNNN.
    """
    text = _HALVES.sub(lambda half: f"\\u{ord(half[0]):x}", os.fsdecode(path))
    text = _COMMANDS.sub(lambda command: f"\\x{ord(command[0]):02x}", text)
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
