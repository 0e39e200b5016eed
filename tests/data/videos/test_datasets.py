"""Clips: which frames, from what layouts, equal for every split of the work; and what broken ones say."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.videos.clips import frame_numbers
from neural_rdm.data.videos.datasets import UCF101, SkyTimelapse, TaichiHD
from neural_rdm.data.videos.files import find_videos
from tests.helpers import shared


def frames(folder: Path, count: int, size: tuple[int, int] = (20, 16), first: int = 0) -> Path:
    """A folder of frames whose grey level is 10 times their number."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", size, (10 * (first + i),) * 3).save(folder / f"frame_{i}.png")
    return folder


def levels(x: torch.Tensor) -> list[int]:
    """The numbers of the frames of a clip made of `frames`."""
    return [round((127.5 * v + 127.5) / 10) for v in x.mean(dim=(1, 2, 3)).tolist()]


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 5), st.floats(0, 1, exclude_max=True))
def test_chosen_frames_exist_ascend_and_keep_the_interval_where_it_fits(
    length: int, count: int, interval: int, u: float
) -> None:
    chosen = frame_numbers(length, count, interval, u)
    assert len(chosen) == count
    assert chosen.min() >= 0
    assert chosen.max() < length
    steps = np.diff(chosen)
    if (count - 1) * interval < length:
        assert (steps == interval).all()
    elif count <= length:
        assert len(set(steps.tolist())) <= 1
        assert (steps >= 1).all()
    else:
        assert (steps >= 0).all()
        assert chosen.tolist() == sorted(chosen.tolist())


def test_every_start_is_possible() -> None:
    starts = {int(frame_numbers(10, 3, 3, u)[0]) for u in np.linspace(0, 0.999, 50)}
    assert starts == {0, 1, 2, 3}


@pytest.fixture
def sky(tmp_path: Path) -> Path:
    for i in range(3):
        frames(tmp_path / "sky_train" / f"v{i}" / f"v{i}_1", 20)
    frames(tmp_path / "sky_test" / "w" / "w_1", 20)
    return tmp_path


def test_sky_training_clips_differ_by_position_and_validation_is_fixed(sky: Path) -> None:
    data = SkyTimelapse(sky, image_size=8, num_frames=4, frame_interval=3, batch_size=2)
    data.configure(seed=1)
    assert (data.train_size, data.val_size) == (3, 1)
    assert data.sample_shape == (4, 3, 8, 8)
    train = data.train_set
    clips = [train.load(0, key)["x"] for key in range(20)]
    assert all(c.shape == (4, 3, 8, 8) and c.dtype == torch.float32 for c in clips)
    assert all(np.diff(levels(c)).tolist() == [3, 3, 3] for c in clips)
    assert len({levels(c)[0] for c in clips}) > 4
    assert torch.equal(train.load(0, 7)["x"], clips[7])
    assert levels(data.val_set.load(0, 3)["x"]) == levels(data.val_set.load(0, 9)["x"]) == [5, 8, 11, 14]
    assert "y" not in train.load(0, 0)


def test_one_frame_is_an_image(sky: Path) -> None:
    data = SkyTimelapse(sky, image_size=8, num_frames=1, batch_size=2)
    data.setup()
    assert data.sample_shape == (3, 8, 8) == tuple(data.train_set.load(1, 5)["x"].shape)


def test_images_for_joint_training_follow_the_clip_and_come_from_anywhere(tmp_path: Path) -> None:
    for i, first in enumerate((0, 12)):
        frames(tmp_path / "train" / f"v{i}", 12, first=first)
    data = TaichiHD(tmp_path, image_size=8, num_frames=3, frame_interval=1, image_frames=5, batch_size=2, flip=False)
    data.setup()
    assert data.sample_shape == (8, 3, 8, 8)
    seen: set[int] = set()
    for key in range(12):
        numbers = levels(data.train_set.load(0, key)["x"])
        assert np.diff(numbers[:3]).tolist() == [1, 1]
        assert max(numbers[:3]) < 12
        seen |= set(numbers[3:])
    assert min(seen) < 12 <= max(seen)


def test_ucf_reads_the_official_lists_with_their_line_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = shared("data/ucf101/videos/v_ApplyEyeMakeup_g01_c01.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 ApplyEyeMakeup\r\n2 Archery\r\n")
    (lists / "trainlist01.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi 2\r\nApplyEyeMakeup/absent.avi 1\r\n")
    (lists / "testlist01.txt").write_bytes(b"ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n")
    videos = tmp_path / "UCF-101"
    videos.mkdir()
    for name in ("v_Archery_g01_c01.avi", "v_ApplyEyeMakeup_g01_c01.avi"):
        shutil.copy(real, videos / name)
    data = UCF101(tmp_path, image_size=32, num_frames=4, image_frames=1, batch_size=2)
    data.setup()
    assert "1 of 2 videos are there" in capsys.readouterr().out
    sample = data.train_set.load(0, 0)
    assert sample["x"].shape == (5, 3, 32, 32)
    assert sample["y"].tolist() == [1, 1]
    assert data.val_set.load(0, 0)["y"] == 0
    assert (sample["x"].min() >= -1, sample["x"].max() <= 1) == (True, True)
    assert sample["x"].std() > 0.1


def test_official_ucf_lists_in_full() -> None:
    root = Path(shared("data/ucf101"))
    data = UCF101(root, image_size=32, num_frames=4, batch_size=2)
    with pytest.raises(DataError, match="no video of trainlist01"):  # its one clip belongs to the test list
        data.setup()


def test_ucf_labels_are_the_numbers_of_the_class_list(tmp_path: Path) -> None:
    for i, name in enumerate(("v_Archery_g01_c01", "v_Basketball_g01_c01", "v_Archery_g02_c01")):
        frames(tmp_path / "UCF-101" / name, 2, first=i)  # folders of frames by the names of the videos
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"\xef\xbb\xbf2 Archery\r\n\r\n1 Basketball\r\n")
    (lists / "trainlist02.txt").write_bytes(b"Archery/v_Archery_g01_c01.avi 2\r\nBasketball/v_Basketball_g01_c01.avi 1")
    (lists / "testlist02.txt").write_bytes(b"Archery/v_Archery_g02_c01.avi\n")
    data = UCF101(tmp_path, split=2, image_size=8, num_frames=2, batch_size=1)
    data.setup()
    assert data.class_names == ["Basketball", "Archery"]
    assert [data.train_set.load(i, 0)["y"] for i in range(2)] == [1, 0]
    assert data.val_set.load(0, 0)["y"] == 1
    for name, text, message in (
        ("classInd.txt", b"1 Basketball\n3 Archery\n", "does not number its classes from 1 on"),
        ("classInd.txt", b"Archery\n", "is not a number and a name"),
        ("classInd.txt", b"1 Archery\n", "no class Basketball"),
        ("classInd.txt", b"\xff\xfe1", "cannot read"),
    ):
        (lists / name).write_bytes(text)
        broken = UCF101(tmp_path, split=2, image_size=8, num_frames=2, batch_size=1)
        with pytest.raises(DataError, match=message):
            broken.setup()
    with pytest.raises(ConfigError, match="split=4"):
        UCF101(tmp_path, split=4)


def test_loops_of_links_and_pipes_are_passed_over(tmp_path: Path) -> None:
    frames(tmp_path / "sky_train" / "v", 2)
    frames(tmp_path / "sky_test" / "w", 2)
    (tmp_path / "sky_train" / "loop").symlink_to("..")
    (tmp_path / "sky_train" / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(tmp_path / "sky_train" / "pipe.mp4")
    assert [p.name for p in find_videos(tmp_path / "sky_train")[0]] == ["gone.mp4", "v"]


def test_linked_folders_of_lists_and_videos_are_found(tmp_path: Path) -> None:
    lists, videos, root = tmp_path / "lists", tmp_path / "videos", tmp_path / "root"
    lists.mkdir()
    root.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n")
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    (lists / "testlist01.txt").write_text("")
    frames(videos / "v_Archery_g01_c01", 2)
    (root / "ucfTrainTestlist").symlink_to(lists)
    (root / "UCF-101").symlink_to(videos)
    data = UCF101(root, image_size=8, num_frames=2, batch_size=1)
    assert (data.train_size, data.class_names) == (1, ["Archery"])


TABLE = "video_id,start,end,bbox,fps,width,height,partition\r\n"


def test_taichi_is_split_by_its_table_where_the_folders_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, name in enumerate(("a-B#000080#000300.mp4", "a-B#000575#000717", "c_d#000001#000009.mp4", "other")):
        frames(tmp_path / "all" / name, 4, first=4 * i)  # the script's png format: folders called .mp4
    rows = ["a-B,80,300,1-2-3-4,30,9,9,train", "c_d,1,9,1-2-3-4,30,9,9,test", "a-B,575,717,1-2-3-4,30,9,9,train"]
    (tmp_path / "pairs.csv").write_text("distance,source,driving,frame\n")
    (tmp_path / "taichi-metadata.csv").write_text(TABLE + "\r\n".join([*rows, "gone,1,2,1-2-3-4,30,9,9,train"]))
    data = TaichiHD(tmp_path, image_size=8, num_frames=4, frame_interval=1, batch_size=1)
    data.setup()
    assert (data.train_size, data.val_size) == (2, 1)
    assert levels(data.train_set.load(1, 0)["x"]) == [4, 5, 6, 7]
    assert levels(data.val_set.load(0, 0)["x"]) == [8, 9, 10, 11]
    assert "taichi-metadata.csv: 2 of 3 videos are there" in capsys.readouterr().out
    (tmp_path / "taichi-metadata.csv").write_text(TABLE + "gone,1,2,1-2-3-4,30,9,9,train\n")
    data = TaichiHD(tmp_path, image_size=8, num_frames=4, batch_size=1)
    assert data.train_size == 4  # none of them is of the table
    (tmp_path / "taichi-metadata.csv").write_text(TABLE + "gone,x,2,1-2-3-4,30,9,9,train\n")
    with pytest.raises(DataError, match=r"taichi-metadata.csv is not a table of clips"):
        TaichiHD(tmp_path, image_size=8, batch_size=1).setup()


def test_the_official_table_of_taichi_has_its_clips() -> None:
    data = TaichiHD(shared("data/taichi"), image_size=16, num_frames=4, batch_size=1)
    data.setup()
    assert data.train_size == 1  # none of the table is there: the video beside it, and not the stills


def test_the_limit_also_limits_what_is_looked_at_and_drawn_from(sky: Path) -> None:
    data = SkyTimelapse(sky, image_size=8, num_frames=2, image_frames=4, batch_size=1, limit=2)
    assert (data.train_size, data.val_size, len(data.train_set)) == (2, 1, 2)


def test_extra_images_are_never_of_a_video_that_is_known_to_be_broken(tmp_path: Path) -> None:
    frames(tmp_path / "train" / "a", 6)
    (tmp_path / "train" / "b.mp4").touch()
    frames(tmp_path / "train" / "c", 6, first=6)
    data = TaichiHD(tmp_path, image_size=8, num_frames=2, image_frames=8, batch_size=1)
    data.setup()
    seen = [levels(data.train_set.load(0, key)["x"])[2:] for key in range(8)]
    assert min(map(min, seen)) < 6 <= max(map(max, seen))
    with pytest.raises(ConfigError, match="between 0 and 31"):
        TaichiHD(tmp_path, image_frames=32)
    with pytest.raises(ConfigError, match=r"decoder=opencv is not one of decord, pyav, torchcodec"):
        TaichiHD(tmp_path, decoder="opencv")


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_every_decoder_gives_the_same_clips(decoder: str, tmp_path: Path) -> None:
    pytest.importorskip({"pyav": "av"}.get(decoder, decoder))
    (tmp_path / "train").mkdir()
    for name in ("data/taichi/lia_driving1.mp4", "data/ucf101/videos/v_ApplyEyeMakeup_g01_c01.avi"):
        (tmp_path / "train" / Path(name).name).symlink_to(shared(name))
    made = {}
    for each in ("decord", decoder):
        data = TaichiHD(tmp_path, image_size=32, num_frames=5, batch_size=2, num_workers=2, decoder=each)
        data.configure(seed=4)
        made[each] = next(iter(data.train_dataloader()))["x"]
    assert (made["decord"] - made[decoder]).abs().mean() < 0.01


@pytest.mark.parametrize("workers", [0, 2])
def test_real_videos_come_through_workers(workers: int, tmp_path: Path) -> None:
    real = Path(shared("data/taichi/lia_driving1.mp4"))
    (tmp_path / "train").mkdir()
    for i in range(3):
        shutil.copy(real, tmp_path / "train" / f"{i}.mp4")
    data = TaichiHD(tmp_path, image_size=32, num_frames=4, batch_size=2, num_workers=workers)
    data.configure(seed=3)
    batches = iter(data.train_dataloader())
    found = [next(batches)["x"] for _ in range(3)]
    assert found[0].shape == (2, 4, 3, 32, 32)
    if workers:
        alone = TaichiHD(tmp_path, image_size=32, num_frames=4, batch_size=2)
        alone.configure(seed=3)
        assert torch.equal(next(iter(alone.train_dataloader()))["x"], found[0])


def test_broken_videos_are_one_sentence_with_their_path(tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("decord")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "bad.mp4").write_bytes(b"not a video" * 100)
    data = TaichiHD(tmp_path, image_size=8, batch_size=1)
    data.setup()
    with pytest.raises(BrokenSample, match=r"cannot read .*bad\.mp4: cannot be decoded \(") as error:
        data.train_set.load(0, 0)
    assert error.value.index == 0


@pytest.mark.parametrize("kind", [SkyTimelapse, TaichiHD, UCF101])
def test_wrong_roots_show_the_layout(kind: type[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)no folder .*ROOT/"):
        kind(tmp_path / "absent").setup()
    with pytest.raises(DataError, match=r"(?s)ROOT/"):
        kind(tmp_path).setup()
    with pytest.raises(ConfigError, match="images follow clips"):
        kind(tmp_path, num_frames=1, image_frames=2)


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    frames(tmp_path / "a", 2)
    frames(tmp_path / ".cache", 2)
    (tmp_path / "b.mp4").touch()
    (tmp_path / "._b.mp4").touch()
    assert [p.name for p in find_videos(tmp_path)[0]] == ["a", "b.mp4"]
