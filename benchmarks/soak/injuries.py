"""What is done to a command while it works, or to its folder after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.soak.cases import Case
from benchmarks.soak.session import Session, parent_of

KILL, TERM, INT, HUP = signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@dataclass
class Scene:
    """What an injury finds.

    Attributes:
        folder: that the command writes to.
        shared: the folder of the inputs that it reads; None where it reads none.
        repairs: what puts right what is not as it was, in order.
        notes: what was done, for the row.
        second: another command that the injury has started.
    """

    case: Case
    session: Session
    folder: Path
    shared: Path | None
    draw: random.Random
    start: Callable[[list[str], str], Session]
    inputs: Path
    repairs: list[Callable[[], Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    second: Session | None = None


@dataclass(frozen=True)
class Injury:
    """One kind of injury.

    Attributes:
        strike: what happens at the moment.
        codes: exit codes of the command that is struck, beside 0 where it was done before or bears it.
        fits: whether a command can have it.
        after: what happens to the folder once the command has ended.
        patched: makes the patch of `patched` under which the command runs, from its length in seconds.
        disk: options of the small file system that it runs on.
        loses: what was saved last may be what is damaged.
        kills: it is a kill, of the whole or of a part.
    """

    name: str
    strike: Callable[[Scene], None]
    codes: tuple[int, ...]
    weight: float = 1.0
    fits: Callable[[Case], bool] = lambda case: True
    after: Callable[[Scene], None] | None = None
    patched: Callable[[random.Random, float], str] | None = None
    disk: str = ""
    loses: bool = False
    kills: bool = False
    again: bool = False  # also of the command that goes on


def stopped(number: signal.Signals) -> tuple[int, ...]:
    """How a command ends that is asked to stop: as it says itself, or before it has begun to listen."""
    return 128 + number, -number


def send(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def to_main(*numbers: signal.Signals, apart: float = 0.5) -> Callable[[Scene], None]:
    """Signals to the process that was started, up to so many seconds apart."""

    def strike(scene: Scene) -> None:
        for i, number in enumerate(numbers):
            if i:
                scene.session.sleep(scene.draw.uniform(0, apart))
            send(scene.session.pid, number)

    return strike


def to_group(*numbers: signal.Signals, apart: float = 0.5) -> Callable[[Scene], None]:
    """Signals to the whole foreground group, as a terminal sends them."""

    def strike(scene: Scene) -> None:
        for i, number in enumerate(numbers):
            if i:
                scene.session.sleep(scene.draw.uniform(0, apart))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(scene.session.pid, number)

    return strike


def kill_part(scene: Scene) -> None:
    """SIGKILL of one of the processes that the command has started, or is about to start."""
    waited = False
    while not (parts := _parts(scene)):
        waited = True
        if not scene.session.sleep(0.01):
            scene.notes.append("it had none from that moment on")
            return
    if waited and scene.session.sleep(scene.draw.uniform(0, 0.5)):
        parts = _parts(scene) or parts
    send(scene.draw.choice(parts), KILL)


def _parts(scene: Scene) -> list[int]:
    """What the command has started, and of a sweep all that its jobs have."""
    parts = []
    for pid in scene.session.members():
        with contextlib.suppress(OSError):  # it has ended since
            if pid != scene.session.pid and (scene.case.module == "sweep" or parent_of(pid) == scene.session.pid):
                parts.append(pid)
    return parts


def stop_for(scene: Scene) -> None:
    """SIGSTOP of all processes, and SIGCONT some seconds later: a minute in one of ten."""
    seconds = 60 if scene.draw.random() < 0.1 else scene.draw.uniform(1, 8)
    members = scene.session.members()
    for pid in members:
        send(pid, signal.SIGSTOP)
    scene.session.sleep(seconds)
    for pid in members:
        send(pid, signal.SIGCONT)
    scene.notes.append(f"for {seconds:.0f} s")


def fill(scene: Scene) -> None:
    """Fill the small file system but for some bytes."""
    room = scene.draw.randrange(300_000)
    free = os.statvfs(scene.session.cwd)
    ballast = scene.session.cwd / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_bsize - room))
    scene.repairs.append(lambda: ballast.unlink(missing_ok=True))
    scene.notes.append(f"{room} bytes free")


def fill_inodes(scene: Scene) -> None:
    """Leave room for a few new files alone."""
    room, ballast = scene.draw.randrange(12), scene.session.cwd / "ballast"
    with contextlib.suppress(OSError):
        ballast.mkdir()
        for i in range(os.statvfs(scene.session.cwd).f_favail - room):
            (ballast / str(i)).touch()
    scene.repairs.append(lambda: shutil.rmtree(ballast, ignore_errors=True))
    scene.notes.append(f"{room} files free")


def limit(which: int, of: Callable[[Scene, int], int]) -> Callable[[Scene], None]:
    """Lower a limit of all processes of the command, as `ulimit` or a job system does."""

    def strike(scene: Scene) -> None:
        for pid in scene.session.members():
            with contextlib.suppress(OSError):
                value = of(scene, pid)
                resource.prlimit(pid, which, (value, value))
                scene.notes.append(f"{value:,} bytes")

    return strike


def _memory(scene: Scene, pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE") + scene.draw.randrange(100_000_000)


def forbid(scene: Scene) -> None:
    """Make the folders that it writes to such that nobody may, not even root."""
    place = scene.folder if scene.folder.is_dir() else scene.session.cwd
    folders = [str(place), *(str(path) for path in place.rglob("*") if path.is_dir())]
    scene.repairs.append(lambda: subprocess.run(["chattr", "-i", *folders], check=False, stderr=subprocess.DEVNULL))
    subprocess.run(["chattr", "+i", *folders], check=False, stderr=subprocess.DEVNULL)


def newest_checkpoint(folder: Path) -> Path | None:
    """The file that holds the newest step, or one of its files."""
    steps = sorted(folder.rglob("step=*.ckpt"), key=lambda path: (path.name, str(path)))
    return steps[-1] if steps else None


def damage(how: str) -> Callable[[Scene], None]:
    """Damage what was saved last: flip a bit of it, or cut it."""

    def after(scene: Scene) -> None:
        target = newest_checkpoint(scene.folder)
        if target is not None and target.is_dir():
            target = scene.draw.choice(sorted(path for path in target.rglob("*") if path.is_file()))
        if target is None and (written := _written(scene)):
            target = scene.draw.choice(written)
        if target is None or not (size := target.stat().st_size):
            scene.notes.append("there was nothing")
            return
        place, content = scene.draw.randrange(size), bytearray(target.read_bytes())
        if how == "flip":
            content[place] ^= 1 << scene.draw.randrange(8)
        else:
            del content[place:]
        target.write_bytes(content)
        scene.notes.append(f"byte {place} of {target.relative_to(scene.folder)}")

    return after


def _written(scene: Scene) -> list[Path]:
    """Whole parts of a result that is not finished: samples, latents."""
    return sorted([*scene.folder.rglob("*.safetensors"), *scene.folder.glob("parts/*")])


def cut_table(scene: Scene) -> None:
    """Cut the last line of metrics.csv."""
    tables = sorted(scene.folder.rglob("metrics.csv"))
    if not tables:
        scene.notes.append("there was none")
        return
    content = tables[-1].read_bytes()
    last = len(content) - (content.rstrip(b"\n").rfind(b"\n") + 1)
    cut = scene.draw.randrange(1, max(2, last))
    tables[-1].write_bytes(content[:-cut])
    scene.notes.append(f"{cut} bytes")


def stale_lock(scene: Scene) -> None:
    """The locks of a process on a host that has died."""
    scene.folder.mkdir(exist_ok=True)
    holder = {"pid": 4242, "host": "node7", "command": "train", "since": "2026-01-01 00:00:00+00:00", "job": [""] * 5}
    (scene.folder / ".lock").touch()
    (scene.folder / ".lock.json").write_text(json.dumps(holder))


def from_the_future(scene: Scene) -> None:
    """All files are a day younger than now, as after the clock was set back."""
    for path in [scene.folder, *scene.folder.rglob("*")]:
        if path.exists():
            os.utime(path, (path.stat().st_atime + 86400, path.stat().st_mtime + 86400))


def _pictures(scene: Scene) -> list[Path]:
    assert scene.shared is not None
    return sorted(path for path in scene.shared.rglob("*") if path.suffix in (".png", ".safetensors"))


def _restored(scene: Scene) -> None:
    """Put the inputs back, with their times, from the copy beside them."""
    assert scene.shared is not None
    shutil.rmtree(scene.shared, ignore_errors=True)
    shutil.copytree(scene.shared.with_name(f"{scene.shared.name}.pristine"), scene.shared)


def move_data(scene: Scene) -> None:
    """The data set is not where it was any more."""
    assert scene.shared is not None
    shutil.rmtree(scene.shared)
    scene.repairs.append(lambda: _restored(scene))


def change_data(scene: Scene) -> None:
    """A file of the data set is gone."""
    scene.draw.choice(_pictures(scene)).unlink()
    scene.repairs.append(lambda: _restored(scene))


def spoil_data(scene: Scene) -> None:
    """A file of the data set cannot be read any more: its second half is missing."""
    path = scene.draw.choice(_pictures(scene))
    content = path.read_bytes()
    path.unlink()  # a file that is mapped elsewhere must not shrink: a new one takes its name
    path.write_bytes(content[: len(content) // 2])
    scene.repairs.append(lambda: _restored(scene))


def second_command(scene: Scene) -> None:
    """The same command once more, in the same folder."""
    lines = [scene.case.line(scene.inputs, scene.folder.name), scene.case.again(scene.inputs, scene.folder)]
    scene.second = scene.start(scene.draw.choice(lines), "second")


@cache
def is_root() -> bool:
    """Whether small file systems can be mounted and folders be made immutable here."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mount", "umount", "chattr"))):
        return False
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["chattr", "+i", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["chattr", "-i", folder], check=False)
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True, check=False).returncode:
            return False
        subprocess.run(["umount", folder], check=False)
    return True


def _root(case: Case) -> bool:
    return is_root()


def _saves(case: Case) -> bool:
    return case.trains


def _has(what: str) -> Callable[[Case], bool]:
    return lambda case: case.has == what


def _reads(case: Case) -> bool:
    return bool(case.needs)


#: of a file, in bytes, that a limit may have: more than what a command prints, which is a file here, too
SIZES = (20_000, 250_000)
#: how C and C++ end a process that gets no memory, whatever Python would say: abort, and the loader's exit code
ABORTED = (-6, 127)
#: how a command ends on a disk that cannot be written, or without what it needs
REFUSED = (2,)
NOTHING: Callable[[Scene], None] = lambda scene: None  # noqa: E731

INJURIES = (
    Injury("SIGKILL", to_main(KILL), (-9,), 5, kills=True),
    Injury("SIGKILL of all its processes", to_group(KILL), (-9,), 2, kills=True),
    Injury("SIGKILL, and of what goes on", to_main(KILL), (-9,), 2, kills=True, again=True),
    Injury("SIGKILL of a worker", kill_part, (1, 2), 3, _has("workers"), kills=True),
    Injury("SIGKILL of a rank or a job", kill_part, (1,), 3, _has("ranks"), kills=True),
    Injury("SIGTERM", to_main(TERM), stopped(TERM), 1.5),
    Injury("SIGINT", to_group(INT), stopped(INT), 1.5),
    Injury("SIGHUP", to_group(HUP), stopped(HUP), 1),
    Injury("SIGTERM twice", to_main(TERM, TERM), stopped(TERM), 1),
    Injury("SIGINT twice", to_group(INT, INT), stopped(INT), 1),
    Injury("SIGTERM, then SIGKILL", to_main(TERM, KILL, apart=1.0), (*stopped(TERM), -9), 1.5, kills=True),
    Injury("SIGSTOP, later SIGCONT", stop_for, (), 1),
    Injury("disk full", fill, REFUSED, 1.5, _root, disk="size=48m"),
    Injury("no inodes", fill_inodes, REFUSED, 1, _root, disk="size=48m,nr_inodes=200"),
    Injury("limit of file sizes", limit(resource.RLIMIT_FSIZE, lambda s, _: s.draw.randrange(*SIZES)), REFUSED, 1),
    Injury("folder read-only", forbid, REFUSED, 1, _root),
    Injury("limit of memory", limit(resource.RLIMIT_AS, _memory), (1, 2, *ABORTED), 1),
    Injury("slow fsync, SIGKILL", to_main(KILL), (-9,), 1, kills=True,
           patched=lambda draw, _: f"slow fsync:{draw.uniform(0.02, 0.3):.3f}"),
    Injury("clock set back", NOTHING, (), 0.5,
           patched=lambda draw, length: f"clock set back:{draw.uniform(0, length):.2f}"),
    Injury("SIGKILL, files of the future", to_main(KILL), (-9,), 0.5, after=from_the_future, kills=True),
    Injury("SIGKILL, a bit flipped", to_main(KILL), (-9,), 2, _saves, after=damage("flip"), loses=True, kills=True),
    Injury("SIGKILL, checkpoint cut", to_main(KILL), (-9,), 1, _saves, after=damage("cut"), loses=True, kills=True),
    Injury("SIGKILL, table cut", to_main(KILL), (-9,), 1, _saves, after=cut_table, kills=True),
    Injury("SIGKILL, stale lock", to_main(KILL), (-9,), 1, after=stale_lock, kills=True),
    Injury("data moved", move_data, (2,), 1, _reads),
    Injury("data changed", change_data, (2,), 1, _reads),
    Injury("data unreadable", spoil_data, (2,), 1, _reads),
    Injury("two commands", second_command, (2,), 1.5),
)  # fmt: skip
