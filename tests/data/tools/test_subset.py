"""Small parts of data sets: folders that load like the whole, and of which nothing stays where they cannot be made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from neural_rdm.core.errors import ConfigError, UserError
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.tools.subset import make_subset
from neural_rdm.prepare import prepare
from neural_rdm.runs import build
from tests.test_prepare import LAYOUTS, arguments, class_folders, journeydb, report, sky, two_splits, ucf
from tests.test_preview import _own_cache, composed  # noqa: F401  (a fixture)


@pytest.mark.parametrize(("layout", "copy"), [*((name, False) for name in LAYOUTS), ("tiny", True), ("sky", True)])
def test_a_small_part_loads_like_the_whole(layout: str, copy: bool, tmp_path: Path) -> None:
    choice, make, _, sizes = LAYOUTS[layout]
    root, part = make(tmp_path / "set"), tmp_path / "part"
    cfg = composed(
        "prepare", *arguments(choice, root), "subset=2", f"subset_dir={part}", f"copy={str(copy).lower()}", "decode=2"
    )
    assert prepare(cfg, tmp_path / "out") == 0
    found = report(tmp_path / "out")
    assert (found["root"], [row["found"] for row in found["splits"]]) == (str(part), list(sizes))
    assert found["missing"] == []
    assert not [text for text in found["warnings"] if "whole data set" in text]
    whole, small = (build.build(composed("prepare", *arguments(choice, r)).data, "data") for r in (root, part))
    for data in (whole, small):
        data.setup()
    assert small.class_names == whole.class_names
    seen = {
        (str(s.get("y")), tuple(s["x"].flatten().tolist()))
        for s in (whole.train_set.load(i, 0) for i in range(len(whole.train_set)))
    }
    for i in range(sizes[0]):
        sample = small.train_set.load(i, 0)
        assert (str(sample.get("y")), tuple(sample["x"].flatten().tolist())) in seen
    files = list(part.rglob("*.[jp][pn]g"))
    assert files
    assert all(path.is_symlink() is not copy for path in files)


def test_subsets_go_into_new_folders_outside_of_the_data(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "set")
    for target, problem in ((tmp_path, "not empty"), (root / "part", "lies in data.root")):
        cfg = composed("prepare", *arguments("image_folder", root), "subset=1", f"subset_dir={target}", "decode=1")
        with pytest.raises(ConfigError, match=problem):
            prepare(cfg, tmp_path / "out")
    (tmp_path / "file").touch()
    cfg = composed("prepare", *arguments("image_folder", root), "subset=1", f"subset_dir={tmp_path}/file/x", "decode=1")
    with pytest.raises(UserError, match=r"cannot write .*file/x.* Choose another subset_dir"):
        prepare(cfg, tmp_path / "out")
    with pytest.raises(ConfigError, match="pass subset_dir=DIR as well"):
        composed("prepare", "data=digits", "subset=3")
    with pytest.raises(ConfigError, match="pass subset=N as well"):
        composed("prepare", "data=digits", "subset_dir=x")


def test_a_part_of_lists_with_bad_lines(tmp_path: Path) -> None:
    root = journeydb(tmp_path / "journeydb")
    file = root / "train" / "train_anno.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes() + b'{"img_path":\n[]\n')
    arguments_ = [*arguments("journeydb", root), "data.max_bad_fraction=0.4", "decode=1"]
    cfg = composed("prepare", *arguments_, "subset=4", f"subset_dir={tmp_path / 'a'}")
    assert prepare(cfg, tmp_path / "out") == 0
    assert [row["missing"] for row in report(tmp_path / "out")["splits"]] == [0, 0]
    assert len([json.loads(line) for line in (tmp_path / "a/train/train_anno.jsonl").open(encoding="utf-8")]) == 4
    root = two_splits(tmp_path / "coco")
    file = root / "annotations" / "captions_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"][3] = 3
    file.write_text("\ufeff" + json.dumps(content), encoding="utf-8")
    arguments_ = [*arguments("coco", root), "data.max_bad_fraction=0.4", "decode=1"]
    assert prepare(composed("prepare", *arguments_, "subset=2", f"subset_dir={tmp_path / 'b'}"), tmp_path / "out") == 0
    assert [text for text in report(tmp_path / "out")["warnings"] if "all but black" not in text] == []
    root = ucf(tmp_path / "ucf")
    file = root / "ucfTrainTestlist" / "trainlist01.txt"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    arguments_ = [*arguments("ucf101", root), "decode=1"]
    assert prepare(composed("prepare", *arguments_, "subset=2", f"subset_dir={tmp_path / 'c'}"), tmp_path / "out") == 0
    assert [row["missing"] for row in report(tmp_path / "out")["splits"]] == [0, 0]


def test_nothing_stays_of_a_part_that_could_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "set")
    full = OSError(28, "No space left on device")

    def refuse(self: Path, target: Path) -> None:
        raise full

    cfg = composed("prepare", *arguments("image_folder", root), "subset=1", f"subset_dir={tmp_path / 'part'}")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "symlink_to", refuse)
        with pytest.raises(
            UserError,
            match=r"cannot write .*/part: the disk is full \(No space left on device\).* Choose another subset_dir",
        ):
            prepare(cfg, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    (tmp_path / "part").mkdir()  # an empty one is taken
    assert prepare(cfg, tmp_path / "out") == 0


def test_known_broken_clips_are_not_chosen_for_a_part(tmp_path: Path) -> None:
    root = sky(tmp_path / "set")
    for file in (root / "sky_train" / "v0").rglob("*.[jp]*g"):
        file.write_bytes(b"no picture")
    cfg = composed("prepare", *arguments("sky", root), "subset=8", f"subset_dir={tmp_path / 'part'}", "decode=99")
    assert prepare(cfg, tmp_path / "out") == 0
    found = report(tmp_path / "out")
    assert found["splits"][0]["found"] == 6
    assert found["broken"] == {}


def test_loops_and_links_that_lead_nowhere_beside_the_samples(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i in range(3):
        (root / "a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / "a" / f"{i}.png")
    (root / "loop").mkdir()
    (root / "loop" / "again").symlink_to("..")
    (root / "gone.txt").symlink_to("nowhere")
    (root / "words.txt").write_text("a")
    data = ImageFolder(root, 8, 1, max_bad_fraction=0.9)
    data.setup()
    assert make_subset(data, root, tmp_path / "part", 2) == {"train": 2}
    assert sorted(path.name for path in (tmp_path / "part").rglob("*.*")) == ["0.png", "1.png", "words.txt"]
