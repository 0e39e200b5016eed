"""Samples from files: the same bytes whatever holds them, in parts, and what is refused."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.evaluation.sample_files import open_samples
from neural_rdm.evaluation.sample_parts import Parts, write_each, write_npz
from neural_rdm.media.mp4 import write_mp4
from tests.data.containers import encoded, number, rewritten
from tests.helpers import shared

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (13, 6, 8, 3), dtype=np.uint8)
CLIPS = RANDOM.integers(0, 256, (5, 7, 6, 8, 3), dtype=np.uint8)
LABELS = np.arange(13) % 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, and the clips, as `sample` writes them and as numpy does."""
    folder = tmp_path_factory.mktemp("samples")
    for name, samples in (("images", IMAGES), ("clips", CLIPS)):
        parts = Parts(folder / f"{name}_parts", len(samples), 4)
        for part in parts.numbers:
            parts.save(part, samples[parts.positions(part)])
        write_npz(folder / f"{name}.npz", parts, **({"arr_1": LABELS} if name == "images" else {}))
        write_each(folder / f"{name}_folder", parts, "png" if name == "images" else "gif")
    np.savez_compressed(folder / "packed.npz", IMAGES, LABELS)
    for i, image in enumerate(IMAGES):
        (folder / "classes" / f"c{LABELS[i]}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "classes" / f"c{LABELS[i]}" / f"{i}.png")
    for i, clip in enumerate(CLIPS):
        for j, frame in enumerate(clip):
            (folder / "frames" / f"clip_{i}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(folder / "frames" / f"clip_{i}" / f"{j}.png")
    return folder


def everything(path: Path, batch_size: int = 4, positions: Any = None, **options: Any) -> tuple[np.ndarray, Any]:
    """All samples, channels last, and all labels."""
    batches = list(open_samples(path, **options).batches(batch_size, positions))
    assert all(len(x) == batch_size for x, _ in batches[:-1])
    x = torch.cat([x for x, _ in batches])
    assert x.dtype == torch.uint8
    labels = None if batches[0][1] is None else np.concatenate([y for _, y in batches])
    return x.movedim(-3, -1).numpy(), labels


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["images.npz", "packed.npz", "images_folder"]),
    batch_size=st.integers(1, 15),
    chosen=st.sets(st.integers(0, 12), min_size=1),
)
def test_images_are_the_same_bytes_from_every_file_in_any_parts(
    files: Path, name: str, batch_size: int, chosen: set[int]
) -> None:
    positions = sorted(chosen)
    found, labels = everything(files / name, batch_size, positions)
    np.testing.assert_array_equal(found, IMAGES[positions])
    if name != "images_folder":
        np.testing.assert_array_equal(labels, LABELS[positions])


def test_a_whole_set_and_its_kind(files: Path) -> None:
    for name in ("images.npz", "images_folder"):
        samples = open_samples(files / name)
        assert (samples.kind, len(samples)) == ("image", 13)
        np.testing.assert_array_equal(everything(files / name)[0], IMAGES)
    with pytest.raises(ValueError, match="ascending"):
        next(open_samples(files / "images.npz").batches(2, [3, 1]))


def test_class_folders_are_labels(files: Path) -> None:
    found, labels = everything(files / "classes")
    order = np.argsort(LABELS, kind="stable")
    np.testing.assert_array_equal(found, IMAGES[order])
    np.testing.assert_array_equal(labels, LABELS[order])
    assert open_samples(files / "images_folder").labels is None


@pytest.mark.parametrize(
    ("frames", "interval", "numbers"), [(None, 1, range(7)), (3, 2, [0, 2, 4]), (None, 3, [0, 3, 6])]
)
def test_clips_begin_at_their_first_frame(files: Path, frames: Any, interval: int, numbers: Any) -> None:
    options = {"num_frames": frames, "frame_interval": interval}
    wanted = CLIPS[:, list(numbers)]
    found, _ = everything(files / "clips.npz", 2, **options)
    np.testing.assert_array_equal(found, wanted)
    found, _ = everything(files / "frames", 2, frames=True, **options)
    np.testing.assert_array_equal(found, wanted)
    found, _ = everything(files / "clips_folder", 2, **options)  # GIFs have 256 colours
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 20


@pytest.mark.parametrize("shown", [[0] * 6, [0, 0, 1, 1, 1, 2], [0, 1, 2, 2, 2, 2], [0, 1, 0, 1, 1, 0]])
@pytest.mark.parametrize("fps", [1, 8, 60])
def test_frames_that_repeat_come_back(shown: list[int], fps: int, tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)  # exact: a palette holds all greys
    parts = Parts(tmp_path, 1, 1)
    parts.save(0, grey[shown][None])
    found, _ = everything(write_each(tmp_path / "gif", parts, "gif", fps))
    np.testing.assert_array_equal(found, np.repeat(grey[shown][None], 3, axis=-1))


def test_gifs_of_others_have_the_frames_that_are_stored(tmp_path: Path) -> None:
    pages = [Image.new("L", (8, 6), grey) for grey in (0, 0, 90, 200)]
    pages[0].save(tmp_path / "a.gif", save_all=True, append_images=pages[1:], duration=100)
    assert everything(tmp_path)[0].shape == (1, 3, 6, 8, 3)


@pytest.mark.parametrize("side", [8, 12, 16, 24, 48])
def test_small_mp4s_are_read_back(side: int, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV writes and reads the MP4")
    clip = np.zeros((1, 5, side, side, 3), np.uint8)
    for frame in range(5):
        clip[0, frame, :, : side * (frame + 1) // 6] = 40 * frame + 60
    parts = Parts(tmp_path, 1, 1)
    parts.save(0, clip)
    found, _ = everything(write_each(tmp_path / "mp4", parts, "mp4"))
    assert found.shape == clip.shape
    assert np.abs(found.astype(int) - clip).mean() < 12


def job(folder: Path, source: Path, *kinds: str) -> Path:
    """A folder as `sample` leaves it, with some of the files of `source`."""
    folder.mkdir()
    (folder / "sampling.json").write_text("{}")
    for name in ("grid.png", "grid.gif"):
        Image.new("RGB", (8, 6)).save(folder / name)
    for kind in kinds:
        if kind == "npz":
            shutil.copy(source.with_suffix(".npz"), folder / "samples.npz")
        else:
            shutil.copytree(source.with_name(f"{source.name}_folder"), folder / f"samples_{kind}")
    return folder


def test_a_job_folder_is_its_samples_and_never_its_picture(files: Path, tmp_path: Path) -> None:
    both = job(tmp_path / "both", files / "images", "npz", "png")
    samples = open_samples(both)
    assert (samples.path, len(samples)) == (both / "samples.npz", 13)
    np.testing.assert_array_equal(everything(job(tmp_path / "png", files / "images", "png"))[0], IMAGES)
    gifs = job(tmp_path / "gif", files / "clips", "gif", "mp4")
    assert (open_samples(gifs).path, len(open_samples(gifs)), open_samples(gifs).labels) == (
        gifs / "samples_gif", 5, None
    )  # fmt: skip
    with pytest.raises(DataError, match="holds no images"):
        open_samples(job(tmp_path / "none", files / "images"))
    (tmp_path / "none" / "parts").mkdir()
    with pytest.raises(DataError, match=r"none: .* not all drawn yet; .* hydra\.run\.dir="):
        open_samples(tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "parts")
    Image.new("RGB", (8, 6)).save(tmp_path / "none" / "0.png")  # somebody else's images, and what is known of them
    assert len(open_samples(tmp_path / "none")) == 1


def test_clips_that_lie_there_twice_are_refused(tmp_path: Path) -> None:
    for name in ("0.gif", "1.gif", "0.mp4", "1.mp4"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"0\.gif and .*0\.mp4, a clip twice.*one folder for each kind"):
        open_samples(tmp_path)


def test_mp4s_need_no_decord_and_say_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("av", reason="PyAV writes and reads the MP4")
    folder = tmp_path / "a:b"  # by a relative path, FFmpeg takes this for a protocol
    folder.mkdir()
    rewritten(encoded(folder / "0.mp4"), [(25, 5)])
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.chdir(tmp_path)
    found, _ = everything(Path("a:b"))
    assert [number(frame) for frame in found[0]] == list(range(5, 30))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"video files are read with PyAV, .* pip install av\.") as error:
        everything(Path("a:b"))
    assert "data." not in str(error.value)  # no key of evaluate


def test_real_videos_are_read(files: Path) -> None:
    pytest.importorskip("av", reason="video files need PyAV")
    samples = open_samples(shared("data/ucf101/videos"), num_frames=4, frame_interval=3)
    (x, labels) = next(samples.batches(1))
    assert (samples.kind, x.shape, labels) == ("clip", (1, 4, 3, 240, 320), None)
    assert 20 < x.float().mean() < 235


def test_one_channel_becomes_three(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", arr_0=IMAGES[..., :1])
    found, labels = everything(tmp_path / "grey.npz")
    np.testing.assert_array_equal(found, np.repeat(IMAGES[..., :1], 3, axis=3))
    assert labels is None


def test_fingerprints_tell_sets_apart(files: Path, tmp_path: Path) -> None:
    path = files / "images.npz"
    assert open_samples(path).fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    for i in range(3):
        Image.fromarray(IMAGES[i]).save(tmp_path / f"{i}.png")
    seen = {open_samples(tmp_path).fingerprint, open_samples(tmp_path).fingerprint}
    assert len(seen) == 1
    (tmp_path / "2.png").rename(tmp_path / "3.png")
    seen.add(open_samples(tmp_path).fingerprint)
    Image.fromarray(IMAGES[5]).save(tmp_path / "3.png")
    seen.add(open_samples(tmp_path).fingerprint)
    assert len(seen) == 3


def test_samples_of_two_sizes_are_refused_naming_both(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    Image.new("RGB", (8, 7)).save(tmp_path / "2.png")
    with pytest.raises(DataError, match=r"1\.png is 8x6 and 2\.png is 8x7.*stats data=image_folder data\.root="):
        list(open_samples(tmp_path).batches(1))


def test_short_clips_are_refused(files: Path) -> None:
    with pytest.raises(DataError, match=r"sample 0 has 7 frames; 4 with an interval of 3 need 10"):
        next(open_samples(files / "clips.npz", 4, 3).batches(1))


def test_what_holds_no_samples_is_refused_in_one_line(files: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "latents.npz", arr_0=IMAGES.astype(np.float32))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "first.npz", arr_0=IMAGES.transpose(0, 3, 1, 2))
    np.savez(tmp_path / "labels.npz", arr_0=IMAGES, arr_1=LABELS[1:])
    for name, claim in (("backwards", (-1, 6, 8, 3)), ("large", (1, 1 << 40, 1 << 40, 3)), ("claims", (13, 6, 8, 3))):
        with zipfile.ZipFile(tmp_path / f"{name}.npz", "w") as archive:
            with archive.open("arr_0.npy", "w") as member:
                head = {"descr": "|u1", "fortran_order": False, "shape": claim}
                np.lib.format.write_array_header_1_0(member, head)
            if name == "claims":
                with archive.open("arr_1.npy", "w") as member:
                    head = {"descr": "<i8", "fortran_order": False, "shape": (1 << 45,)}
                    np.lib.format.write_array_header_1_0(member, head)
    np.savez(tmp_path / "objects.npz", arr_0=np.array([object()]))
    (tmp_path / "cut.npz").write_bytes((files / "images.npz").read_bytes()[:900])
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "mixed" / "1.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "mixed" / "2.gif")
    for name, why in {
        "latents.npz": "float32, not uint8", "stats.npz": "no arr_0", "first.npz": r"\[13, 3, 6, 8\]",
        "labels.npz": r"classes \[12\]", "objects.npz": "object",
        "backwards.npz": r"\[-1, 6", "large.npz": "would have 3,6", "claims.npz": "cannot read",
        "cut.npz": "cannot read", "page.html": "an .npz",
        "empty": "no images", "mixed": "1.png and .*2.gif", "missing": "no such file or folder",
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=why) as error:
            open_samples(tmp_path / name)
        assert re.search(re.escape(name), str(error.value))
        assert "\n" not in str(error.value)


def test_damage_that_shows_while_reading_is_refused(files: Path, tmp_path: Path) -> None:
    content = bytearray((files / "images.npz").read_bytes())
    content[1000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"flipped\.npz: Bad CRC"):
        list(open_samples(tmp_path / "flipped.npz").batches(100))
    (tmp_path / "cut.png").write_bytes((files / "images_folder" / "0000000.png").read_bytes()[:80])
    with pytest.raises(DataError, match=r"cut\.png"):
        list(open_samples(tmp_path).batches(1))


def test_containers_say_whether_they_are_exact(files: Path, tmp_path: Path) -> None:
    assert open_samples(files / "clips.npz").container._asdict() == {
        "container": "npz", "codec": None, "pixel_format": "rgb24", "lossless": True,
    }  # fmt: skip
    gif = open_samples(files / "clips_folder").container
    assert (gif.container, gif.lossless) == ("gif", False)
    assert open_samples(files / "images_folder").container.lossless
    assert open_samples(files / "frames", frames=True).container == open_samples(files / "images_folder").container
    for kind, options, lossless in (("jpg", {}, False), ("webp", {}, False), ("webp", {"lossless": True}, True)):
        folder = tmp_path / f"{kind}{lossless}"
        folder.mkdir()
        Image.fromarray(IMAGES[0]).save(folder / f"0.{kind}", **options)
        assert open_samples(folder).container.lossless is lossless, folder
    shutil.copy(files / "images_folder" / "0000000.png", tmp_path / "jpgFalse")
    assert open_samples(tmp_path / "jpgFalse").container.lossless is False, "one lossy file is enough"


def test_an_mp4_is_lossy(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV writes MP4s: the extra `mp4`")
    (tmp_path / "a:b").mkdir()
    write_mp4(tmp_path / "a:b" / "0.mp4", CLIPS[0])
    assert tuple(open_samples(tmp_path / "a:b").container) == ("mp4", "h264", "yuv420p", False)


@pytest.mark.parametrize("inside", [True, False])
def test_the_exact_file_is_preferred_and_said_to_be(
    inside: bool, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "samples_gif"
    shutil.copytree(files / "clips_folder", folder)
    shutil.copy(files / "clips.npz", (folder if inside else tmp_path) / "samples.npz")
    x, _ = everything(folder)
    assert np.array_equal(x, CLIPS)
    assert "samples.npz is read in place of" in capsys.readouterr().out
    (folder / "0000000.gif").unlink()  # now they are other samples
    assert open_samples(folder).container.container == "gif"


def test_an_exact_file_of_other_samples_is_not_taken(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(files / "clips_folder", tmp_path / "samples")
    np.savez(tmp_path / "samples.npz", CLIPS[:, :, :4, :4])
    assert open_samples(tmp_path / "samples").container.container == "gif"
    assert "samples.npz is not read in place of" in capsys.readouterr().out
    pytest.importorskip("av", reason="PyAV writes MP4s: the extra `mp4`")
    odd = CLIPS[:, :, :5, :7]  # an MP4 of these has even sides
    for i, clip in enumerate(odd):
        (tmp_path / "mp4").mkdir(exist_ok=True)
        write_mp4(tmp_path / "mp4" / f"{i}.mp4", clip)
    np.savez(tmp_path / "mp4" / "samples.npz", odd)
    assert open_samples(tmp_path / "mp4").container.container == "npz"


def test_a_job_with_both_says_which_is_read(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(files / "clips_folder", tmp_path / "samples_gif")
    shutil.copy(files / "clips.npz", tmp_path / "samples.npz")
    (tmp_path / "sampling.json").write_text("{}")
    assert open_samples(tmp_path).container.container == "npz"
    assert "not samples_gif" in capsys.readouterr().out
