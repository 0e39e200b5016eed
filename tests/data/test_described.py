"""What label k means, and which samples there were, belong to a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.described import check_same, described
from neural_rdm.data.images.image_folder import ImageFolder


def pictures(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8)).save(root / name)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = [f"{split}/{name}/{i}.png" for split in ("train", "val") for name in ("cat", "dog") for i in range(3)]
    return pictures(tmp_path / "pets", *names)


def facts(root: Path) -> dict[str, object]:
    data = ImageFolder(root, 8, 2)
    data.setup()
    return json.loads(json.dumps(described(data)))


def test_it_is_the_same_wherever_the_data_are(root: Path, tmp_path: Path) -> None:
    held = facts(root)
    assert held["class_names"] == ["cat", "dog"]
    assert held["num_classes"] == 2
    assert {held[split]["samples"] for split in ("train", "val")} == {6}  # type: ignore[index]
    root.rename(tmp_path / "moved")
    check_same(held, facts(tmp_path / "moved"))


def test_another_meaning_of_a_label_is_refused(root: Path) -> None:
    held = facts(root)
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "zebra")
    with pytest.raises(ConfigError, match=r"label 0 means cat in the run, but dog in the data.*data\.root=DIR"):
        check_same(held, facts(root))
    pictures(root, "train/ant/1.png")
    with pytest.raises(ConfigError, match="the data have 3 classes, but the run 2"):
        check_same(held, facts(root))


def test_other_samples_are_refused_with_the_key_that_accepts_them(root: Path) -> None:
    held = facts(root)
    (root / "train" / "dog" / "2.png").rename(root / "train" / "dog" / "7.png")
    with pytest.raises(ConfigError, match=r"the 6 training samples are not those.*accept_data=true"):
        check_same(held, facts(root))
    (root / "train" / "dog" / "7.png").unlink()
    with pytest.raises(ConfigError, match=r"there are 5 training samples, and 6 when.*accept_data=true"):
        check_same(held, facts(root))
    shutil.rmtree(root / "val")
    with pytest.raises(ConfigError, match="training samples"):
        check_same(held, facts(root))


def test_a_lost_validation_split_is_refused(root: Path) -> None:
    held = facts(root)
    shutil.rmtree(root / "val")
    with pytest.raises(ConfigError, match="there are 0 validation samples, and 6 when"):
        check_same(held, facts(root))


def test_what_was_recalled_needs_no_data_and_is_compared_where_there_are_some(root: Path) -> None:
    held = facts(root)
    data = ImageFolder(None, 8, 2)
    data.recall(held)
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    data.root = root
    data.setup()
    assert data.train_size == 6
    for split in ("train", "val"):
        (root / split / "cat").rename(root / split / "zebra")
    again = ImageFolder(None, 8, 2)
    again.recall(held)
    again.root = root
    with pytest.raises(ConfigError, match="label 0 means cat") as refusal:
        again.setup()
    assert "accept_data" not in str(refusal.value)  # which is a key of training


def test_data_that_are_made_have_no_names() -> None:
    data = Digits(16)
    data.setup()
    found = described(data)
    assert found["train"] == {"samples": 1438, "listing": None}
    check_same(found, json.loads(json.dumps(found)))
