"""No sample is in training and in validation: looked at in one place, for every data module."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from neural_rdm.core.errors import DataError
from neural_rdm.core.listing import Identity, identity
from neural_rdm.data.broken import printable


def refuse_shared(train: object, val: object) -> None:
    """Compare the files that two sources are read from, whatever links lead to them.

    A source says them by a method `origins`: paths of files, or of folders that are a sample each. Sources without it
    hold samples that are no files; they are not compared. Every folder that holds some of them is listed once.

    Raises:
        DataError: some files are in both.
    """
    if not (hasattr(train, "origins") and hasattr(val, "origins")):
        return
    held: dict[Identity, list[str]] = defaultdict(list)
    for folder in _folders(val):
        for path, which in _identities(folder):
            held[which].append(path)
    both = [(path, held[which]) for folder in _folders(train) for path, which in _identities(folder) if which in held]
    if not both:
        return
    trained, validated = set(train.origins()), set(val.origins())
    shared = [(a, b) for a, others in both if a in trained for b in others if b in validated and _same(a, b)]
    if shared:
        first, second = map(printable, min(shared))
        other = "" if first == second else f", which is the same as {second}"
        raise DataError(
            f"data.root: {len({path for path, _ in shared})} samples are trained on and validated on, such as "
            f"{first}{other}. Take them out of one of the two splits"
        )


def _folders(source: Any) -> list[str]:
    """The folders that hold the files of a source."""
    known = getattr(source, "folders", None)
    return list(dict.fromkeys(map(os.path.dirname, source.origins()) if known is None else known))


def _identities(folder: str) -> Iterator[tuple[str, Identity]]:
    """(path, identity) of all that lies directly in a folder; only links cost a look each."""
    if (here := identity(folder)) is None:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            which = identity(entry.path) if entry.is_symlink() else (here[0], entry.inode())
            if which is not None:
                yield entry.path, which


def _same(first: str, second: str) -> bool:
    """Some file systems give numbers with the names that are not those of the files."""
    return first == second or (os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second))
