"""A data set by its name, in Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from neural_rdm import data_module
from neural_rdm.core.errors import UserError


def test_a_data_set_by_its_name(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (20, 16), (255, 0, 0)).save(tmp_path / split / name / "0.png")
    data = data_module("image_folder", root=tmp_path, image_size=8, batch_size=2, num_workers=0, num_classes=2)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (2, 3, 8, 8)
    assert sorted(batch["y"].tolist()) == [0, 1]
    assert data.class_names == ["a", "b"]


def test_the_seed_is_that_of_a_run() -> None:
    first, again, other = (data_module("digits", seed=seed, batch_size=8) for seed in (0, 0, 1))
    orders = []
    for data in (first, again, other):
        data.setup()
        orders.append(next(iter(data.train_dataloader()))["y"].tolist())
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [("digitz", {}, "digits"), ("digits", {"batchsize": 3}, "batch_size"), ("digits", {"batch_size": 0}, "batch_size")],
)
def test_a_wrong_name_or_argument_is_answered_with_the_right_one(
    name: str, arguments: dict[str, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        data_module(name, **arguments)
