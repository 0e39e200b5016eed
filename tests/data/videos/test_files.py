"""Which videos lie in a folder: not what lies beside them, no video twice, no optical flow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.videos.datasets import UCF101, TaichiHD
from neural_rdm.data.videos.files import find_videos
from neural_rdm.media.decoders import FrameFolder
from neural_rdm.media.frames import frames_of, is_flow
from tests.data.videos.test_datasets import TABLE


def picture(path: Path, level: int = 99) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 16, 3), level, np.uint8)).save(path)


def frames(folder: Path, count: int = 3, level: int = 99, name: str = "{:04d}.png") -> Path:
    for k in range(count):
        picture(folder / name.format(k), level)
    return folder


def videos(*paths: Path) -> None:
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video %d" % number)


def found(top: Path, is_root: bool = False) -> list[str]:
    return [path.relative_to(top).as_posix() for path in find_videos(top, is_root)[0]]


def test_what_lies_beside_videos_is_no_video(tmp_path: Path) -> None:
    videos(tmp_path / "id2.mp4", tmp_path / "id10.mp4", tmp_path / "deep" / "a.avi")
    picture(tmp_path / "id2.jpg")
    frames(tmp_path / "id10")  # as the video beside it
    frames(tmp_path / "frames" / "A")  # as deep/a.avi
    frames(tmp_path / "id2" / "rgb")  # below a folder that bears its name
    frames(tmp_path / "thumbs", 2)
    for name in ("id2.jpg", "a.jpg"):
        picture(tmp_path / "small" / name)  # thumbnails whatever their folder is called
    frames(tmp_path / "other")
    picture(tmp_path / "other" / "cover.jpg")
    assert found(tmp_path) == ["deep/a.avi", "id2.mp4", "id10.mp4", "other"]
    said = "\n".join(find_videos(tmp_path)[1])
    for what in ("1 pictures beside video files", "3 folders of frames left out for the video files", "thumbnails",
                 "picture of the whole video"):  # fmt: skip
        assert what in said


def test_pictures_made_of_videos_are_no_video(tmp_path: Path) -> None:
    videos(tmp_path / "id1.mp4", tmp_path / "id10.mp4")
    frames(tmp_path / "id1_frames")
    frames(tmp_path / "keyframes", name="id10_{:02d}.png")
    frames(tmp_path / "id100")  # another video
    frames(tmp_path / "other" / "masks", name="{:04d}.jpg")  # of the frames above it
    frames(tmp_path / "other")
    frames(tmp_path / "scene")
    frames(tmp_path / "scene" / "closer", 5)  # other frames
    assert found(tmp_path) == ["id1.mp4", "id10.mp4", "id100", "other", "scene", "scene/closer"]
    said = "\n".join(find_videos(tmp_path)[1])
    assert all(what in said for what in ("id1_frames", "keyframes", "masks"))


def test_stills_beside_folders_of_frames_are_no_video(tmp_path: Path) -> None:
    frames(tmp_path / "a")
    frames(tmp_path / "b" / "b_1")
    picture(tmp_path / "still1.png")
    picture(tmp_path / "still2.png")
    picture(tmp_path / "b" / "b_1.png")  # a thumbnail of the clip beside it
    assert found(tmp_path) == found(tmp_path, is_root=True) == ["a", "b/b_1"]
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    assert found(tmp_path) == ["."]  # a folder of a split may be one clip
    assert found(tmp_path, is_root=True) == []  # a data set is not


def test_stills_alone_at_the_root_are_not_trained_on(tmp_path: Path) -> None:
    frames(tmp_path, 3)
    frames(tmp_path / "test" / "c")
    with pytest.raises(DataError, match="nothing to train on"):
        TaichiHD(tmp_path, image_size=8, num_frames=2, batch_size=1).setup()


def test_a_video_file_of_two_names_counts_once(tmp_path: Path) -> None:
    videos(tmp_path / "b.mp4")
    (tmp_path / "a.mp4").symlink_to("b.mp4")
    os.link(tmp_path / "b.mp4", tmp_path / "c.mp4")
    (tmp_path / "latest").symlink_to(".")
    frames(tmp_path / "z")
    (tmp_path / "link").symlink_to("z")
    assert found(tmp_path) == ["b.mp4", "z"]
    assert "2 second names of video files" in "\n".join(find_videos(tmp_path)[1])


@pytest.mark.parametrize(
    "names",
    [("a.mp4", "a.avi"), ("x/q#000001#000009.mp4", "y/q#000001#000009.mp4"), ("x/q#1#9/0.png", "y/q#1#9/0.png")],
)
def test_two_that_may_be_the_video_are_both_named(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        (picture if name.endswith("png") else videos)(tmp_path / name)
    with pytest.raises(DataError, match=r"which of these is the video") as error:
        find_videos(tmp_path)
    assert all(name.removesuffix("/0.png") in str(error.value) for name in names)


def test_frames_count_once_and_in_the_order_of_their_values(tmp_path: Path) -> None:
    for k in range(4):
        picture(tmp_path / "two" / f"{k}.jpg", 20 * k)
        picture(tmp_path / "two" / f"{k}.png", 20 * k)
        picture(tmp_path / "tsn" / f"img_{k:05d}.jpg")
        for part in "xy":
            picture(tmp_path / "tsn" / f"flow_{part}_{k:05d}.jpg")
            picture(tmp_path / "flow_only" / f"flow_{part}_{k:05d}.jpg")
    for name in ("t=-1.png", "t=0.5.png", "t=0.10.png", "t=10.png", "t=9.png", "._t=3.png", "Thumbs.db"):
        picture(tmp_path / "values" / (name if name.endswith("png") else "cover.png"))
    (tmp_path / "values" / "t=11.png").symlink_to("t=10.png")
    assert frames_of(tmp_path / "two").names == ["0.png", "1.png", "2.png", "3.png"]
    assert frames_of(tmp_path / "tsn").names == [f"img_{k:05d}.jpg" for k in range(4)]
    assert frames_of(tmp_path / "values").names == ["t=-1.png", "t=0.10.png", "t=0.5.png", "t=9.png", "t=10.png"]
    assert found(tmp_path) == ["tsn", "two", "values"]
    levels = [int(frame.mean()) for frame in FrameFolder(tmp_path / "two").read(range(4))]
    assert levels == [0, 20, 40, 60]


def test_two_series_in_one_folder_are_a_broken_sample(tmp_path: Path) -> None:
    for name in ("image_{}.png", "mask_{}.png"):
        frames(tmp_path / "c", name=name)
    assert found(tmp_path) == ["c"]
    with pytest.raises(BrokenSample, match=r"several series of frames .*image_0\.png and mask_0\.png"):
        FrameFolder(tmp_path / "c")


def test_names_of_optical_flow() -> None:
    assert all(map(is_flow, ("flow", "Flow_X", "tvl1_flow", "optical-flow", "flow_v")))
    assert all(map(is_flow, ("OpticalFlow_u", "ucf101_tvl1_flow", "UCF101_flow", "dense_flow", "my_optical_flow")))
    assert not any(map(is_flow, ("u", "lava_flow", "flower", "jpegs_256")))
    assert is_flow("u", inside_flow=True)


def ucf(root: Path, names: tuple[str, ...] = ("v_Archery_g01_c01",), folder: str = "Archery") -> Path:
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 HandstandPushups\n")
    (lists / "trainlist01.txt").write_text("".join(f"{folder}/{name}.avi 1\n" for name in names))
    (lists / "testlist01.txt").write_text("")
    return root


def trained(root: Path) -> list[str]:
    data = UCF101(root, image_size=8, num_frames=2, batch_size=1)
    data.setup()
    return [os.path.relpath(path, root) for path in data.train_set.origins()]  # type: ignore[union-attr]


@pytest.mark.parametrize("flow", [("tvl1_flow/u", "tvl1_flow/v"), ("u", "v"), ("flow_x", "flow_y"), ("Flow",)])
def test_ucf_never_trains_on_optical_flow(flow: tuple[str, ...], tmp_path: Path) -> None:
    ucf(tmp_path)
    for folder in flow:
        frames(tmp_path / folder / "v_Archery_g01_c01", level=50)
    with pytest.raises(DataError, match="no video of trainlist01"):
        trained(tmp_path)
    frames(tmp_path / "jpegs_256" / "v_Archery_g01_c01", level=200)
    assert trained(tmp_path) == ["jpegs_256/v_Archery_g01_c01"]
    frames(tmp_path / "jpegs_128" / "v_Archery_g01_c01", level=200)
    with pytest.raises(DataError, match=r"which of these is the video v_Archery_g01_c01: .*jpegs_128.*, .*jpegs_256"):
        trained(tmp_path)


def test_ucf_takes_the_video_and_not_a_stray_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos(ucf(tmp_path) / "UCF-101" / "Archery" / "v_Archery_g01_c01.avi")
    for folder in ("Archery", "../a", "../z"):
        frames(tmp_path / "UCF-101" / folder / "v_Archery_g01_c01", 5)
    assert trained(tmp_path) == ["UCF-101/Archery/v_Archery_g01_c01.avi"]
    assert "3 folders of frames left out for the video files of the same name" in capsys.readouterr().out
    videos(tmp_path / "copy" / "one.mp4", tmp_path / "copy" / "v_Archery_g01_c01.mp4")
    with pytest.raises(DataError, match="which of these is the video"):
        trained(tmp_path)


def test_names_of_ucf_are_compared_without_case(tmp_path: Path) -> None:
    ucf(tmp_path, ("v_HandStandPushups_g01_c01",), folder="HandStandPushups")
    frames(tmp_path / "all" / "v_HandstandPushups_g01_c01")
    data = UCF101(tmp_path, image_size=8, num_frames=2, batch_size=1)
    data.setup()
    assert (data.train_size, data.class_names) == (1, ["Archery", "HandstandPushups"])
    assert data.train_set.load(0, 0)["y"] == 1  # type: ignore[union-attr]
    assert [entry.missing for entry in data.listings()] == [[], []]


def test_names_that_differ_in_case_alone_are_two_clips_of_taichi(tmp_path: Path) -> None:
    rows = ["aB,1,9,1-2-3-4,30,9,9,train", "ab,1,9,1-2-3-4,30,9,9,train"]  # ids of YouTube know case
    (tmp_path / "taichi-metadata.csv").write_text(TABLE + "\r\n".join(rows))
    for name in ("aB", "ab"):
        frames(tmp_path / "all" / f"{name}#000001#000009")
    data = TaichiHD(tmp_path, image_size=8, num_frames=2, batch_size=1)
    assert data.train_size == 2
