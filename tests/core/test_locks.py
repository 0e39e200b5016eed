"""A folder's lock: one holder, free when that is killed, and a message that names it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from neural_rdm.core import locks
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.locks import check_job, held

#: holds the lock, with a forked child as a loader is one, until it is killed
HOLDER = """
import os, sys, time
from pathlib import Path
if {flockless}:
    import errno, fcntl
    def flock(*_): raise OSError(errno.ENOLCK, "no locks available")
    fcntl.flock = flock
from neural_rdm.core.locks import held
with held(Path(sys.argv[1]), "train"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.mark.parametrize("flockless", [False, True])
def test_a_killed_holder_leaves_it_free_although_its_loaders_live(
    flockless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if flockless:
        monkeypatch.setattr(fcntl, "flock", no_locks)
    code = HOLDER.format(flockless=flockless)
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    loader = int(process.stdout.readline())
    try:
        began = time.monotonic()
        with pytest.raises(ConfigError) as refusal, held(tmp_path, "train"):
            pass
        assert time.monotonic() - began < 5
        who = rf"process {process.pid} on host {socket.gethostname()} (train, since 20"
        assert str(refusal.value).startswith(f"{tmp_path} is in use by {who}")
        assert str(refusal.value).endswith("; wait for it or stop it")
        assert (tmp_path / locks.HOLDER).is_file()  # the attempt has taken nothing away
        process.kill()
        process.wait()
        os.kill(loader, 0)  # it still lives
        with held(tmp_path, "train"):
            pass
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        os.kill(loader, signal.SIGKILL)


def test_a_holder_on_another_host_that_no_longer_touches_its_file_is_waited_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import filelock

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(locks, "LEASE", 0.9)
    lease = filelock.SoftFileLease(tmp_path / locks.LEASED, lease_duration=0.9, heartbeat_interval=0.3)
    lease.acquire()
    record = (tmp_path / locks.LEASED).read_text().replace(f"host={socket.gethostname()}", "host=elsewhere")
    lease.release()
    (tmp_path / locks.LEASED).write_text(record)
    (tmp_path / locks.HOLDER).write_text('{"pid": 1, "host": "elsewhere", "command": "train", "since": "now"}')
    with held(tmp_path, "train"):
        assert "whether process 1 on host elsewhere (train, since now) still uses" in capsys.readouterr().err


def test_other_ranks_know_their_own_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "29500")
    with held(tmp_path, "sample"):
        check_job(tmp_path)
        monkeypatch.setenv("MASTER_PORT", "29501")
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} on host"):
            check_job(tmp_path)
    check_job(tmp_path)


def test_links_in_a_foreign_folder_lead_to_nothing_that_is_written(tmp_path: Path) -> None:
    private = tmp_path / "private"
    private.write_text("mine")
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in (locks.LOCK, locks.LEASED, locks.HOLDER):
        (folder / name).symlink_to(private)
    with held(folder, "train"):
        assert private.read_text() == "mine"
    assert private.read_text() == "mine"
    assert list(folder.iterdir()) == []
