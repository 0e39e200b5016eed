"""Looking into folders: their order, links and loops, second names, and what nobody put there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neural_rdm.core.listing import file_names, is_hidden, natural_order, walk


@pytest.mark.parametrize(
    "names",
    [
        ["frame_9.png", "frame_10.png"],
        ["t=-2", "t=-1.5", "t=-0.5", "t=0", "t=0.10", "t=0.5", "t=1", "t=10"],
        ["t=0.0", "t=1e-05", "t=0.001"],
        ["frame_-10.jpg", "frame_-9.jpg", "frame_0.jpg"],
        ["-1.png", "0.png", "2.png", "10.png"],
        ["a-9", "a-10"],  # no sign: it joins
        ["2024-01-15", "2024-02-03", "2024-10-01"],
        ["2024.1.5", "2024.1.10", "2024.10.5"],
        ["shot1.1.png", "shot1.2.png", "shot1.10.png"],  # counters, since 1.1 and 1.10 are not one frame
        ["a/2/1", "a/10/1", "b/1/1"],
        ["0007", "8", "00009", "123456789012345678901234567890"],
        ["a2", "a²"],
    ],
)
def test_names_are_in_the_order_of_their_numbers(names: list[str]) -> None:
    assert natural_order(reversed(names)) == names
    assert natural_order(sorted(names)) == names
    assert natural_order(map(Path, sorted(names))) == list(map(Path, names))


def test_what_systems_leave_behind_is_hidden() -> None:
    assert all(map(is_hidden, ("._a.jpg", ".DS_Store", "Thumbs.db", "__MACOSX", "desktop.ini", "@eaDir", ".cache")))
    assert not any(map(is_hidden, ("a.jpg", "thumbs", "_a", "macosx")))


def test_a_file_is_listed_once_by_the_name_that_is_no_link(tmp_path: Path) -> None:
    for name in ("b.png", "c.png", "._b.png", "other.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "a.png").symlink_to("c.png")
    os.link(tmp_path / "b.png", tmp_path / "d.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "linked.png").symlink_to("folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    names, again, marks = file_names(tmp_path, lambda name: name.endswith(".png"))
    assert names == ["b.png", "c.png", "gone.png", "self.png"]
    assert again == {"a.png": "c.png", "d.png": "b.png"}
    assert len(set(marks)) == 4


def test_a_walk_takes_each_folder_once_through_links_and_loops(tmp_path: Path) -> None:
    (tmp_path / "top" / "b" / "inner").mkdir(parents=True)
    (tmp_path / "beside" / "deep").mkdir(parents=True)
    (tmp_path / "top" / "b" / "inner" / "f").touch()
    (tmp_path / "beside" / "deep" / "g").touch()
    for name, target in (("a", ".."), ("b/loop", "../b"), ("c", "../beside"), ("d", "../beside/deep"), ("e", "gone")):
        (tmp_path / "top" / name).symlink_to(target)
    found = [os.path.relpath(folder, tmp_path / "top") for folder, _, _ in walk(tmp_path / "top")]
    assert found == [".", "b", "b/inner", "c", "c/deep"]
    shorter = []
    for folder, folders, _ in walk(tmp_path / "top"):
        shorter.append(os.path.relpath(folder, tmp_path / "top"))
        folders[:] = [name for name in folders if name != "b"]
    assert shorter == [".", "c", "c/deep"]


def test_a_folder_is_called_by_its_own_name_and_not_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "z" / "clip").mkdir(parents=True)
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "to").symlink_to("../z/clip")
    (tmp_path / "__MACOSX").mkdir()
    assert [os.path.relpath(folder, tmp_path) for folder, _, _ in walk(tmp_path)] == [".", "b", "z", "z/clip"]
