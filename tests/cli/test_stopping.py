"""How a signal or a disk ends a command: the exit code, and one sentence that says what is kept and how to go on."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # commands that find it loaded do not say that they load it
from omegaconf import OmegaConf

from neural_rdm.cli import app
from neural_rdm.cli.stopping import Work, fail, stoppable, told
from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.grammar import as_typed
from neural_rdm.config.provenance import write_config
from neural_rdm.core.errors import UserError
from neural_rdm.core.files import write_atomically
from neural_rdm.core.ranks import STARTED_BY
from tests.helpers import ROOT

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def test_what_a_stranger_wrote_does_not_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fail(UserError("unknown configuration key \x1b]0;title\x07.\nPass another"))
    app.print_paths([Path("samples\x1b[2J.png")])
    said = capsys.readouterr()
    assert said.err == "error: unknown configuration key \\x1b]0;title\\x07.\nPass another\n"
    assert said.out == "  samples\\x1b[2J.png\n"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_stops_any_command_with_one_sentence(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, folder = signal.getsignal(number), tmp_path / "out"
    (tmp_path / "config.yaml").touch()  # what `runs=` takes for a run

    def job(cfg: Any, given: Path) -> int:
        assert given == folder
        if (child := os.fork()) == 0:  # a process that was forked leaves it to its parent
            os.kill(os.getpid(), number)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        os.kill(os.getpid(), number)
        time.sleep(5)
        raise AssertionError("the signal was lost")

    monkeypatch.setattr("sys.argv", ["report", f"runs={tmp_path}", f"hydra.run.dir={folder}"])
    with pytest.raises(SystemExit) as ended:
        app.main("report", job)
    assert ended.value.code == code
    said = capsys.readouterr()
    assert said.out.strip() == f"stopped by {number.name}. Nothing was written; give the same command again."
    assert said.err == ""
    assert not folder.exists()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("command", "files", "told"),
    [
        ("train", (), "Nothing was written; give the same command again."),
        ("train", ("provenance.json", "output.log"), "Nothing is saved yet; give the same command again."),
        ("train", ("config.yaml",), "No step is saved yet; continue with resume=run"),
        (
            "train",
            ("config.yaml", "checkpoints/step=000000040.ckpt", "checkpoints/step=000000050.ckpt"),
            "Saved last was step 50; continue with resume=run",
        ),
        ("sample", ("parts/0.npy",), "the same command with hydra.run.dir=run goes on with them."),
        ("encode", ("train/0.safetensors",), "the same command with hydra.run.dir=run goes on with them."),
        (
            "sweep",
            ("sweep.json",),
            "Kept are the jobs finished so far; the same command with hydra.sweep.dir=run goes on with them.",
        ),
        ("evaluate", ("report/metrics.md",), "give the same command again with another hydra.run.dir to make it all."),
    ],
)
def test_what_is_kept_is_said(
    command: str, files: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / "run" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / file).touch()
    assert Work(command, tmp_path / "run").how_to_go_on().endswith(told)


@pytest.mark.parametrize("name", ["lr=0.1", "two words", "a,b", "näher", "it's", "2024_01_15", "(1)"])
def test_the_advice_can_be_typed_as_it_stands(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, key in (("train", "resume"), ("sample", "hydra.run.dir")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.yaml").touch()
        said = Work(command, tmp_path / name).how_to_go_on().partition(" with ")[2].removesuffix(" goes on with them.")
        (argument,) = shlex.split(said)
        (parsed,) = parse(as_typed([argument], command))
        assert (parsed.key_or_group, parsed.value()) == (key, name)


def test_a_run_that_another_process_has_finished_meanwhile_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: rank 0 went on, the rank that it started found the run finished and left, and rank 0
    waited for it.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    composed = compose_config("train", ["trainer.max_steps=5"])
    OmegaConf.resolve(composed.cfg)
    composed.cfg.choices = composed.choices
    write_config(tmp_path / "run", composed.cfg)
    finished = tmp_path / "run" / "finished.json"

    @contextlib.contextmanager
    def opened(folder: Path, *_: Any, **__: Any) -> Iterator[None]:
        finished.write_text('{"global_step": 5, "files": []}', encoding="utf-8")  # by who had it before
        yield

    def job(cfg: Any, folder: Path) -> int:
        raise AssertionError("it was gone on with")

    monkeypatch.setattr(app, "opened", opened)
    monkeypatch.setattr("sys.argv", ["train", "resume=run"])
    with pytest.raises(SystemExit) as ended:
        app.main("train", job)
    assert ended.value.code == 0
    assert "run is finished (5 steps); nothing to do" in capsys.readouterr().out
    finished.unlink()
    monkeypatch.setenv(STARTED_BY, "1")  # one that rank 0 has started does as that does
    with pytest.raises(AssertionError, match="gone on with"):
        app.main("train", job)


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_library_that_fails_while_a_signal_passes_is_no_error_of_its_own(
    swallowed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: a second Ctrl-C met Lightning's tidying up, whose error was told with a traceback;
    SIGHUP met torch importing numpy, which goes on without it, until something asks for what was not imported.
    """
    work = Work("report")

    def tidies_up() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException as stopped:
            stopped.__context__ = None
            if not swallowed:
                raise RuntimeError("Please call `iter(combined_loader)` first.") from None
        raise AttributeError("module 'numpy' has no attribute 'subtract'")

    with pytest.raises(SystemExit) as ended, stoppable(work), told(work):
        tidies_up()
    said = capsys.readouterr()
    assert ended.value.code == 143
    assert (said.out.strip(), said.err) == ("stopped by SIGTERM. Nothing was written; give the same command again.", "")
    with pytest.raises(ZeroDivisionError), told(work):  # of no signal
        1 / 0  # noqa: B018


def test_nohup_stays_deaf_and_a_second_signal_ends_all_at_once() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable(Work("report")):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    script = (
        "import os, signal, time\nfrom neural_rdm.cli.stopping import Work, stoppable\n"
        "with stoppable(Work('report')):\n"
        "    try: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)\n"
        "    finally: os.kill(os.getpid(), signal.SIGINT); time.sleep(5)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_closed_terminal_is_no_error(tmp_path: Path) -> None:
    """Nothing can be written to it any more, and yet the work is tidied up and the exit code is that of SIGHUP."""
    script = (
        "import sys, time; from pathlib import Path; from neural_rdm.cli.stopping import Work, stoppable\n"
        "with stoppable(Work('report')):\n"
        "    try: print('ready', flush=True); time.sleep(60)\n"
        "    finally: print('tidied up', flush=True); Path(sys.argv[1]).touch()"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "tidy")],
        cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    said = b""
    while b"\n" not in said:  # a line may come in two parts; in between the process still writes to its terminal
        said += os.read(master, 100)
    assert b"ready" in said
    os.close(master)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 129
    assert (tmp_path / "tidy").exists()


@pytest.mark.parametrize(
    ("number", "resumed", "told"),
    [
        (errno.ENOSPC, True, "the disk is full (No space left on device). Free some disk space there. Saved last was"),
        (errno.EDQUOT, True, "your quota is used up"),
        (errno.EFBIG, True, "the file is too large"),
        (errno.EROFS, True, "step 4; copy run to where you may write and continue with resume=COPY"),
        (errno.EROFS, False, "the file system is read-only (Read-only file system). Another folder is needed. Nothing"),
    ],
)
def test_a_disk_that_cannot_be_written_is_told_with_advice_that_can_be_followed(
    number: int,
    resumed: bool,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    def job(cfg: Any, folder: Path) -> int:
        def write(file: Any) -> None:
            raise OSError(number, os.strerror(number))

        if resumed:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "step=000000004.ckpt").touch()
        write_atomically(folder / "metrics.csv", write)
        return 0

    monkeypatch.setattr("sys.argv", ["train", "hydra.run.dir=run"])
    with pytest.raises(SystemExit) as ended:
        app.main("train", job)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot write ")
    assert told in said
    assert ("hydra.run.dir" in said) == (not resumed)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("std::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 1 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total of 79.15 GiB"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_that_runs_out_is_told_with_what_is_kept(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: a report under a limit of memory ended with a traceback."""
    monkeypatch.chdir(tmp_path)

    def job(cfg: Any, folder: Path) -> int:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "step=000000004.ckpt").touch()
        raise error

    monkeypatch.setattr("sys.argv", ["train", "hydra.run.dir=run"])
    with pytest.raises(SystemExit) as ended:
        app.main("train", job)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: memory ran out (")
    assert "Saved last was step 4; continue with resume=run" in said
    assert "Traceback" not in said


def test_memory_that_is_not_enough_to_look_into_the_folder_is_told_without_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: under a limit of memory a folder could not be listed either."""

    def iterdir(path: Path) -> Any:
        raise OSError(errno.ENOMEM, "Cannot allocate memory", str(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SystemExit) as ended, told(Work("train", tmp_path)):
        raise MemoryError
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: memory ran out (MemoryError). Free some")


def test_a_folder_that_cannot_be_made_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: it is Hydra that makes it."""
    monkeypatch.chdir(tmp_path)
    make = Path.mkdir

    def mkdir(path: Path, *args: Any, **options: Any) -> None:
        if path.name == "run":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr("sys.argv", ["train", "hydra.run.dir=run"])
    with pytest.raises(SystemExit) as ended:
        app.main("train", lambda cfg, folder: 0)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err == (
        "error: cannot write run: the disk is full (No space left on device). Free some disk space there. Nothing was "
        "written; give the same command again.\n"
    )


def test_a_sentence_is_printed_without_compiling_a_pattern(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by `benchmarks soak`: under a limit of memory there was none left for that."""

    def compile_(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(re, "_compile", compile_)
    with pytest.raises(SystemExit):
        fail(UserError("memory ran out\x07"))
    assert capsys.readouterr().err == "error: memory ran out\\x07\n"
