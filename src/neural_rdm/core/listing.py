"""Looking into folders that users fill: the one place that knows links, loops, second names, hidden files and order.

Standard library only, since commands look at folders before torch is loaded. Rules for everybody who lists files:

- Hidden names, and what operating systems leave behind (`._x`, `Thumbs.db`, `__MACOSX`, ...), are passed over.
- Links are followed. A folder is entered once, whatever leads to it, so that loops of links end.
- A file is one file whatever its names: of several names (links, hard links) one is kept, rather one that is no link.
- The order is that of the names, and does not depend on the file system.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple, TypeVar

from neural_rdm.core.errors import DataError

#: (device, number on it) of a file or folder
Identity = tuple[int, int]
Item = TypeVar("Item")

#: names without a leading dot that no user has made, in lower case
_LEFT_BEHIND = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found",
    "system volume information",
})  # fmt: skip
# A sign, where it does not join two words; digits, with one point between them (of two or more, as in a date, each part
# counts by itself); an exponent with a sign.
_NUMBER = re.compile(r"((?:(?<=[=_/(,\[])|^)-)?(\d+(?:\.\d+)*)(e[+-]\d{1,3}(?!\d))?", re.IGNORECASE)


def natural_order(items: Iterable[Item], name: Callable[[Item], str] = str) -> list[Item]:
    """Sort by the numbers in the names: frame_10 follows frame_9, t=0.5 follows t=0.10, and -2 comes before -1.

    Where decimals would make two names equal, as in `shot1.1`, `shot1.10`, the points separate counters.

    Args:
        name: what an item is called.
    """
    names = [(name(item), item) for item in items]
    keys = [_key(text, decimals=True) for text, _ in names]
    if len(set(keys)) < len(keys):
        counted = [_key(text, decimals=False) for text, _ in names]
        keys = counted if len(set(counted)) > len(set(keys)) else keys
    order = sorted(range(len(names)), key=lambda i: (keys[i], names[i][0]))
    return [names[i][1] for i in order]


def _key(text: str, decimals: bool) -> tuple[tuple[int, int | Decimal | str], ...]:
    parts: list[tuple[int, int | Decimal | str]] = []
    end = 0
    for match in _NUMBER.finditer(text):
        if match.start() > end:
            parts.append((1, text[end : match.start()]))
        sign, digits, exponent = match.groups(default="")
        if digits.isdecimal() and not exponent:
            parts.append((0, Decimal(sign + digits)))
        elif decimals and digits.count(".") < 2:
            parts.append((0, Decimal(sign + digits + exponent)))
        else:
            parts += [(0, Decimal(digit)) for digit in digits.split(".")]
            parts += [(1, exponent)] if exponent else []
        end = match.end()
    return (*parts, (1, text[end:])) if end < len(text) else tuple(parts)


def numbers_apart(name: str) -> tuple[str, tuple[int | Decimal | str, ...]]:
    """A name with `#` in place of its numbers, and these: names of one series differ in their numbers only."""
    parts = _key(name, decimals=True)
    text = "".join(str(part) if kind else "#" for kind, part in parts)
    return text, tuple(part for kind, part in parts if not kind)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of anybody's data."""
    return name.startswith(".") or name.casefold() in _LEFT_BEHIND


def identity(path: str | os.PathLike[str]) -> Identity | None:
    """What tells a file or folder from all others, whatever it is called; None where a link leads nowhere."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def unreadable(folder: str | os.PathLike[str], error: OSError) -> DataError:
    """What to raise where a folder cannot be listed."""
    return DataError(f"cannot read the folder {folder}: {error.strerror}. Check its permissions.")


class Names(NamedTuple):
    """Files directly in a folder.

    names: each file once, sorted.
    again: {second name: name} of files that are there twice.
    marks: a number for each of the names that no other file has; by chance as good as never.
    """

    names: list[str]
    again: dict[str, str]
    marks: list[int]


def file_names(folder: str | os.PathLike[str], wanted: Callable[[str], bool]) -> Names:
    """The files directly in a folder; a link that leads nowhere is one as well, folders and pipes are none.

    Files that are no links cost no look at their state, as far as the file system gives their numbers with their names.

    Args:
        wanted: which names count.

    Raises:
        DataError: the folder cannot be read.
    """
    plain: list[tuple[str, int]] = []
    links: list[str] = []
    try:
        device = os.stat(folder).st_dev
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name) or not wanted(entry.name):
                    continue
                if entry.is_symlink():
                    links.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    plain.append((entry.name, entry.inode()))
    except OSError as error:
        raise unreadable(folder, error) from error
    plain.sort()
    if not links and len({number for _, number in plain}) == len(plain):
        return Names([name for name, _ in plain], {}, [hash((device, number)) for _, number in plain])
    seen: dict[Identity, str] = {}
    found, again = [], {}
    for name in [*(name for name, _ in plain), *sorted(links)]:
        path = os.path.join(folder, name)
        which = identity(path)
        if which is not None and not os.path.isfile(path):
            continue  # a link to a folder, or to a pipe, which would be waited for without end
        if which is not None and (first := seen.setdefault(which, name)) != name:
            again[name] = first
        else:
            found.append((name, hash(which or path)))
    found.sort()
    return Names([name for name, _ in found], again, [mark for _, mark in found])


def each_once(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Files in the given order, each once whatever its names, and their second names. Of several names one that is no
    link stays; a link that leads nowhere is a file as well, a pipe, which would be waited for without end, is none.
    """
    names = list(paths)
    seen: dict[Identity | Path, Path] = {}
    for path in sorted(names, key=os.path.islink):
        which = identity(path)
        if which is None or path.is_file():
            seen.setdefault(which or path, path)
    kept = set(seen.values())
    return [p for p in names if p in kept], [p for p in names if p not in kept and p.is_file()]


def walk(folder: str | os.PathLike[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk` from the top, by name, into linked folders too; each folder once, and no link to one that is above.

    Linked folders come last, so that a folder that lies there itself is called by its own name. A caller may shorten
    the list of folders, to leave them out. A folder that cannot be read is passed over, as `os.walk` does.
    """
    top = Path(folder).resolve()
    seen = {identity(parent) for parent in top.parents}
    linked: deque[str] = deque([os.fspath(folder)])
    while linked:
        waiting = [linked.popleft()]
        while waiting:
            here = waiting.pop()
            if (which := identity(here)) is None or which in seen:
                continue
            seen.add(which)
            folders, files, links = _entries(here)
            yield here, folders, files
            waiting += [os.path.join(here, name) for name in reversed(folders) if name not in links]
            linked += [os.path.join(here, name) for name in folders if name in links]


def _entries(folder: str) -> tuple[list[str], list[str], set[str]]:
    """Sorted names of the folders and of everything else in a folder, and which of the folders are links."""
    folders, files, links = [], [], set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not _is_folder(entry):
                    files.append(entry.name)
                    continue
                folders.append(entry.name)
                if entry.is_symlink():
                    links.add(entry.name)
    except OSError:
        return [], [], set()
    return sorted(folders), sorted(files), links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
