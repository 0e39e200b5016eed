"""One sign of life for long work outside training: how far, how fast, how much longer; on standard error.

On a terminal it is a bar, elsewhere (a log file, CI, a batch system) a plain line now and then, which fits 100 columns.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

EVERY = 15.0  #: seconds from one plain line to the next, at first;
SELDOM = 300.0  #: and later a twentieth of what has passed, up to this: a log of a week can still be read
_WORTH_TELLING = 2.0  # seconds; of work that ended sooner there is no line

T = TypeVar("T")


class _Whole:
    """A command's work of several like parts, each with bars of its own."""

    def __init__(self, parts: int) -> None:
        self.parts, self.done = parts, 0
        self.begin = self.since = time.perf_counter()

    def told(self, share: float) -> str:
        """Which part it is, and how long all of them take, by those that are done or by the share of the first."""
        now = time.perf_counter()
        spent = self.since - self.begin if self.done else now - self.begin
        count = self.done or share
        left = f", all done in {span(max(0.0, spent / count * self.parts - (now - self.begin)))}" if count else ""
        return f"; part {self.done + 1} of {self.parts}{left}"


_whole: _Whole | None = None


def parts(items: Sequence[T]) -> Iterator[T]:
    """Each item in turn; the bars of the work on one say the time that is left for all of them."""
    global _whole
    _whole = _Whole(len(items)) if len(items) > 1 else None
    try:
        for item in items:
            yield item
            if _whole is not None:
                _whole.done, _whole.since = _whole.done + 1, time.perf_counter()
    finally:
        _whole = None


def _all(share: float) -> str:
    return "" if _whole is None else _whole.told(share)


@contextmanager
def progress_bar(
    label: str, total: int | None, unit: str = "steps", before: int = 0, after: float = 0.0
) -> Iterator[Callable[..., None]]:
    """Show `total` pieces of work (None: an unknown number) while the context is open, and yield its "so many more
    done", one by default, with a note. Lines come by the clock, also while a single piece takes long. Two must not be
    open at once.

    Args:
        before: pieces that were done earlier, which do not count in the rate.
        after: what the report that follows this work takes, in pieces: a bar says the time for it beside the time left,
            a line counts it in.
    """
    shown: Callable[..., AbstractContextManager[Callable[..., None]]] = _bar if sys.stderr.isatty() else _lines
    with shown(label, total, unit, before, after) as advance:
        yield advance


@contextmanager
def _bar(label: str, total: int | None, unit: str, before: int, after: float) -> Iterator[Callable[..., None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn(f"{{task.fields[rate]:.2f}} {unit}/s{{task.fields[note]}}")
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, begin, done = (
            bar.add_task(label, total=total, completed=before, rate=0.0, note=""),
            time.perf_counter(),
            0,
        )

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            passed = time.perf_counter() - begin
            told = note and f", {note}"
            if after:
                told += f", then about {span(after * passed / done)} for the report"
            told += _all((before + done) / total if total else 0)
            bar.update(task, advance=count, rate=done / passed, note=told)

        yield advance


@contextmanager
def _lines(label: str, total: int | None, unit: str, before: int, after: float) -> Iterator[Callable[..., None]]:
    begin, done, told, over = time.perf_counter(), 0, "", threading.Event()

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, told
        done, told = done + count, note and f" {note},"

    def tell() -> None:
        passed = time.perf_counter() - begin
        line = f" {before + done}{'' if total is None else f'/{total}'} {unit}, {done / passed:.3g}/s,{told}"
        line = "" if total is None and not done else line
        rest = 0 if total is None else total - before - done
        left = f", {span((rest + after) * passed / done)} left" if rest > 0 and done else ""
        whole = _all((before + done) / total if total else 0.0)
        print(f"{label}:{line} {span(passed)} so far{left}{whole}", file=sys.stderr, flush=True)

    def watch() -> None:
        while not over.wait(max(EVERY, min(SELDOM, (time.perf_counter() - begin) / 20))):
            tell()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield advance
    finally:
        over.set()
        watcher.join()
        if time.perf_counter() - begin > _WORTH_TELLING:
            tell()


def span(seconds: float) -> str:
    """A time as a person says it: 42 s, 5 min 3 s, 2 h 7 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
