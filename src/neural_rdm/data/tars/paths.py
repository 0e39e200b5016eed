"""Which tar files a pattern names: braces, globs, and addresses whose files are fetched once."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.files import sweep, write_atomically
from neural_rdm.core.listing import each_once, identity, walk
from neural_rdm.core.progress import progress_bar
from neural_rdm.data.layouts import is_held_out
from neural_rdm.data.locked import locked

#: below `data.root`: what was downloaded, and the index of every shard; may be deleted at any time
KEPT = ".shards"
MAX_SHARDS = 1_000_000
TIMEOUT = 60.0  # seconds without a byte
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")
_SCHEMES = ("http://", "https://")
_MIB = 1 << 20


def kept_file(root: Path, source: str, suffix: str = "") -> Path:
    """Where something made from `source` (a path or an address) is kept below `root`: one file name each."""
    name = re.sub(r"[^\w.-]+", "_", _name(source))[-100:]
    return root / KEPT / f"{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}-{name}{suffix}"


def find_shards(root: Path, pattern: str, key: str) -> list[Path]:
    """The files that `pattern` names, in the order of its braces and, within a glob, of their names.

    Args:
        root: where relative paths begin, and where downloads are kept.
        pattern: a path, glob (`*.tar`, `**/*.tar`) or http(s) address, with braces (`{000..099}`, `{a,b}`) or not.
        key: the configuration key of the pattern, for messages.

    Raises:
        ConfigError: braces that make no sense, or an address that is not http(s).
        DataError: a file is missing or named twice, nothing matches, or a download fails.
    """
    try:
        expanded = expand(pattern)
    except ValueError as error:
        raise ConfigError(f"{key}={pattern}: {error}") from error
    files: list[Path] = []
    missing: list[str] = []
    fetch = [source for source in expanded if _is_address(source, key) and not kept_file(root, source).is_file()]
    for number, source in enumerate(fetch, start=1):
        _download(source, kept_file(root, source), f"{number} of {len(fetch)}")
    for source in expanded:
        path = kept_file(root, source) if _is_address(source, key) else root / os.path.expanduser(source)
        if path.is_file():
            files.append(path)
        elif glob.has_magic(source):
            inside = os.path.join(glob.escape(str(root)), os.path.expanduser(source))
            files += each_once(map(Path, sorted({p for p in _matching(inside) if os.path.isfile(p)})))[0]
        else:
            missing.append(source)
    if missing:
        raise DataError(
            f"{key}={pattern}: {len(missing)} of {len(expanded)} shards are not in {root}, such as {missing[0]}"
        )
    if not files:
        names = sorted(name for name in os.listdir(root) if not name.startswith("."))
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        there = ", ".join(names[:5]) + more or "nothing"
        raise DataError(f"{key}={pattern}: no file of that name in {root}, which holds {there}")
    first: dict[object, Path] = {}
    for number, file in enumerate(files):
        if first.setdefault(identity(file) or number, file) is not file:
            raise DataError(f"{key}={pattern} names {file} twice; each shard is read once")
    return files


def without_held_out(root: Path, files: list[Path], pattern: str) -> tuple[list[Path], list[Path]]:
    """Shards for training and, apart, those among them that a wildcard has caught by mistake: their names say that they
    are held out (`val-000000.tar`, `test/0.tar`), and the pattern does not ask for these.
    """
    if not glob.has_magic(pattern) or _is_held_out(pattern):
        return files, []
    apart = [file for file in files if file.is_relative_to(root) and _is_held_out(str(file.relative_to(root)))]
    return [file for file in files if file not in set(apart)], apart


def _is_held_out(path: str) -> bool:
    *folders, name = path.split("/")
    words = [os.path.splitext(name)[0], *re.split(r"[^a-zA-Z]+", name)]
    return any(map(is_held_out, folders)) or (
        "train" not in name.lower() and any(map(is_held_out, filter(None, words)))
    )


def _matching(pattern: str) -> Iterator[str]:
    """What a glob matches. `**` enters a folder once, whatever links lead to it: a loop of links ends."""
    above, star, below = pattern.partition("**")
    if not star:
        yield from glob.glob(pattern)
        return
    for top in glob.glob(above) if glob.has_magic(above) else [above]:
        for folder, _, _ in walk(top):
            yield from _matching(os.path.join(glob.escape(folder), below.lstrip("/") or "*"))


def expand(pattern: str) -> list[str]:
    """Write the braces of a pattern out as bash does: `{a,b}`, `{000..099}`, `{0..90..10}`, nested or side by side.

    A pattern without braces comes back alone.

    Raises:
        ValueError: a brace without its partner, one that holds neither a list nor a range, or too many names.
    """
    head, brace, _ = pattern.partition("{")
    if "}" in head:
        raise ValueError("there is a } without its {")
    if not brace:
        return [pattern]
    start = len(head)
    depth, begin, parts = 0, start + 1, []
    for place in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[place], 0)
        if depth == 0 or (depth == 1 and pattern[place] == ","):
            parts.append(pattern[begin:place])
            begin = place + 1
        if depth == 0:
            break
    else:
        raise ValueError("there is a { without its }")
    middles = [text for part in parts for text in expand(part)] if len(parts) > 1 else _numbers(parts[0])
    rests = expand(pattern[begin:])
    if len(middles) * len(rests) > MAX_SHARDS:
        raise ValueError(f"that is more than {MAX_SHARDS} names")
    return [head + middle + rest for middle in middles for rest in rests]


def _numbers(text: str) -> list[str]:
    """The numbers of `first..last` or `first..last..step`, all as wide as the wider end where one begins with 0."""
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f"{{{text}}} is neither a list such as {{a,b}} nor a range such as {{000..099}}")
    ends, step = match.group(1, 2), max(1, int(match[3] or 1))
    first, last = map(int, ends)
    padded = any(re.match(r"-?0\d", end) for end in ends)
    width = max(map(len, ends)) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    if len(numbers) > MAX_SHARDS:
        raise ValueError(f"{{{text}}} is more than {MAX_SHARDS} names")
    return [f"{number:0{width}d}" for number in numbers]


def _is_address(source: str, key: str) -> bool:
    if source.startswith(_SCHEMES):
        return True
    if "://" in source or source.startswith("pipe:"):
        raise ConfigError(
            f"{key}={source}: only http:// and https:// addresses are fetched, and no command is ever run; copy the "
            "shards to this machine with the tool of that store and pass their folder with data.root"
        )
    return False


def _download(url: str, path: Path, count: str) -> None:
    """Fetch a shard, unless another process has done so by the time that this one may."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(path.with_name(f".{path.name}.lock")))
        except OSError as error:
            raise DataError(
                f"data.root: downloads are kept in {path.parent}, which cannot be written: {error.strerror}. "
                "Pass another folder with data.root=DIR"
            ) from error
        sweep(path.parent, deep=False)
        if not path.is_file():
            print(f"fetching {url} to {path} ({count})", flush=True)
            write_atomically(path, lambda file: file.writelines(_chunks(url)))


class _HttpOnly(urllib.request.HTTPRedirectHandler):
    """A server may send a client on, but to no other kind of address."""

    def redirect_request(self, *request: Any) -> urllib.request.Request | None:
        if not request[-1].startswith(_SCHEMES):
            raise ValueError(f"it leads to {request[-1]}")
        return super().redirect_request(*request)


def _chunks(url: str) -> Iterator[bytes]:
    """What an address holds, with a progress bar.

    Raises:
        DataError: there is no such thing, the connection fails, or it ends early.
    """
    advice = "Check the address and the connection and run the same command again: whole shards stay where they are."
    try:
        with urllib.request.build_opener(_HttpOnly).open(url, timeout=TIMEOUT) as response:
            announced = response.headers.get("Content-Length") or ""
            length, size = int(announced) if announced.isdecimal() else None, 0
            with progress_bar(_name(url), -(-(length or 0) // _MIB), "MiB") as advance:
                while chunk := response.read(_MIB):
                    yield chunk
                    size += len(chunk)
                    advance()
    except (OSError, HTTPException, ValueError) as error:
        raise DataError(f"cannot fetch {url}: {error or type(error).__name__}. {advice}") from error
    if length is not None and size != length:
        raise DataError(f"{url} ended after {size} of its {length} bytes. {advice}")


def _name(source: str) -> str:
    return source.partition("?")[0].rpartition("/")[2]
