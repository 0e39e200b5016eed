"""Samples on disk: parts, the array that is made of them, and files of single samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError, UserError
from neural_rdm.evaluation.sample_parts import (
    Parts,
    balanced,
    files_of,
    is_written,
    same_request,
    write_each,
    write_npz,
)
from neural_rdm.media.mp4 import write_mp4


def saved(folder: Path, samples: np.ndarray, size: int) -> Parts:
    parts = Parts(folder, len(samples), size)
    for number in parts.numbers:
        parts.save(number, samples[parts.positions(number).start : parts.positions(number).stop])
    return parts


def clips(count: int = 3, side: int = 7) -> np.ndarray:
    """A bright square that walks to the right, another for each clip."""
    video = np.full((count, 6, side * 8, side * 8, 3), 40, dtype=np.uint8)
    for i in range(count):
        for frame in range(6):
            video[i, frame, 8 * (i + 1) : 8 * (i + 2), 8 * frame : 8 * (frame + 1)] = (230, 120, 60 + 20 * i)
    return video


@pytest.mark.parametrize(
    ("shape", "dtype"), [((11, 4, 5, 3), np.uint8), ((5, 2, 4, 4, 1), np.uint8), ((4, 2, 3, 4), np.float32)]
)
def test_the_array_is_all_parts_in_order(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    samples = (np.random.default_rng(0).random(shape) * 255).astype(dtype)
    parts = saved(tmp_path, samples, 3)
    assert parts.missing() == []
    labels = np.arange(len(samples))
    with np.load(write_npz(tmp_path / "samples.npz", parts, arr_1=labels)) as arrays:
        assert list(arrays) == ["arr_0", "arr_1"]
        assert np.array_equal(arrays["arr_0"], samples)
        assert arrays["arr_0"].dtype == dtype
        assert np.array_equal(arrays["arr_1"], labels)
    assert np.array_equal(parts.sample(len(samples) - 1), samples[-1])
    parts.path(1).unlink()
    assert parts.missing() == [1]
    parts.remove()
    assert not parts.folder.exists()


def test_a_folder_keeps_to_one_request(tmp_path: Path) -> None:
    assert not same_request(tmp_path / "sampling.json", {"seed": 0, "steps": (1, 2)})
    assert same_request(tmp_path / "sampling.json", {"seed": 0, "steps": (1, 2)})
    with pytest.raises(ConfigError, match=r"different: more, seed"):
        same_request(tmp_path / "sampling.json", {"seed": 1, "steps": (1, 2), "more": True})
    for damaged in ('{"seed": 0,', "[1]", "", "\0"):
        (tmp_path / "sampling.json").write_text(damaged)
        with pytest.raises(DataError, match=r"sampling\.json is damaged") as error:
            same_request(tmp_path / "sampling.json", {"seed": 0})
        assert "\n" not in str(error.value)


def test_parts_are_made_again_of_the_array(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).standard_normal((7, 2, 3, 4)).astype(np.float32)
    parts = saved(tmp_path, samples, 3)
    array = write_npz(tmp_path / "samples.npz", parts)
    parts.remove()
    parts.restore(array)
    assert parts.missing() == []
    assert np.array_equal(np.concatenate(list(parts)), samples)
    with pytest.raises(DataError, match=r"samples\.npz: .* 7 samples, not 8; remove it"):
        Parts(tmp_path / "more", 8, 3).restore(array)


def test_clips_keep_to_their_frames_a_second(tmp_path: Path) -> None:
    parts = saved(tmp_path, clips(2), 2)
    assert not is_written(tmp_path, "gif", 2)
    write_each(files_of(tmp_path, "gif"), parts, "gif", fps=5)
    assert is_written(tmp_path, "gif", 2)
    with Image.open(files_of(tmp_path, "gif") / "0000001.gif") as gif:
        assert gif.info["duration"] == 200
    with pytest.raises(ConfigError, match=r"samples_gif holds .* \(different: fps\); .*remove that folder"):
        write_each(files_of(tmp_path, "gif"), parts, "gif", fps=4)


def test_classes_are_balanced() -> None:
    assert balanced([3, 5, 7], 7) == [3, 5, 7, 3, 5, 7, 3]
    with pytest.raises(UserError, match="nothing to draw"):
        balanced([], 3)


def test_clips_as_gif_and_mp4_play_what_they_show(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV writes and reads the MP4")
    video = clips()
    parts = saved(tmp_path, video, 2)
    gif = Image.open(write_each(tmp_path / "gif", parts, "gif") / "0000002.gif")
    assert gif.n_frames == 6
    path = write_each(tmp_path / "mp4", parts, "mp4", fps=5) / "0000002.mp4"
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 5
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == 6
    assert np.abs(np.stack(frames) - video[2].astype(int)).mean() < 4
    odd = np.zeros((2, 9, 7, 1), dtype=np.uint8)
    with av.open(str(write_mp4(tmp_path / "odd.mp4", odd))) as container:
        assert next(container.decode(video=0)).to_ndarray(format="rgb24").shape == (10, 8, 3)


def test_files_that_do_not_fit_are_refused_and_finished_ones_kept(tmp_path: Path) -> None:
    images = saved(tmp_path / "i", np.zeros((2, 4, 4, 1), dtype=np.uint8), 2)
    with pytest.raises(ConfigError, match="files=mp4 does not fit images"):
        write_each(tmp_path / "out", images, "mp4")
    with pytest.raises(ConfigError, match="does not fit clips"):
        write_each(tmp_path / "out", saved(tmp_path / "c", clips(1), 1), "png")
    with pytest.raises(ConfigError, match="does not fit latents"):
        write_each(tmp_path / "out", saved(tmp_path / "l", np.zeros((1, 4, 4, 4), dtype=np.float32), 1), "png")
    write_each(tmp_path / "out", images, "png")
    before = (tmp_path / "out" / "0000001.png").stat().st_mtime_ns
    (tmp_path / "out" / "0000000.png").unlink()
    write_each(tmp_path / "out", images, "png")
    assert (tmp_path / "out" / "0000001.png").stat().st_mtime_ns == before
    assert Image.open(tmp_path / "out" / "0000000.png").size == (4, 4)


def test_what_a_killed_process_has_left_among_the_parts_keeps_no_job_from_its_end(tmp_path: Path) -> None:
    parts = saved(tmp_path, np.zeros((2, 4, 4, 1), dtype=np.uint8), 2)
    (parts.folder / ".0000000.npy.7.tmp").write_bytes(b"half")
    assert parts.any()
    parts.remove()
    assert not parts.any()
    assert not parts.folder.exists()
