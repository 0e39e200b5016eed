"""No sample is in training and in validation: looked at in one place, for every data module."""

from __future__ import annotations

import os
from collections.abc import Iterator

from neural_rdm.core.errors import DataError, printable
from neural_rdm.core.listing import Identity, identity
from neural_rdm.data.source import Source


def refuse_shared(train: Source | None, val: Source | None) -> None:
    """Compare the files that two sources are read from (`Source.origins`), whatever links lead to them. Of a folder
    that is a sample every file counts. Every folder that holds some of them is listed once.

    Raises:
        DataError: some files are in both.
    """
    if train is None or val is None:
        return
    seen = {hash(which) for _, _, which in _identities(val)}
    both = [(origin, file, which) for origin, file, which in _identities(train) if hash(which) in seen]
    if not both:
        return
    held: dict[Identity, list[tuple[str, str]]] = {which: [] for _, _, which in both}
    for origin, file, which in _identities(val):
        if which in held:
            held[which].append((origin, file))
    trained, validated = set(train.origins()), set(val.origins())
    shared = {
        path: other
        for path, file, which in both
        for other, its_file in held[which]
        if path in trained and other in validated and _same(file, its_file)
    }
    if shared:
        first, second = map(printable, min(shared.items()))
        other = "" if first == second else f", which is the same as {second}"
        raise DataError(
            f"data.root: {len(shared)} samples are trained on and validated on, such as "
            f"{first}{other}. Take them out of one of the two splits"
        )


def _identities(source: Source) -> Iterator[tuple[str, str, Identity]]:
    """(path that may be a sample, file, identity of the file) of all that lies directly in the folders of a source, and
    of all files in those of its samples that are folders; only links cost a look each.
    """
    known: set[str] | None = None
    folders = map(os.path.dirname, source.origins()) if source.folders is None else source.folders
    for folder in dict.fromkeys(folders):
        for path, which, is_folder in _inside(folder):
            yield path, path, which
            if is_folder and path in (known := known or set(source.origins())):
                yield from ((path, file, of) for file, of, _ in _inside(path))


def _inside(folder: str) -> Iterator[tuple[str, Identity, bool]]:
    """(path, identity, whether it is a folder) of all that lies directly in a folder."""
    if (here := identity(folder)) is None:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            which = identity(entry.path) if entry.is_symlink() else (here[0], entry.inode())
            if which is not None:
                yield entry.path, which, entry.is_dir()


def _same(first: str, second: str) -> bool:
    """Some file systems give numbers with the names that are not those of the files."""
    return first == second or (os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second))
