"""Files are whole or not there, and reading one never runs its code."""

from __future__ import annotations

import errno
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from neural_rdm.core.errors import CheckpointError, UserError, WriteError
from neural_rdm.core.files import (
    as_user_error,
    link_atomically,
    load_tensors,
    new_folder,
    remove,
    save_tensors,
    sweep,
    write_atomically,
    write_text,
)
from tests import processes

CONTENT: dict[str, Any] = {
    "weights": torch.arange(300.0),
    "step": 7,
    "names": ["a", "b"],
    "nested": {"x": torch.ones(2, dtype=torch.bfloat16)},
}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def raises_after_some_bytes(error: BaseException) -> Any:
    def write(file: BinaryIO) -> None:
        file.write(b"half of the new fi")
        raise error

    return write


def test_a_file_and_its_folders_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "text.txt", "größer")
    assert (tmp_path / "a" / "b" / "text.txt").read_bytes() == "größer".encode()
    assert names(tmp_path / "a" / "b") == ["text.txt"]


def test_a_file_is_replaced_never_overwritten(tmp_path: Path) -> None:
    """Whoever has the old file open goes on reading the old file."""
    write_text(tmp_path / "file", "old")
    with (tmp_path / "file").open() as reader:
        write_text(tmp_path / "file", "new")
        assert reader.read() == "old"
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    "error", [ValueError("bug"), KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__
)
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", raises_after_some_bytes(error))
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, r"the disk is full \(No space left on device\). Free some disk space"),
        (errno.EDQUOT, r"your quota is used up \(.*\). Free some of your disk space"),
        (errno.EFBIG, r"the file is too large \(File too large\). Raise the limit"),
        (errno.EROFS, r"the file system is read-only \(.*\). Another folder is needed"),
        (errno.EACCES, r"you may not write there \(Permission denied\). Another folder"),
        (errno.EIO, r"Input/output error\.$"),
    ],
)
def test_a_write_that_fails_is_a_message_and_leaves_the_old_file(tmp_path: Path, number: int, told: str) -> None:
    write_text(tmp_path / "file", "old")
    with pytest.raises(WriteError, match=rf"^cannot write .*file: {told}"):
        write_atomically(tmp_path / "file", raises_after_some_bytes(OSError(number, os.strerror(number))))
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["torch", "numpy", "picture"])
def test_no_library_hides_why_a_write_failed(tmp_path: Path, kind: str) -> None:
    """torch's zip writer speaks of `unexpected pos`, NumPy and Pillow of numbers of bytes. Here the limit is real."""
    script = (
        "import resource, signal, sys, torch, numpy as np; from PIL import Image\n"
        "from neural_rdm.core.files import save_tensors, write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)\n"
        "write = {'torch': lambda: save_tensors(sys.argv[2], {'w': torch.zeros(100000)}),\n"
        "    'numpy': lambda: write_atomically(sys.argv[2], lambda f: np.save(f, noise)),\n"
        "    'picture': lambda: write_atomically(sys.argv[2], lambda f: Image.fromarray(noise).save(f, 'PNG'))}\n"
        "try: write[sys.argv[1]]()\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    command = [sys.executable, "-c", script, kind, str(tmp_path / "file")]
    done = processes.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"WriteError cannot write {tmp_path / 'file'}: the file is too large"), done.stdout
    assert names(tmp_path) == []


def test_containers_are_written_as_plain_lists_and_dicts(tmp_path: Path) -> None:
    """So that a resumed run's file is an uninjured one's to the bit."""
    made = {"betas": (0.9, 0.999), "state": OrderedDict(a=torch.ones(2)), "nested": [({"x": (1,)},)]}
    save_tensors(tmp_path / "a.ckpt", made)
    loaded = load_tensors(tmp_path / "a.ckpt")
    assert (type(loaded["betas"]), type(loaded["state"])) == (list, dict)
    assert loaded["nested"] == [[{"x": [1]}]]
    save_tensors(tmp_path / "b.ckpt", {**loaded, "state": {"a": torch.ones(2)}})
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_equal_strings_are_written_as_the_same_bytes_whichever_objects_they_are(tmp_path: Path) -> None:
    """A resumed run has some of them from a file, where an uninjured one has those of a library's source."""
    read, rule = "".join(["st", "ep"]), "".join(["ad", "am"])
    save_tensors(tmp_path / "a.ckpt", {"step": "adam", "state": {"step": [1], "rule": "adam"}})
    save_tensors(tmp_path / "b.ckpt", {"step": "adam", "state": {read: [1], "rule": rule}})
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_a_folder_that_cannot_be_made_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match="cannot write"):
        write_text(tmp_path / "file" / "below", "text")


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "old")
    code = (
        "import os, signal, sys; from neural_rdm.core.files import write_atomically\n"
        "def write(f): f.write(b'new'); f.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(sys.argv[1], write)"
    )
    assert processes.run([sys.executable, "-c", code, str(tmp_path / "file")]).returncode == -9
    assert (tmp_path / "file").read_text() == "old"


def test_saved_tensors_come_back(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.ckpt", CONTENT)
    for verify in (False, True):
        loaded = load_tensors(tmp_path / "a.ckpt", verify)
        assert torch.equal(loaded["weights"], CONTENT["weights"])
        assert torch.equal(loaded["nested"]["x"], CONTENT["nested"]["x"])
        assert (loaded["step"], loaded["names"]) == (7, ["a", "b"])
    assert names(tmp_path) == ["a.ckpt"]


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for verify in (False, True):
        with pytest.raises(CheckpointError, match=r"no such checkpoint: .*gone\.ckpt"):
            load_tensors(tmp_path / "gone.ckpt", verify)
    with pytest.raises(CheckpointError, match=r"no such checkpoint: .*rest\.pt"):  # a folder is one in shards
        load_tensors(tmp_path)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.9, -1])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, kept: float) -> None:
    save_tensors(tmp_path / "a.ckpt", CONTENT)
    data = (tmp_path / "a.ckpt").read_bytes()
    (tmp_path / "a.ckpt").write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    for verify in (False, True):
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            load_tensors(tmp_path / "a.ckpt", verify)


def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path) -> None:
    """Every 7th byte of the file, one bit each: refused, or (padding, a time stamp) read as it was written."""
    save_tensors(tmp_path / "a.ckpt", CONTENT)
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    where = data.index(CONTENT["weights"].numpy().tobytes()[:64])
    refused = 0
    for at in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        (tmp_path / "b.ckpt").write_bytes(flipped)
        try:
            loaded = load_tensors(tmp_path / "b.ckpt", verify=True)
        except CheckpointError:
            refused += 1
        else:
            assert not where <= at < where + 1200, "a changed weight was not noticed"
            assert torch.equal(loaded["weights"], CONTENT["weights"])
            assert (loaded["step"], loaded["names"]) == (7, ["a", "b"])
    assert refused >= 1200 // 7


class Malicious:
    """Unpickling this makes a file."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.evidence),)


@pytest.mark.parametrize("layout", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_never_executed(tmp_path: Path, layout: str) -> None:
    path, evidence = tmp_path / "a.ckpt", tmp_path / "executed"
    content = {"weights": torch.ones(2), "extra": Malicious(evidence)}
    if layout == "bare":
        path.write_bytes(pickle.dumps(content["extra"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    assert b"mkdir" in path.read_bytes()
    for verify in (False, True):
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            load_tensors(path, verify)
    assert not evidence.exists()


def test_a_link_is_a_second_name_and_replaces_the_old_one(tmp_path: Path) -> None:
    for step in (1, 2):
        write_text(tmp_path / f"step{step}", f"content {step}")
        link_atomically(tmp_path / f"step{step}", tmp_path / "last")
        assert (tmp_path / "last").read_text() == f"content {step}"
    assert (tmp_path / "last").samefile(tmp_path / "step2")
    assert (tmp_path / "step1").read_text() == "content 1"
    assert names(tmp_path) == ["last", "step1", "step2"]


def test_linking_twice_leaves_no_temporary_name(tmp_path: Path) -> None:
    """rename(2) does nothing when both names are the same file already."""
    write_text(tmp_path / "step1", "content")
    for _ in range(2):
        link_atomically(tmp_path / "step1", tmp_path / "last")
    assert names(tmp_path) == ["last", "step1"]


def test_a_file_system_without_links_gets_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "step1").write_bytes(bytes(range(256)) * 1000)
    link_atomically(tmp_path / "step1", tmp_path / "last")
    assert (tmp_path / "last").read_bytes() == (tmp_path / "step1").read_bytes()
    assert not (tmp_path / "last").samefile(tmp_path / "step1")
    assert names(tmp_path) == ["last", "step1"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(WriteError), new_folder(tmp_path / "step1") as folder:
        write_text(folder / ("x" * 999), "half")
    assert names(tmp_path) == []
    for content in ("old", "new"):
        with new_folder(tmp_path / "step1") as folder:
            assert sweep(tmp_path) == 0  # its writer lives
            write_text(folder / "part", content)
        link_atomically(tmp_path / "step1", tmp_path / "last")
    assert (tmp_path / "last" / "part").read_text() == "new"
    (tmp_path / ".step2.123.tmp").mkdir()  # a killed process has left it
    assert sweep(tmp_path) == 1
    assert names(tmp_path) == ["last", "step1"]
    remove(tmp_path / "step1")
    assert names(tmp_path) == ["last"]
    assert not (tmp_path / "last").exists()


#: writes half of a file, says so, and waits to be killed
HALF = """
import sys, time
from neural_rdm.core.files import write_atomically
def write(file):
    file.write(b"half")
    file.flush()
    print("half", flush=True)
    time.sleep(60)
write_atomically(sys.argv[1], write)
"""


def test_what_a_killed_process_has_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    below = tmp_path / "checkpoints"
    process = processes.Popen(
        [sys.executable, "-c", HALF, str(below / "step=1.ckpt")], stdout=processes.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        (below / ".notes.tmp").touch()  # of somebody else
        assert sweep(tmp_path) == 0
    finally:
        process.kill()
        process.wait()
    assert sweep(tmp_path, deep=False) == 0
    assert sweep(tmp_path) == 1
    assert names(below) == [".notes.tmp"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_pipe_with_the_name_of_a_temporary_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".last.ckpt.7.tmp")
    assert sweep(tmp_path) == 0


def test_a_file_that_is_swept_as_it_begins_is_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its creation and its lock it belongs to nobody."""
    from neural_rdm.core import files

    lock, swept = files._lock, []

    def late(file: BinaryIO, wait: bool) -> bool | None:
        if wait and not swept:
            swept.append(sweep(tmp_path))
        return lock(file, wait)

    monkeypatch.setattr(files, "_lock", late)
    write_text(tmp_path / "file", "text")
    assert swept == [1]
    assert names(tmp_path) == ["file"]


def test_an_attention_kernel_that_torch_lacks_is_a_mistake_and_no_bug() -> None:
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(RuntimeError) as caught, sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        scaled_dot_product_attention(q, q, q)
    assert "pass attention=auto" in str(as_user_error(caught.value))
    assert as_user_error(RuntimeError("another")) is None


@pytest.mark.parametrize("words", ["Resource temporarily unavailable", "could not create a primitive"])
def test_a_library_that_gets_no_memory_is_told_whatever_it_says(words: str) -> None:
    """Found by `benchmarks soak`: gloo and oneDNN say no more than this of it."""
    assert f"memory ran out ({words})" in str(as_user_error(RuntimeError(words)))
    wrapped = RuntimeError("Failed to import diffusers.schedulers because of the following error:")
    wrapped.__cause__ = MemoryError()
    assert "memory ran out (Failed to import" in str(as_user_error(wrapped))
    unsupported = "could not create a primitive descriptor for the softmax forward propagation primitive"
    assert as_user_error(RuntimeError(unsupported)) is None
