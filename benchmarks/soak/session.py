"""A command in a session of its own: its output, its end, and the processes that are still there afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

#: what scikit-learn sets when it is imported, and one thread: a process that differs in it is no copy of the server's
os.environ |= {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE", "OMP_NUM_THREADS": "1"}

from tests.processes import Popen

ROOT = Path(__file__).resolve().parents[2]
#: seconds without a line after which a command hangs
SILENT = 300.0
#: seconds that the last process of a command has to notice that the others are gone
LINGER = 30.0


class Session:
    """A command that runs in `cwd`. What it prints goes to a file, which is not in `cwd`.

    Args:
        through: the name of a patch of `patched`, under which it runs.
        ranks: how many of it torchrun starts; 0 where it is started alone.
    """

    def __init__(self, module: str, args: list[str], cwd: Path, log: Path, through: str = "", ranks: int = 0) -> None:
        self.cwd, self.log, self.of_ranks = cwd, log, log.with_suffix(".ranks")
        begins = ["benchmarks.soak.patched", through, f"neural_rdm.{module}"] if through else [f"neural_rdm.{module}"]
        if ranks:
            own = ["--redirects=3", f"--log-dir={self.of_ranks}"]
            begins = ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *own, "-m", *begins]
        paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
        temporary = log.parent / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths, "TMPDIR": str(temporary)}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # of nohup, which a command would stay deaf to as well
            signal.signal(signal.SIGHUP, lambda *_: None)
        with log.open("w") as output:
            self.process = Popen(
                [sys.executable, "-m", *begins, *args],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self.process.pid

    def wait(self) -> int | None:
        """Its exit code; None where it has hung, and is killed."""
        size, since = -1, time.monotonic()
        while self.process.poll() is None:
            if (now := sum(path.stat().st_size for path in self._logs())) != size:
                size, since = now, time.monotonic()
            if time.monotonic() - since > SILENT:
                self.kill()
                return None
            time.sleep(0.02)
        return self.code

    @property
    def code(self) -> int | None:
        """Its exit code: of those that torchrun has started, of the first that failed, as torchrun says."""
        code = self.process.returncode
        if code == 1 and self.of_ranks.is_dir():
            said = self.log.read_text(errors="replace")
            if found := re.search(r"got signal: (\d+)", said):
                return 128 + int(found[1])
            if found := re.findall(r"exitcode +: (-?\d+)", said):
                return int(found[-1])
        return code

    def sleep(self, seconds: float) -> bool:
        """Wait; returns whether it still runs then."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, seconds))
        return self.process.poll() is None

    def said(self) -> str:
        """All that it has printed; without what torchrun has."""
        return "".join(self.texts())

    def texts(self) -> list[str]:
        """The same, of each process that torchrun has started on its own."""
        return [path.read_text(errors="replace") for path in self._logs()]

    def _logs(self) -> list[Path]:
        return sorted(self.of_ranks.rglob("std*.log")) if self.of_ranks.is_dir() else [self.log]

    def members(self) -> list[int]:
        """Its processes: all that work in its folder, jobs of a sweep with them, which have sessions of their own."""
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{entry}/cwd") == str(self.cwd) and _state(int(entry)) != "Z":
                        found.append(int(entry))
        return sorted(found)

    def left(self) -> list[int]:
        """The processes that are still there some time after it has ended."""
        end = time.monotonic() + LINGER
        while (members := self.members()) and time.monotonic() < end:
            time.sleep(0.1)
        return members

    def kill(self) -> None:
        """End whatever is left of it."""
        for pid in self.members():
            with contextlib.suppress(OSError):
                os.kill(pid, 9)
        self.process.wait()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def parent_of(pid: int) -> int:
    """The process that has started another one."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
