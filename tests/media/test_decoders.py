"""Decoders: one numbering of frames whatever decodes them, only what is needed, and damage that stays one sentence."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.base import BrokenSample
from neural_rdm.media import video as videos
from neural_rdm.media.decoders import DECODERS, Decord, FrameFolder, check_decoder, open_video
from neural_rdm.media.pyav import PyAV
from neural_rdm.media.video import broken
from tests.data.containers import COUNT, encoded, number, rewritten, with_cover
from tests.helpers import shared

UCF = "data/ucf101/videos/v_ApplyEyeMakeup_g01_c01.avi"
TAICHI = "data/taichi/lia_driving1.mp4"


def installed(name: str) -> str:
    """The decoder, or a skip that says why it cannot be used here."""
    try:
        check_decoder(name)
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
@pytest.mark.parametrize("other", ["decord", "torchcodec"])
def test_all_decoders_number_real_frames_alike(file: str, other: str) -> None:
    path, names = shared(file), [installed("pyav"), installed(other)]
    infos = []
    for name in names:
        with contextlib.closing(open_video(path, name)) as video:
            infos.append(video.info())
    assert infos[0] == infos[1]
    assert infos[0] == ((164, 25.0, 320, 240) if file == UCF else (458, 10.0, 256, 256))
    count = infos[0].frames
    for indices in ([0], [0, 1, 2, 50, 51, count - 2, count - 1], [7, 7, 8, 8]):
        one, two = (read(path, name, indices) for name in names)
        assert one.shape == two.shape == (len(indices), infos[0].height, infos[0].width, 3)
        assert np.abs(one - two).mean() < 0.5


OPEN = "open-gop=1:scenecut=0"
#: name of a file -> (how it is made, numbers of the pictures that it shows)
FILES = {
    "plain.mp4": (encoded, range(COUNT)),
    "short_groups.mp4": (partial(encoded, g="2", bf="3"), range(COUNT)),
    "open.mp4": (partial(encoded, x264=OPEN), range(COUNT)),
    "open.mkv": (partial(encoded, x264=OPEN), range(COUNT)),
    "refresh.mp4": (partial(encoded, bf="0", x264="intra-refresh=1"), range(COUNT)),
    "fragments.mp4": (partial(encoded, options={"movflags": "frag_keyframe+empty_moov"}), range(COUNT)),
    "dash.mp4": (partial(encoded, options={"movflags": "dash+delay_moov+frag_every_frame"}), range(COUNT)),
    "uneven.mp4": (partial(encoded, times=lambda i: i + i // 3 + 5 * (i > 20)), range(COUNT)),
    "late.mp4": (partial(encoded, times=lambda i: i + 9), range(COUNT)),
    "ten_bits.mp4": (partial(encoded, pixels="yuv420p10le"), range(COUNT)),
    "odd.mp4": (partial(encoded, pixels="yuv444p", size=(97, 65)), range(COUNT)),
    "odd_mpeg4.mp4": (partial(encoded, codec="mpeg4", size=(97, 65), qmin="2", qmax="4"), range(COUNT)),
    "wide_pixels.mp4": (partial(encoded, shape=Fraction(4, 3)), range(COUNT)),
    "cover.mp4": (with_cover, range(COUNT)),
    "one.mp4": (partial(encoded, count=1), range(1)),
    "guessed_times.avi": (encoded, range(COUNT)),
    "mpeg4.avi": (partial(encoded, codec="mpeg4", qmin="2", qmax="4"), range(COUNT)),
}
#: how an edit list cuts a file -> (its rows for `rewritten`, numbers of the pictures)
EDITS = {
    "start": ([(COUNT - 5, 5)], range(5, COUNT)),
    "long_start": ([(COUNT - 30, 30)], range(30, COUNT)),
    "end": ([(17, 0)], range(17)),
    "both": ([(9, 14)], range(14, 23)),
    "one": ([(1, 13)], [13]),
    "late": ([(7, None), (20, 10)], range(10, 30)),
    "gap": ([(6, 0), (10, 20)], [*range(6), *range(20, 30)]),
    "twice": ([(6, 3), (6, 3)], [*range(3, 9), *range(3, 9)]),
    "swapped": ([(10, 25), (10, 4)], [*range(25, 35), *range(4, 14)]),
}
NAMES = [name for name in DECODERS if importlib.util.find_spec(DECODERS[name][1].partition(".")[0])]


def check_all_decoders(path: Path, shown: list[int]) -> None:
    """Every decoder gives the pictures of these numbers, however they are asked for, and those of a plain decode."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:  # from its start, by the first stream that is no cover
        stream = next(s for s in container.streams.video if not getattr(s, "disposition", 0) & 0x400)
        plain = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(stream)]
    assert [number(frame) for frame in plain] == shown
    draws = np.random.default_rng(0)
    asked = [list(range(len(shown))), [0], [len(shown) - 1] * 2, *draws.integers(0, len(shown), (3, 6)).tolist()]
    asked += [[int(index)] for index in draws.integers(0, len(shown), 4)]
    for name in NAMES:
        with contextlib.closing(open_video(path, name)) as video:
            height, width = plain[0].shape[:2]
            assert video.info()[::2] == (len(shown), width), name
            assert video.info().height == height
            for indices in asked:
                found = video.read(indices)
                assert [number(frame) for frame in found] == [shown[index] for index in indices], (name, indices)
                # conversions to RGB differ where colours are stored coarsely, and by rounding
                for index, frame in zip(indices, found, strict=True):
                    assert np.abs(frame - plain[index]).mean() < 2, (name, index)
            with pytest.raises(BrokenSample):
                video.read([len(shown)])


@pytest.mark.parametrize("name", list(FILES))
def test_the_frames_of_any_container_are_those_that_are_shown(name: str, tmp_path: Path) -> None:
    make, shown = FILES[name]
    check_all_decoders(make(tmp_path / name), list(shown))


@pytest.mark.parametrize(
    ("x264", "cut"), [*(("scenecut=0", cut) for cut in EDITS), *((OPEN, cut) for cut in ("start", "both", "twice"))]
)
def test_what_an_edit_list_cuts_off_is_no_frame(cut: str, x264: str, tmp_path: Path) -> None:
    edits, shown = EDITS[cut]
    check_all_decoders(rewritten(encoded(tmp_path / "a.mp4", x264=x264), edits), list(shown))


@pytest.mark.parametrize("name", ["trimmed_short.mp4", "trimmed_long_gop.mp4"])
def test_files_that_were_cut_without_decoding_show_what_they_show(name: str) -> None:
    """They bear their numbers as `containers.picture` does, over the whole height."""
    path = shared(f"faults/{name}")
    shown = json.loads(shared("faults/shown_frames.json").read_text())[name]
    for decoder in NAMES:
        with contextlib.closing(open_video(path, decoder)) as video:
            assert video.info().frames == len(shown)
            every = np.stack(video.read(range(len(shown)))).astype(int)
            for index in np.random.default_rng(1).integers(0, len(shown), 20).tolist():
                with contextlib.closing(open_video(path, decoder)) as single:
                    np.testing.assert_array_equal(single.read([index])[0], every[index])
        rows = every[:, every.shape[1] // 4].mean(axis=-1)
        middles = [(2 * bit + 1) * every.shape[2] // 20 for bit in range(10)]
        assert [sum(int(row[at] > 125) << bit for bit, at in enumerate(middles)) for row in rows] == shown


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((0, 1, -1, 0), lambda f: np.rot90(f, -1)),  # what a telephone held upright writes
        ((-1, 0, 0, -1), lambda f: np.rot90(f, 2)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, 1), lambda f: f[:, ::-1]),
        ((1, 0, 0, -1), lambda f: f[::-1]),
        ((0, 1, 1, 0), lambda f: f.swapaxes(0, 1)),
        ((0, -1, -1, 0), lambda f: np.rot90(f, 2).swapaxes(0, 1)),
    ],
)  # fmt: skip
def test_pictures_are_the_way_up_that_they_are_shown(matrix: tuple[int, ...], expected: Any, tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mp4", count=6)
    stored = read(path, installed("pyav"), [0, 4])
    rewritten(path, matrix=matrix)
    for name in NAMES:
        found = read(path, name, [0, 4])
        np.testing.assert_array_equal(found, np.stack([expected(frame) for frame in stored]))
        with contextlib.closing(open_video(path, name)) as video:
            assert (video.info().height, video.info().width) == found.shape[1:3]


def test_a_picture_shown_aslant_is_refused(tmp_path: Path) -> None:
    installed("pyav")
    with pytest.raises(BrokenSample, match="angle that is not a multiple of 90 degrees"):
        open_video(rewritten(encoded(tmp_path / "a.mp4", count=3), matrix=(1, 1, -1, 1)))


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (encoded, True),
        (partial(encoded, x264=OPEN), False),
        (partial(encoded, bf="0", x264="intra-refresh=1"), False),
        (lambda path: rewritten(encoded(path), [(20, 5)]), False),
        (lambda path: rewritten(encoded(path), matrix=(-1, 0, 0, 1)), False),
    ],
)
def test_other_decoders_read_plain_files_only(make: Any, plain: bool, tmp_path: Path) -> None:
    path = make(tmp_path / "a.mp4")
    with contextlib.closing(open_video(path, installed("decord"))) as video:
        assert isinstance(video, Decord if plain else PyAV)


def test_what_another_decoder_fails_to_read_comes_from_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("decord")
    path = encoded(tmp_path / "a.mp4")

    def fails(self: Decord, indices: list[int]) -> None:
        raise RuntimeError("Error sending packet.")

    monkeypatch.setattr(Decord, "_read", fails)
    with contextlib.closing(open_video(path, "decord")) as video:
        assert [number(frame) for frame in video.read([7, 3])] == [7, 3]


@pytest.mark.parametrize(("width", "height"), [(8, 8), (24, 24), (72, 40), (100, 100)])
def test_rows_that_end_in_padding_are_read(width: int, height: int, tmp_path: Path) -> None:
    """The memory of decord's frames has rows of 32 pixels or more; it takes what fits into it for further channels."""
    installed("decord")
    path = made(tmp_path / "a.mp4", 20, size=(width, height))
    indices = [0, 3, 3, 13, 19]
    with contextlib.closing(open_video(path, "decord")) as video:
        assert isinstance(video, Decord)
        found = np.stack(video._read(indices)).astype(int)
        assert video.info() == (20, 10.0, width, height)
    assert found.shape == (5, height, width, 3)
    np.testing.assert_array_equal(found, read(path, "pyav", indices))


def test_pyav_begins_at_the_key_frame_before_and_checks_where_a_seek_lands(tmp_path: Path) -> None:
    installed("pyav")
    for x264, checked in (("scenecut=0", True), ("intra-refresh=1", False)):
        with contextlib.closing(PyAV(encoded(tmp_path / "a.mp4", bf="0", x264=x264))) as video:
            assert video.keys[:3] == [0, 12, 24]
            assert [index for index, _ in video._from(24)] == (list(range(24, COUNT)) if checked else [])
            opened = video._container
            assert number(video.read([25])[0]) == 25
            assert (video._container is opened) == checked  # rewound, or read from its first frame on


def test_a_video_of_pictures_beyond_pillow_s_limit_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made(tmp_path / "x.mp4", 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(BrokenSample, match="its pictures of 64x48 have more than 3,071 pixels"):
        open_video(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_video(path).info().frames == 3


def test_a_folder_by_the_name_of_a_protocol_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a:b").mkdir()
    encoded(tmp_path / "a:b" / "0.mp4", count=4)
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        assert len(read(Path("a:b/0.mp4"), name, [0, 3])) == 2


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
    with pytest.raises(ConfigError, match=r"^video files are read with PyAV, which is not installed. pip install av"):
        open_video("a.mp4")
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ConfigError, match=r"^data.decoder=decord: decord is not .* or choose data.decoder=pyav"):
        open_video("a.mp4", "decord")

    def fails(name: str) -> None:
        raise RuntimeError("Could not load libtorchcodec")

    monkeypatch.setattr(videos.importlib, "import_module", fails)
    with pytest.raises(ConfigError, match=r"data.decoder=torchcodec: torchcodec cannot be loaded. .* FFmpeg's shared"):
        videos.library("torchcodec.decoders")


def test_a_reason_holds_no_time_and_no_path_of_the_decoder() -> None:
    said = "[16:22:14] /github/workspace/src/video.cc:292: [16:22:14] /github/workspace/src/d.cc:1: Check failed: x"
    assert broken(RuntimeError(said), "a.avi").reason == "cannot be decoded (Check failed: x)"
    assert broken(RuntimeError(""), "a.avi").reason == "cannot be decoded (RuntimeError)"
