"""What is kept when a command ends before its work is done, and how to go on: one place for all commands."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from neural_rdm.config.provenance import CONFIG
from neural_rdm.core.errors import ResourceError, UserError, printable
from neural_rdm.core.extras import typed
from neural_rdm.core.files import as_user_error, needs_another_folder
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.core.signals import Stopped, catch, give_back, stop, stopped_behind
from neural_rdm.runs.folders import GOES_ON


@dataclass
class Work:
    """What a command is at: its name and the folder that it writes to."""

    command: str
    folder: Path | None = None  # None: it has not begun

    def clear(self) -> None:
        """Remove the folder where nothing came of it."""
        if self.folder is not None:
            with contextlib.suppress(OSError):
                self.folder.rmdir()

    def how_to_go_on(self, elsewhere: bool = False) -> str:
        """What is kept and what to type, in one sentence.

        Args:
            elsewhere: nothing can ever be written to the folder.
        """
        if self.folder is None or not self.folder.is_dir() or not any(self.folder.iterdir()):
            return f"Nothing was written; give the same command again{' with another hydra.run.dir' * elsewhere}."
        folder = os.path.relpath(self.folder)
        if self.command == "train" and not (self.folder / CONFIG).is_file():
            return f"Nothing is saved yet; give the same command again{' with another hydra.run.dir' * elsewhere}."
        if self.command == "train":
            return saved(self.folder, folder, elsewhere)
        kept = {**GOES_ON, "sweep": "the jobs"}.get(self.command)
        if kept is not None and not elsewhere:
            key = "hydra.sweep.dir" if self.command == "sweep" else "hydra.run.dir"
            return f"Kept are {kept} finished so far; the same command with {typed(key, folder)} goes on with them."
        return (
            f"What was written before is complete, in {folder}; give the same command again with another "
            "hydra.run.dir to make it all."
        )


@contextlib.contextmanager
def stoppable(work: Work) -> Iterator[None]:
    """Work that Ctrl-C, SIGTERM or a closed terminal ends with one sentence, and with the exit code of that signal."""
    before = catch(stop)
    try:
        yield
    except Stopped as stopped:
        work.clear()
        if is_first_rank():
            print(f"\nstopped by {stopped.signal.name}. {work.how_to_go_on()}", flush=True)
        raise SystemExit(stopped.exit_code) from None
    finally:
        give_back(before)


@contextlib.contextmanager
def told(work: Work) -> Iterator[None]:
    """Say in one sentence what ends the work, and exit with its code, where the user can put it right."""
    try:
        yield
    except Exception as caught:
        if not isinstance(caught, UserError) and (stopped := stopped_behind(caught)) is not None:
            raise stopped from None
        error = caught if isinstance(caught, UserError) else as_user_error(caught)
        if error is None:
            raise
        work.clear()
        if isinstance(error, ResourceError):
            traceback.clear_frames(caught.__traceback__)  # where memory ran out, they hold it
            with contextlib.suppress(OSError, MemoryError):  # not even for looking into the folder is there any
                error = UserError(f"{error} {work.how_to_go_on(needs_another_folder(caught))}")
        fail(error)


def fail(error: UserError) -> NoReturn:
    """Print an error as one message and exit with its code, 2 for a user's mistake."""
    print(f"error: {printable(str(error))}", file=sys.stderr, flush=True)
    raise SystemExit(error.exit_code)


def saved(folder: Path, shown: str | Path, elsewhere: bool = False) -> str:
    """What is kept of a training run and how to continue it, in one sentence."""
    steps = [int(p.stem.removeprefix("step=")) for p in (folder / "checkpoints").glob("step=*.ckpt")]
    kept = f"Saved last was step {max(steps)}" if steps else "No step is saved yet"
    go_on = (
        f"copy {shown} to where you may write and continue with resume=COPY"
        if elsewhere
        else f"continue with {typed('resume', shown)}"
    )
    return f"{kept}; {go_on}"
