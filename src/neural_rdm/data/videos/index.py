"""How long every video of a data set is, found out once and kept in an index file.

The file is `~/.cache/neural_rdm/videos/NAME-HASH.json` (below `$XDG_CACHE_HOME` where that is set), one for each root
and decoder: data sets are often read-only, and never written into. A video is looked at again when its size or its time
of change is another. To look at all of them again, delete the file.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from neural_rdm.core.errors import BrokenSample, UserError, printable
from neural_rdm.core.files import sweep, write_text
from neural_rdm.core.given import read_json
from neural_rdm.core.progress import progress_bar
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.data.locked import locked
from neural_rdm.media.decoders import VideoInfo, check_decoder, open_video

PATIENCE = 120.0  # seconds that a decoder may take to look at one video before it counts as hanging
#: of what is counted, too: 2 counted frames that an edit list cuts off, 3 a still in two formats twice
_VERSION = 4
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


class VideoIndex(NamedTuple):
    """What is known of some videos.

    frames: int64 [N], how many frames can be read; 0 where none can.
    broken: {number of the video: what is wrong with it}.
    """

    frames: NDArray[np.int64]
    broken: dict[int, str]


#: what is known of one video: VideoInfo, or why it cannot be read
Found = VideoInfo | str
#: (size, time of change in ns) and what is known
Entry = tuple[tuple[int, int], Found]


def index_videos(root: Path, paths: Sequence[str], decoder: str, processes: int = 1) -> VideoIndex:
    """Look at the videos that the index does not know yet, with a progress bar, and write them into it.

    A video counts as many frames as it shows and can be read (`Video.info`). This is done in processes of their own,
    since decoders crash or hang on some damaged files. Of several processes that come at once, one does the work and
    the others wait for it.

    Args:
        root: folder of the data set, absolute.
        paths: video files and folders of frames below it.
        decoder: one of `DECODERS`.
        processes: how many look at videos at a time.

    Raises:
        ConfigError: there are video files, and the decoder is not installed.
    """
    if not all(map(os.path.isdir, paths)):
        check_decoder(decoder)
    file = index_file(root, decoder)
    names = [os.path.relpath(path, root) for path in paths]
    stamps = {name: _stamp(path) for name, path in zip(names, paths, strict=True)}
    known = _read(file)
    if any(_unknown(known, name, stamp) for name, stamp in stamps.items()):
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # where it cannot be written, the index cannot either
                waiting = f"waiting for another process that looks at these videos ({file})"
                stack.enter_context(locked(file.with_suffix(".lock"), waiting))
            known = _read(file)  # once more: another process may have been at work
            sweep(file.parent, deep=False)
            todo = [name for name, stamp in stamps.items() if _unknown(known, name, stamp)]
            try:
                with progress_bar("Looking at videos once", len(todo), "videos") as advance:
                    for name, entry in _probed(root, todo, decoder, processes):
                        if (stamp := stamps[name]) is not None:
                            known[name] = stamp, entry
                        advance()
            finally:  # a build that is interrupted goes on where it was
                _write(file, root, decoder, known)
    found = ["no such file" if stamps[name] is None else known[name][1] for name in names]
    frames = np.array([v.frames if isinstance(v, VideoInfo) else 0 for v in found], dtype=np.int64)
    return VideoIndex(frames, {i: v for i, v in enumerate(found) if isinstance(v, str)})


def index_file(root: Path, decoder: str) -> Path:
    """Where the index of a data set is."""
    digest = hashlib.sha256(f"{decoder}\0".encode() + os.fsencode(root)).hexdigest()[:12]
    return cache_folder() / f"{root.name}-{digest}.json"


def cache_folder() -> Path:
    """Where all indices are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neural_rdm" / "videos"


def _unknown(known: dict[str, Entry], name: str, stamp: tuple[int, int] | None) -> bool:
    return stamp is not None and (name not in known or known[name][0] != stamp)


def _stamp(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    return None


def _read(file: Path) -> dict[str, Entry]:
    """What the file holds; nothing where it is damaged or of another version."""
    try:
        content = read_json(file)
        rows = content["videos"].items() if content["version"] == _VERSION else ()
        return {name: ((int(size), int(changed)), _found(*found)) for name, (size, changed, *found) in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _found(first: Any, *rest: Any) -> Found:
    return VideoInfo(int(first), *rest) if rest else str(first)


def _write(file: Path, root: Path, decoder: str, known: dict[str, Entry]) -> None:
    """One video a line: size, time of change, then frames, fps, width, height, or what is wrong.

    What is wrong with a folder is not written: its time of change is not that of its frames.
    """
    lines = []
    for name, (stamp, found) in sorted(known.items()):
        if isinstance(found, str) and os.path.isdir(root / name):
            continue
        row = [*stamp, *([found] if isinstance(found, str) else found)]
        lines.append(f"{json.dumps(name)}: {json.dumps(row)}")
    head = f'{{"version": {_VERSION}, "root": {json.dumps(str(root))}, "decoder": "{decoder}", "videos": {{\n'
    try:
        write_text(file, head + ",\n".join(lines) + "\n}}\n")
        if is_first_rank():
            print(f"the index of {len(lines)} videos is kept in {printable(file)}", flush=True)
    except UserError as error:
        print(f"the videos will be looked at again next time: {error}", flush=True)


@dataclass
class _Prober:
    """A process that looks at one video at a time."""

    process: Any
    pipe: Connection
    name: str = ""
    deadline: float = 0.0

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _probed(root: Path, names: Sequence[str], decoder: str, processes: int) -> Iterator[tuple[str, Found]]:
    """(name, what is known of it), in the order in which they are ready."""
    # as for the loader: only Linux forks safely. A fork starts at once.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    waiting = deque(names)
    idle: list[_Prober] = []
    busy: dict[Connection, _Prober] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < max(1, processes):
                prober = idle.pop() if idle else _start(context, decoder, [*busy])
                prober.name, prober.deadline = waiting.popleft(), time.monotonic() + PATIENCE
                prober.pipe.send(os.fspath(root / prober.name))
                busy[prober.pipe] = prober
            for ready in wait(list(busy), timeout=PATIENCE / 60):
                prober = busy.pop(ready)  # type: ignore[arg-type]
                try:
                    found = prober.pipe.recv()
                    idle.append(prober)
                except (EOFError, OSError):
                    prober.stop()
                    found = f"{decoder} crashed on it (exit code {prober.process.exitcode})"
                yield prober.name, found
            for prober in [p for p in busy.values() if time.monotonic() > p.deadline]:
                busy.pop(prober.pipe).stop()
                yield prober.name, f"{decoder} was still busy with it after {PATIENCE:g} s"
    finally:
        for prober in [*idle, *busy.values()]:
            prober.stop()


def _start(context: Any, decoder: str, held: Sequence[Connection]) -> _Prober:
    """Start a process that looks at videos; of a fork, `held` is what it must not keep open."""
    here, there = context.Pipe()
    inherited = [here, *held] if context.get_start_method() == "fork" else []
    process = context.Process(target=_serve, args=(there, decoder, inherited, os.getpid()), daemon=True)
    process.start()
    there.close()  # so that the end of the process is the end of the pipe
    return _Prober(process, here)


def _serve(pipe: Connection, decoder: str, inherited: Sequence[Connection], parent: int) -> None:
    """The loop of a prober: a path comes in, what is known of it goes out. It ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the parent, which ends its probers
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    if sys.platform == "linux":  # a decoder that hangs would not notice the end of the pipe
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:
            return
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(probe(pipe.recv(), decoder))


def probe(path: str, decoder: str) -> Found:
    """Look at one video: what it is, with as many frames as can be read, or what is wrong."""
    try:
        with contextlib.closing(open_video(path, decoder)) as video:
            return video.info()
    except BrokenSample as error:
        return str(error) if os.path.isdir(path) else error.reason
