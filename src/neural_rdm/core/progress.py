"""One progress bar for long work outside training: how far, how fast, how much longer; on standard error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(label: str, total: int, unit: str = "steps") -> Iterator[Callable[..., None]]:
    """Show a bar of `total` pieces of work while the context is open, and yield its "so many more done", one by
    default.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    rate = TextColumn(f"{{task.fields[rate]:.2f}} {unit}/s")
    columns = TextColumn(label), BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task, begin, done = bar.add_task(label, total=total, rate=0.0), time.perf_counter(), 0

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            bar.update(task, advance=count, rate=done / (time.perf_counter() - begin))

        yield advance
