"""Every sample in a folder counts once: links, loops, twins in other formats, copies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.evaluation.sample_files import open_samples


@pytest.fixture
def four(tmp_path: Path) -> Path:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_links_and_loops_count_nothing_twice(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (four / "latest").symlink_to(".")
    (four / "up").symlink_to("..")
    (four / "newest.png").symlink_to("3.png")
    os.link(four / "0.png", four / "first.png")
    (four / "._0.png").write_bytes(b"resource fork")
    (four / "__MACOSX").mkdir()
    shutil.copy(four / "0.png", four / "__MACOSX" / "9.png")
    samples = open_samples(four)
    assert [path.name for path in samples.paths] == ["0.png", "1.png", "2.png", "3.png"]  # type: ignore[attr-defined]
    assert "2 second names of files are left out" in capsys.readouterr().out


def test_a_linked_folder_of_classes_is_read(four: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    top = tmp_path_factory.mktemp("classes")
    (top / "b").symlink_to(four)
    (top / "a").mkdir()
    Image.new("RGB", (8, 8)).save(top / "a" / "x.png")
    assert open_samples(top).labels.tolist() == [0, 1, 1, 1, 1]  # type: ignore[union-attr]


def test_of_two_formats_the_exact_one_is_taken(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(3):
        Image.open(four / f"{i}.png").save(four / f"{i}.jpg")
    samples = open_samples(four)
    assert {path.suffix for path in samples.paths} == {".png"}  # type: ignore[attr-defined]
    assert len(samples) == 4
    assert "3 files are left out, since the same pictures" in capsys.readouterr().out
    Image.open(four / "0.jpg").save(four / "5.jpg")
    Image.open(four / "0.jpg").save(four / "5.webp")
    with pytest.raises(DataError, match=r"5\.jpg and .*5\.webp: .* lie there twice"):
        open_samples(four)


def test_copies_are_refused_wherever_they_lie(four: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    shutil.copytree(four, four / "backup")
    with pytest.raises(DataError, match=r"samples at several depths \(4 as .*0\.png and 4 as .*backup"):
        open_samples(four)
    top = tmp_path_factory.mktemp("copies")
    shutil.copytree(four / "backup", top / "a")
    shutil.copytree(four / "backup", top / "b")
    (top / "b" / "3.png").unlink()
    with pytest.raises(DataError, match=r"the 3 samples in .*b are in .*a as well, such as 0\.png"):
        open_samples(top)
    Image.new("RGB", (8, 8)).save(top / "b" / "0.png")  # other pictures under the same names are classes
    assert len(open_samples(top)) == 7
    for i in range(4):
        (top / "a" / f"{i}.png").rename(top / "a" / f"{i}.webp")
    Image.new("RGB", (8, 8), 9).save(top / "b" / "3.png")
    with pytest.raises(DataError, match=r"the 4 samples in .*b are in .*a as well"):
        open_samples(top)


def test_copies_under_other_names_are_found_by_their_content(
    four: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        shutil.copy(four / f"{i}.png", four / f"{i} (1).png")
    assert len(open_samples(four)) == 6, "a collapsed generator draws equal pictures, too"
    assert "2 of 6 samples have the content of another one" in capsys.readouterr().out
    top = tmp_path_factory.mktemp("renamed")
    shutil.copytree(four, top / "a")
    (top / "b").mkdir()
    for i in range(4):
        shutil.copy(four / f"{i}.png", top / "b" / f"x{i}.png")
    with pytest.raises(DataError, match=r"the 6 samples in .*a are in .*b as well"):
        open_samples(top)
    black = tmp_path_factory.mktemp("black")
    for i in range(3):  # the same picture in every class
        (black / f"c{i}").mkdir()
        Image.new("RGB", (8, 8)).save(black / f"c{i}" / f"{i}.png")
    assert len(open_samples(black)) == 3
    assert "2 of 3 samples have the content" in capsys.readouterr().out


def test_folders_of_frames_with_the_same_content_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for clip, level in (("a", 9), ("b", 9), ("c", 10)):
        (tmp_path / clip).mkdir()
        for k in range(3):
            Image.new("RGB", (8, 8), (level * k,) * 3).save(tmp_path / clip / f"{k}.png")
    assert len(open_samples(tmp_path, frames=True)) == 3
    assert "1 of 3 samples have the content of another one" in capsys.readouterr().out


def test_clips_and_folders_of_frames_in_two_places_are_refused(tmp_path: Path) -> None:
    shown = [Image.new("L", (8, 8), 9 * k) for k in range(5)]
    for name in ("samples_gif", "samples_gif_copy"):
        (tmp_path / "g" / name).mkdir(parents=True)
        shown[0].save(tmp_path / "g" / name / "0.gif", save_all=True, append_images=shown[1:])
        (tmp_path / "f" / name / "clip").mkdir(parents=True)
        for k, frame in enumerate(shown):
            frame.save(tmp_path / "f" / name / "clip" / f"{k}.png")
    with pytest.raises(DataError, match="as well"):
        open_samples(tmp_path / "g")
    with pytest.raises(DataError, match="as well"):
        open_samples(tmp_path / "f", frames=True)
    assert len(open_samples(tmp_path / "f" / "samples_gif", frames=True)) == 1


def test_frames_in_two_formats_are_one_clip_of_each_frame_once(tmp_path: Path) -> None:
    for k in range(12):
        frame = Image.new("RGB", (8, 8), (20 * k,) * 3)
        for suffix in ("png", "jpg"):
            (tmp_path / "c").mkdir(exist_ok=True)
            frame.save(tmp_path / "c" / f"f{k}.{suffix}")
    samples = open_samples(tmp_path, frames=True)
    assert (samples.container.container, samples.container.lossless) == ("png", True)
    (x, _) = next(samples.batches(1))
    assert x[0, :, 0, 0, 0].tolist() == [20 * k for k in range(12)]
