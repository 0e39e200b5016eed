"""What a run prints, also in a file of its folder: every start of it appends to `output.log`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import UserError, printable
from neural_rdm.core.given import regular
from neural_rdm.core.signals import Stopped, stopped_behind

#: what a run prints; of a job of a sweep the sweep writes it, and it is there before the job
LOG = "output.log"
#: in front of the command line of each start
HEAD = "# "
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_TAIL = 16384  # bytes of a log that its last error is looked for in


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[Callable[[], None]]:
    """Write what this process prints while the context is open, and the error that ends it, into the folder's log too.

    Nothing is written where standard output is that file already. A log that cannot be written stops nothing.

    Yields:
        What makes the log again what it was, also once the context is left.
    """
    path = folder / LOG
    before = path.stat().st_size if path.is_file() else None
    try:
        if _goes_to(path):
            raise FileExistsError(path)
        file = appended(path)
    except OSError:
        yield lambda: None
        return
    logs = [_Log(file) for _ in range(3)]
    log = logs[0]
    time = datetime.now(timezone.utc).isoformat(sep=" ", timespec="seconds")
    log.write(f"{HEAD}{time} {shlex.join(['python', *sys.orig_argv[1:]])}\n")
    streams, handler = (sys.stdout, sys.stderr), logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    sys.stdout, sys.stderr = map(_Copied, streams, logs[1:])
    try:
        yield lambda: _restore(path, before)
    except UserError as error:
        log.write(f"error: {error}\n")
        raise
    except Stopped as stopped:
        log.write(f"stopped by {stopped.signal.name}\n")
        raise
    except Exception as error:
        behind = stopped_behind(error)
        log.write(traceback.format_exc() if behind is None else f"stopped by {behind.signal.name}\n")
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        sys.stdout, sys.stderr = streams
        for each in logs:
            each.closed = True  # whoever holds such a stream still must not write into whatever gets its number next
        os.close(file)


def appended(path: Path) -> int:
    """A descriptor that appends to a log; one is made where there is none.

    Raises:
        OSError: it cannot be written; in a folder of somebody else's it may be a link to a file of the user's, or a
            pipe that nobody reads.
    """
    own = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | own, 0o666)


def _restore(path: Path, size: int | None) -> None:
    with contextlib.suppress(OSError):
        if size is None:
            path.unlink()
        else:
            os.truncate(path, size)


def print_page(path: Path) -> None:
    """Print a text that was written for people; the names in it may be a stranger's."""
    print(printable(path.read_text(encoding="utf-8")))


def last_error(folder: Path) -> str | None:
    """The first line of the error that the newest start of a run ended with; None where nothing tells of one."""
    try:
        with open(regular(folder / LOG), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    newest = re.split(rf"^{HEAD}\d{{4}}-", text, flags=re.MULTILINE)[-1]
    found = re.findall(r"^(?:error: (.+)|([\w.]*(?:Error|Exception|Interrupt)\b.*))$", newest, re.MULTILINE)
    return (found[-1][0] or found[-1][1]) if found else None


class _Log:
    """The lines of one stream, as a terminal would have left them: without colours, and of a bar its last state."""

    def __init__(self, file: int) -> None:
        self._file, self._line, self.closed = file, "", False

    def write(self, text: str) -> int:
        """Take a piece of text; its whole lines are on disk when this returns."""
        *lines, self._line = (self._line + text).split("\n")
        if lines and not self.closed:
            shown = "".join(f"{_CONTROL.sub('', line).rstrip(chr(13)).rpartition(chr(13))[2]}\n" for line in lines)
            with contextlib.suppress(OSError):
                os.write(self._file, shown.encode("utf-8", "replace"))
        self._line = self._line[max(0, self._line.rfind("\r", 0, -1)) :]  # what is overwritten is forgotten
        return len(text)

    def flush(self) -> None:
        """Nothing: lines are written at once."""


class _Copied:
    """A stream whose text also goes into a log."""

    def __init__(self, stream: Any, log: _Log) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return 0 if self._stream is None else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _goes_to(path: Path) -> bool:
    """Whether standard output is this file."""
    try:
        return os.path.samestat(os.fstat(sys.stdout.fileno()), os.stat(path))
    except (OSError, ValueError, AttributeError):
        return False
