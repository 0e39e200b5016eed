"""What the tests start by `tests.processes` is what `python -m` and `python -c` would have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="every process is a new interpreter on this system")

TELL = """
import os, signal, subprocess, sys
handlers = [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)]
name = __spec__ and __spec__.name
print(sys.argv, sys.orig_argv, sys.path, name, __name__, sys.modules['__main__'].__dict__ is globals(), os.getcwd())
print(handlers, sorted(os.environ.items()), os.getppid(), os.getpgid(0) == os.getpid(), sys.stdin.read())
print([m for m in sys.modules if m.partition('.')[0] == 'neural_rdm' and m != 'neural_rdm_torchvision'], flush=True)
rank = "import os, sys; print(sys.argv, os.environ['RANK'], os.getppid() == int(sys.argv[1])); sys.exit(4)"
child = subprocess.Popen([sys.executable, "-c", rank, str(os.getpid())], env=os.environ | {"RANK": "1"})
print(child.wait(), 'torch' in sys.modules)
"""


def told(start: Any, line: list[str], cwd: Path, **options: Any) -> str:
    """What a process says of itself, without its number and whether torch is there."""
    pipe = subprocess.PIPE
    with start(line, cwd=cwd, stdin=pipe, stdout=pipe, text=True, **options) as process:
        said, _ = process.communicate("typed")
    assert process.returncode == 0
    said, _, torch = said.replace(f"'{process.pid}'", "'pid'").strip().rpartition(" ")
    assert torch == str(start is processes.Popen)
    return said


@pytest.mark.parametrize("option", ["-m", "-c"])
def test_a_copy_is_what_a_new_interpreter_is(option: str, tmp_path: Path) -> None:
    (tmp_path / "tell.py").write_text(TELL)
    line = [sys.executable, option, "tell" if option == "-m" else TELL, "one", "two words"]
    more = {
        "start_new_session": option == "-m",
        "env": {**os.environ, "PYTHONPATH": "/first:/second", "MASTER_PORT": "7"},
    }
    assert told(processes.Popen, line, tmp_path, **more) == told(subprocess.Popen, line, tmp_path, **more)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a message')", 1, "a message"),
        ("raise ValueError('mine')", 1, "ValueError: mine"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("atexit.register(lambda: print('goodbye', file=sys.stderr)); sys.exit(-1)", 255, "goodbye"),
        ("sys.stdout = open('/dev/full', 'w'); print('lost')", 120, "OSError: [Errno 28] No space left on device"),
        ("threading.Thread(target=lambda: (time.sleep(0.1), os._exit(5))).start()", 5, ""),
    ],
)
def test_it_ends_as_one(end: str, code: int, said: str) -> None:
    line = [sys.executable, "-c", f"import atexit, os, signal, sys, threading, time\n{end}"]
    for done in (
        processes.run(line, capture_output=True, text=True),
        subprocess.run(line, capture_output=True, text=True),
    ):
        assert done.returncode == code
        assert (done.stderr.strip().splitlines() or [""])[-1] == said


def test_what_cannot_be_imitated_is_started_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('torch' in sys.modules)"
    for line in ([sys.executable, "-s", "-c", code], [str(Path(sys.executable).resolve()), "-c", code]):
        assert processes.run(line, capture_output=True, text=True).stdout == "False\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert processes.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
