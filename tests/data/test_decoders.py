"""Decoders: one numbering of frames whatever decodes them, only what is needed, and damage that stays one sentence."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import ConfigError
from neural_rdm.data import decoders
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.decoders import DECODERS, FrameFolder, PyAV, _broken, library, open_video
from tests.helpers import shared

UCF = "data/ucf101/videos/v_ApplyEyeMakeup_g01_c01.avi"
TAICHI = "data/taichi/lia_driving1.mp4"


def installed(name: str) -> str:
    """The decoder, or a skip that says why it cannot be used here."""
    try:
        library(DECODERS[name][1])
    except ConfigError as error:
        pytest.skip(str(error))
    return name


def read(path: Path, decoder: str, indices: list[int]) -> np.ndarray:
    with contextlib.closing(open_video(path, decoder)) as video:
        return np.stack(video.read(indices)).astype(int)


def made(path: Path, count: int, open_gop: int = 0, size: tuple[int, int] = (64, 48), **options: str) -> Path:
    """A video of `count` frames, whose grey level is 5 times their number, with B frames and a key frame every 12.

    Args:
        size: width and height.
    """
    av = pytest.importorskip("av", reason="makes a video with PyAV")
    settings = {"g": "12", "bf": "3", "x264-params": f"open-gop={open_gop}:scenecut=0", "crf": "10", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=settings)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i in range(count):
            pixels = np.full((*size[::-1], 3), 5 * i % 250, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("file", [UCF, TAICHI])
@pytest.mark.parametrize("other", ["pyav", "torchcodec"])
def test_all_decoders_number_real_frames_alike(file: str, other: str) -> None:
    path, names = shared(file), [installed("decord"), installed(other)]
    if other == "torchcodec" and file == UCF:
        with pytest.raises(BrokenSample, match=r"\.avi: .* wrong order; choose another data.decoder"):
            open_video(path, other)
        return
    infos = []
    for name in names:
        with contextlib.closing(open_video(path, name)) as video:
            infos.append(video.info())
    assert infos[0] == infos[1]
    assert infos[0] == ((164, 25.0, 320, 240) if file == UCF else (458, 10.0, 256, 256))
    count = infos[0].frames
    for indices in ([0], [count - 1], [0, 1, 2, 50, 51, count - 2, count - 1], list(range(90, 138, 3)), [7, 7, 8, 8]):
        one, two = (read(path, name, indices) for name in names)
        assert one.shape == two.shape == (len(indices), infos[0].height, infos[0].width, 3)
        assert np.abs(one - two).mean() < 0.5
        # a neighbouring frame differs by more
    beside = read(path, names[0], [51])
    assert np.abs(read(path, other, [50]) - beside).mean() > np.abs(read(path, other, [51]) - beside).mean()


@pytest.mark.parametrize("name", list(DECODERS))
@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_any_frame_is_found_behind_key_frames_and_b_frames(name: str, ending: str, tmp_path: Path) -> None:
    installed(name)
    if (name, ending) == ("torchcodec", "avi"):
        pytest.skip("refused: it takes the time stamps of an AVI for the order of its frames")
    path = made(tmp_path / f"a.{ending}", 45, open_gop=int(name != "decord"))  # decord is not exact there
    for indices in ([0], [44], [11, 12, 13], [24], [3, 23, 25, 40], [30, 30]):
        found = read(path, name, indices).mean(axis=(1, 2, 3)) / 5
        assert np.abs(found - indices).max() < 0.5, (indices, found)


@pytest.mark.parametrize("ending", ["mp4", "avi"])
@pytest.mark.parametrize(("width", "height"), [(8, 8), (12, 20), (24, 24), (48, 16), (72, 40), (100, 100)])
def test_rows_that_end_in_padding_are_read(width: int, height: int, ending: str, tmp_path: Path) -> None:
    """The memory of decord's frames has rows of 32 pixels or more; it takes what fits into it for further channels."""
    installed("decord")
    path = made(tmp_path / f"a.{ending}", 20, size=(width, height))
    indices = [0, 3, 3, 13, 19]
    found = read(path, "decord", indices)
    assert found.shape == (5, height, width, 3)
    np.testing.assert_array_equal(found, read(path, "pyav", indices))
    with contextlib.closing(open_video(path)) as video:
        assert video.info() == (20, 10.0, width, height)
        with pytest.raises(BrokenSample):
            video.read([20])


def test_pyav_begins_at_the_key_frame_before(tmp_path: Path) -> None:
    installed("pyav")
    with contextlib.closing(PyAV(made(tmp_path / "a.mp4", 45))) as video:
        assert 12 in video._keys
        index, _ = next(video._from(24))
        assert index == 24
        opened = video._container
        video.read([25])
        assert video._container is opened  # it was rewound, not read from its first frame on


def test_frames_are_in_the_order_of_their_numbers_and_may_differ_in_size(tmp_path: Path) -> None:
    for i in range(12):
        Image.new("RGB", (20, 16 if i else 12), (10 * i,) * 3).save(tmp_path / f"frame_{i}.png")
    (tmp_path / ".frame_13.png").touch()
    video = open_video(tmp_path)
    assert isinstance(video, FrameFolder)
    assert video.names[:3] == ["frame_0.png", "frame_1.png", "frame_2.png"]
    assert video.info() == (12, 0.0, 20, 12)
    assert [frame[0, 0, 0] for frame in video.read([2, 11])] == [20, 110]
    assert [frame.shape for frame in video.read([0, 1])] == [(12, 20, 3), (16, 20, 3)]
    with pytest.raises(BrokenSample, match="holds 12 frames; number 12 is not there"):
        video.read([12])
    (tmp_path / "empty").mkdir()
    with pytest.raises(BrokenSample, match="holds 0 frames"):
        open_video(tmp_path / "empty").info()
    with pytest.raises(BrokenSample, match="No such file"):
        FrameFolder(tmp_path / "absent")


@pytest.mark.parametrize("name", list(DECODERS))
def test_a_file_of_another_kind_is_broken_and_a_bad_index_too(name: str, tmp_path: Path) -> None:
    installed(name)
    for content in (b"", b"plain text\n" * 300, b"RIFF\0\0\0\0AVI ", b"\0\0\0\x18ftypmp42"):
        path = tmp_path / "a.mp4"
        path.write_bytes(content)
        with pytest.raises(BrokenSample, match=r"cannot read .*a\.mp4: cannot be decoded \(") as error:
            open_video(path, name)
        assert "\n" not in str(error.value)
    with pytest.raises(BrokenSample, match="cannot read"):
        open_video(tmp_path / "absent.mp4", name)
    with pytest.raises(BrokenSample, match="cannot read"):
        read(made(tmp_path / "b.mp4", 5), name, [2, 5])


def test_names_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"taichi-\xe9")
    folder.mkdir()
    (folder / "a.mp4").symlink_to(shared(TAICHI))
    for name in ("decord", "pyav"):
        assert read(folder / "a.mp4", installed(name), [3]).shape == (1, 256, 256, 3)


def test_a_decoder_that_is_not_there_is_one_line_of_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r'^data.decoder=pyav: av is not installed. pip install av, or "neural-rdm'):
        open_video("a.mp4", "pyav")

    def fails(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec")

    monkeypatch.setattr(decoders.importlib, "import_module", fails)
    with pytest.raises(ConfigError, match=r"data.decoder=torchcodec: torchcodec cannot be loaded. .* FFmpeg's shared"):
        library("torchcodec.decoders")


def test_a_reason_holds_no_time_and_no_path_of_the_decoder() -> None:
    said = "[16:22:14] /github/workspace/src/video.cc:292: [16:22:14] /github/workspace/src/d.cc:1: Check failed: x"
    assert _broken(RuntimeError(said), "a.avi").reason == "cannot be decoded (Check failed: x)"
    assert _broken(RuntimeError(""), "a.avi").reason == "cannot be decoded (RuntimeError)"
