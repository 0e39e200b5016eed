"""The index of videos: looked at once, again when a file changes, right for damaged files, proof against decoders."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.locked import locked
from neural_rdm.data.videos import index as video_index
from neural_rdm.data.videos.clips import ClipFiles
from neural_rdm.data.videos.datasets import TaichiHD
from neural_rdm.data.videos.index import index_file, index_videos, probe
from neural_rdm.media.decoders import VideoInfo
from neural_rdm.media.pyav import PyAV
from tests.data.containers import encoded, rewritten
from tests.helpers import ROOT, shared
from tests.media.test_decoders import TAICHI, UCF, installed, made
from tests.processes import Popen


@pytest.fixture
def looks(monkeypatch):
    """Names of the videos that are looked at."""
    seen: list[str] = []
    inner = video_index._probed

    def probed(root, names, *rest):
        seen.extend(names)
        yield from inner(root, names, *rest)

    monkeypatch.setattr(video_index, "_probed", probed)
    return seen


@pytest.fixture
def root(tmp_path):
    """Two real videos, a folder of frames and a text by the name of a video."""
    installed("decord")
    (tmp_path / "a.mp4").symlink_to(shared(TAICHI))
    (tmp_path / "b.avi").symlink_to(shared(UCF))
    (tmp_path / "c.mp4").write_bytes(b"no video\n" * 100)
    (tmp_path / "d").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 6)).save(tmp_path / "d" / f"{i}.png")
    return tmp_path


def paths(root: Path) -> list[str]:
    return [str(root / name) for name in ("a.mp4", "b.avi", "c.mp4", "d")]


def test_videos_are_looked_at_once_and_again_when_they_change(root, looks, index_folder, capsys, monkeypatch):
    monkeypatch.setattr("neural_rdm.core.progress._WORTH_TELLING", 0.0)
    first = index_videos(root, paths(root), "decord", processes=2)
    assert first.frames.tolist() == [458, 164, 0, 3]
    assert list(first.broken) == [2]
    assert first.broken[2].startswith("cannot be decoded (")
    assert sorted(looks) == ["a.mp4", "b.avi", "c.mp4", "d"]
    assert "Looking at videos once" in capsys.readouterr().err
    content = json.loads(index_file(root, "decord").read_text())
    assert index_file(root, "decord").parent == index_folder
    assert content["videos"]["b.avi"][2:] == [164, 25.0, 320, 240]
    assert content["videos"]["d"][2:] == [3, 0.0, 8, 6]
    assert len(content["videos"]["c.mp4"]) == 3
    looks.clear()
    again = index_videos(root, paths(root), "decord")
    assert (again.frames.tolist(), again.broken) == (first.frames.tolist(), first.broken)
    assert looks == []
    assert capsys.readouterr().err == ""

    (root / "c.mp4").write_bytes(shared(TAICHI).read_bytes())
    Image.new("RGB", (8, 6)).save(root / "d" / "3.png")
    found = index_videos(root, paths(root), "decord")
    assert sorted(looks) == ["c.mp4", "d"]
    assert found.frames.tolist() == [458, 164, 458, 4]
    looks.clear()
    os.utime(root / "c.mp4", ns=(1, 1))
    index_videos(root, paths(root)[:3], "decord")
    assert looks == ["c.mp4"]
    looks.clear()
    (root / "c.mp4").unlink()
    assert index_videos(root, paths(root), "decord").broken == {2: "no such file"}
    assert looks == []


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"version": 3, "videos": {"a.mp4": [1]}}', b'{"version": 0, "videos": {}}', b"\xff\xfe\0",
     b'{"version": 3, "videos": {"a.mp4": "abc"}}', b'{"version": 3, "videos": []}'],
)  # fmt: skip
def test_a_damaged_index_is_made_anew(root, looks, damage):
    index_videos(root, paths(root)[:1], "decord")
    file = index_file(root, "decord")
    whole = file.read_bytes()
    file.write_bytes(damage)
    looks.clear()
    assert index_videos(root, paths(root)[:1], "decord").frames.tolist() == [458]
    assert looks == ["a.mp4"]
    assert file.read_bytes() == whole


def test_one_of_several_processes_does_the_work(root, index_folder):
    code = (
        "import sys\nfrom pathlib import Path\nfrom neural_rdm.data.videos import index as video_index\n"
        "inner, video_index.cache_folder = video_index._probed, lambda: Path(sys.argv[1])\n"
        "def probed(root, names, *rest):\n    print('looks at', *names, flush=True)\n"
        "    yield from inner(root, names, *rest)\n"
        "video_index._probed = probed\n"
        "print(video_index.index_videos(Path(sys.argv[2]), sys.argv[3:], 'decord').frames.tolist())\n"
    )
    command = [sys.executable, "-c", code, str(index_folder), str(root), *paths(root)]
    processes = [Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        said = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all("[458, 164, 0, 3]" in lines for lines in said)
    looked = sorted(line for lines in said for line in lines.splitlines() if line.startswith("looks at"))
    assert looked[-1] == "looks at a.mp4 b.avi c.mp4 d"
    assert set(looked[:-1]) <= {"looks at"}  # nothing is left for the others


def test_what_was_found_before_an_interruption_is_kept(root, looks, monkeypatch):
    inner = video_index._probed

    def interrupted(folder, names, *rest):
        yield from inner(folder, names[:2], *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(video_index, "_probed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_videos(root, paths(root), "decord")
    monkeypatch.setattr(video_index, "_probed", inner)
    looks.clear()
    assert sorted(json.loads(index_file(root, "decord").read_text())["videos"]) == ["a.mp4", "b.avi"]
    assert index_videos(root, paths(root), "decord").frames.tolist() == [458, 164, 0, 3]


def test_an_index_that_cannot_be_written_is_no_error(root, monkeypatch, capsys, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(video_index, "cache_folder", lambda: tmp_path / "file" / "below")
    assert index_videos(root, paths(root), "decord").frames.tolist() == [458, 164, 0, 3]
    assert "the videos will be looked at again next time: cannot write" in capsys.readouterr().out


def test_a_broken_first_frame_of_a_folder_is_not_kept(root, looks):
    frame = root / "d" / "0.png"
    whole = frame.read_bytes()
    frame.write_bytes(b"")
    assert "0.png" in index_videos(root, paths(root), "decord").broken[3]
    with open(frame, "wb") as file:  # the folder's own time of change stays
        file.write(whole)
    assert index_videos(root, paths(root), "decord").frames.tolist() == [458, 164, 0, 3]


@pytest.mark.parametrize("processes", [1, 3])
def test_decoders_that_crash_or_hang_cost_one_video(tmp_path, monkeypatch, processes):
    def wild(path, decoder):
        if "crash" in Path(path).name:
            os._exit(139)
        if "hang" in Path(path).name:
            time.sleep(60)
        return VideoInfo(5, 1.0, 2, 2)

    names = ["a.mp4", "crash1.mp4", "b.mp4", "hang.mp4", "c.mp4", "crash2.mp4"]
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(video_index, "probe", wild)
    monkeypatch.setattr(video_index, "PATIENCE", 1.5)
    found = index_videos(tmp_path, [str(tmp_path / n) for n in names], "decord", processes)
    assert found.frames.tolist() == [5, 0, 5, 0, 5, 0]
    assert "crashed on it (exit code 139)" in found.broken[1]
    assert "still busy with it after 1.5 s" in found.broken[3]
    assert sorted(found.broken) == [1, 3, 5]


@pytest.mark.parametrize("name", ["decord", "pyav"])
def test_the_index_counts_the_frames_that_are_shown_and_forgets_what_an_older_one_counted(name, tmp_path):
    installed(name)
    rewritten(encoded(tmp_path / "a.mp4"), [(25, 5)])
    assert probe(str(tmp_path / "a.mp4"), name) == VideoInfo(25, 25.0, 96, 64)
    stat = (tmp_path / "a.mp4").stat()
    old = {"a.mp4": [stat.st_size, stat.st_mtime_ns, 40, 25.0, 96, 64]}
    index_file(tmp_path, name).write_text(json.dumps({"version": 2, "videos": old}))
    assert index_videos(tmp_path, [str(tmp_path / "a.mp4")], name).frames.tolist() == [25]


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_frames_that_the_container_only_claims_do_not_count(ending, monkeypatch, tmp_path):
    installed("pyav")
    path = str(made(tmp_path / f"a.{ending}", 20))
    assert probe(path, "pyav") == VideoInfo(20, 10.0, 64, 48)
    av = PyAV(path)._av

    def short(self):
        yield from ((i, None) for i in range(readable))
        raise av.InvalidDataError(1, "ends early")

    monkeypatch.setattr(PyAV, "_from", lambda self, key: iter(()))
    monkeypatch.setattr(PyAV, "_in_order", short)
    readable = 18
    assert probe(path, "pyav") == VideoInfo(18, 10.0, 64, 48)
    readable = 13
    assert probe(path, "pyav") == "only 13 of 20 frames can be decoded"
    monkeypatch.setattr(PyAV, "_in_order", lambda self: iter(()))
    assert probe(path, "pyav") == "none of its frames can be decoded"


def test_a_real_video_with_damaged_bytes_is_no_still(tmp_path):
    installed("decord")
    content = np.frombuffer(shared(UCF).read_bytes(), np.uint8).copy()
    draws = np.random.default_rng(0)
    content[draws.integers(20_000, len(content) - 20_000, 2000)] = draws.integers(0, 256, 2000)
    (tmp_path / "a.avi").write_bytes(content.tobytes())
    found = index_videos(tmp_path, [str(tmp_path / "a.avi")], "decord")
    assert found.frames[0] == 0 or found.frames[0] >= 0.9 * 164
    if not found.frames[0]:  # decord's threads meet the damage here or there
        assert re.search(r"only \d+ of \d+ frames can be decoded|cannot be decoded \([^/\[]", found.broken[0])


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_kill_leaves_neither_processes_nor_the_lock(tmp_path, capsys):
    fcntl = pytest.importorskip("fcntl")
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom neural_rdm.data.videos import index as video_index\n"
        "def hang(path, decoder):\n    print(os.getpid(), flush=True)\n    time.sleep(100)\n"
        "video_index.probe, video_index.cache_folder = hang, lambda: Path(sys.argv[1])\n"
        "names = [sys.argv[1] + '/' + n for n in ('a.mp4', 'b.mp4')]\n"
        "video_index.index_videos(Path(sys.argv[1]), names, 'pyav', 2)\n"
    )
    installed("pyav")
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    with Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        probers = [int(process.stdout.readline()) for _ in range(2)]
        lock = next(tmp_path.glob("*.lock"))
        for pid in probers:  # the lock is the parent's alone
            assert str(lock) not in [os.path.realpath(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
        with lock.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process.kill()
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for _ in range(100):
        left = [pid for pid in probers if Path(f"/proc/{pid}/stat").is_file()
                and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"]  # fmt: skip
        if not left:
            break
        time.sleep(0.05)
    assert left == []


def test_who_waits_for_another_process_says_so(tmp_path, capsys):
    file, said_while_waiting = tmp_path / "index.lock", "waiting for another process"
    with ThreadPoolExecutor(1) as pool:
        with locked(file, said_while_waiting):

            def wait():
                with locked(file, said_while_waiting):
                    return True

            waiting = pool.submit(wait)
            said = ""
            while "waiting" not in said and not waiting.done():
                said += capsys.readouterr().out
                time.sleep(0.01)
        assert waiting.result()
    assert said == "waiting for another process\n"


def test_a_missing_decoder_is_said_before_any_video_is_looked_at(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ConfigError, match=r"data.decoder=decord: decord is not installed"):
        index_videos(root, paths(root), "decord")
    assert index_videos(root, paths(root)[3:], "decord").frames.tolist() == [3]  # folders need none


@pytest.mark.parametrize("name", ["decord", "pyav"])
@pytest.mark.parametrize("ending", ["mp4", "avi", "mkv"])
def test_a_cut_video_gives_a_clip_or_is_broken(name, ending, tmp_path):
    installed(name)
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    whole = made(tmp_path / f"whole.{ending}", 30, **options).read_bytes()
    path = tmp_path / f"cut.{ending}"
    lengths = set()

    @settings(max_examples=25, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, len(whole)), st.integers(0, 1000))
    def check(size, key):
        path.write_bytes(whole[:size])
        (_, found), *_ = video_index._probed(tmp_path, [path.name], name, 1)
        frames = np.array([found.frames if isinstance(found, VideoInfo) else 0])
        broken = {} if frames[0] else {0: found}
        lengths.add(int(frames[0]))
        clips = ClipFiles([str(path)], frames, broken, name, None, 16, 4, 3)
        try:
            x = clips.load(0, key)["x"]
        except BrokenSample as error:
            assert ("\n" in str(error), error.index) == (False, 0)  # noqa: PT017
        else:
            assert x.shape == (4, 3, 16, 16)
            assert bool(torch.isfinite(x).all())

    check()
    assert 0 in lengths
    assert max(lengths) <= 30
    path.write_bytes(whole)
    assert probe(str(path), name).frames == 30


def test_broken_videos_reach_the_list_of_bad_samples(tmp_path):
    installed("decord")
    train = tmp_path / "set" / "train"
    train.mkdir(parents=True)
    for i in range(4):
        shutil.copy(shared(TAICHI), train / f"{i}.mp4")
    (train / "4.mp4").write_bytes(shared(TAICHI).read_bytes()[:5000])
    data = TaichiHD(tmp_path / "set", image_size=16, num_frames=2, batch_size=5, image_frames=3, max_bad_fraction=0.2)
    data.report_folder = tmp_path
    batches = iter(data.train_dataloader())
    for _ in range(3):
        assert next(batches)["x"].shape == (5, 5, 3, 16, 16)
    rows = (tmp_path / "bad_samples.csv").read_text().splitlines()
    assert len(rows) == 2
    assert rows[1].startswith(f"train,4,{train / '4.mp4'},cannot be decoded (")
    strict = TaichiHD(tmp_path / "set", image_size=16, num_frames=2, batch_size=5, max_bad_fraction=0.0)
    with pytest.raises(DataError, match=r"4\.mp4"):
        next(iter(strict.train_dataloader()))
