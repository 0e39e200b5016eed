"""The signals that ask a command to stop: Ctrl-C, SIGTERM, and SIGHUP where the terminal is closed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

Handlers = dict[signal.Signals, Any]
#: those that this system has (Windows has no SIGHUP)
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal, on its way up through the work that it stops."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell would report it."""
        return 128 + self.signal


#: what `stop` has raised
_raised: Stopped | None = None


def stopped_behind(error: BaseException) -> Stopped | None:
    """The signal that was on its way up when a library, tidying up in its way, failed with an error of its own; or that
    a library has swallowed, as torch does while it imports numpy, before something else failed by that.
    """
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, Stopped):
        behind = behind.__context__
    return behind or _raised


def catch(handle: Callable[[signal.Signals], None]) -> Handlers:
    """Call `handle` at each signal that asks this process to stop; returns what did so before, for `give_back`.

    A process that is forked later leaves it to its parent. What `nohup` made deaf to SIGHUP stays so. Only the main
    thread can do this; elsewhere nothing happens.
    """
    owner = os.getpid()

    def act(number: int, frame: Any) -> None:
        if os.getpid() != owner:
            return
        if number == signal.SIGHUP:
            _leave_closed_terminal()
        handle(signal.Signals(number))

    before: Handlers = {}
    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if not (number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                before[number] = signal.signal(number, act)
    return before


def leave_quietly() -> None:
    """Let Ctrl-C end this process without a traceback, until `catch`: while a command still imports what it needs.

    Only where this package is what runs; in somebody else's program the signal is theirs.
    """
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    runs = spec.name if spec is not None else ""
    if sys.argv[:1] == ["-m"]:  # of `python -m`, which looks for the module: there is no `__main__` yet
        runs = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
    ours = runs.partition(".")[0] == __name__.partition(".")[0]
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not one that `&` made deaf
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def give_back(before: Handlers) -> None:
    """Undo `catch`."""
    global _raised
    _raised = None
    for number, handler in before.items():
        signal.signal(number, handler)


def say(text: str) -> None:
    """Write to standard error from a handler, which may have interrupted a `print` that cannot be entered again."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def stop(number: signal.Signals) -> None:
    """Stop the work at once. A second signal ends the process without waiting for anything to be tidied up."""
    for other in STOPPING:
        signal.signal(other, signal.SIG_DFL)
    global _raised
    _raised = Stopped(number)
    raise _raised


def _leave_closed_terminal() -> None:
    """What is said from now on goes nowhere where the terminal is gone: to write there would be an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()
            try:
                os.write(descriptor, b"")
            except OSError:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
