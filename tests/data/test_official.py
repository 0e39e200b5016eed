"""What data sets state of the whole of them: the numbers of their own lists, and which version is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from neural_rdm.cli.datasets import official_of
from neural_rdm.config.check import config_dir
from neural_rdm.core.errors import ConfigError
from neural_rdm.data.official import Official, official
from tests.helpers import shared


def stated(choice: str, classes: int | None = None, **keys: Any) -> Official | None:
    """What the class of a choice of `data` states."""
    target = OmegaConf.load(config_dir() / "data" / f"{choice}.yaml")._target_
    return official_of(OmegaConf.create({"_target_": target, **keys}), classes)


def test_which_data_set_a_configuration_speaks_of(tmp_path: Path) -> None:
    def name(*args: Any, **keys: Any) -> str | None:
        found = stated(*args, **keys)
        return found and found.name

    assert name("imagenet") == name("imagenet", 1000) == name("imagenet", 37) == "ImageNet-1k (ILSVRC 2012)"
    assert name("imagenet", 200) == "Tiny-ImageNet"
    assert name("ucf101", split=3) == "UCF-101, split 3"
    assert name("coco") == name("coco", root=str(tmp_path / "nowhere")) == "COCO 2017"
    (tmp_path / "train2014").mkdir()
    assert name("coco", root=str(tmp_path)) == "COCO 2014"
    (tmp_path / "train2017").mkdir()
    assert name("coco", root=str(tmp_path)) == "COCO 2017"
    for own in ("image_folder", "webdataset", "digits", "synthetic"):  # of the user, or of a package
        assert stated(own, 1000) is None


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a\.Set: its `official` does not say what it should: .*'numbers'"):
        official({"name": "x", "where": "y", "numbers": 3}, {"_target_": "a.Set"})


@pytest.mark.parametrize(("field", "value"), [("train", "many"), ("classes", -1), ("commands", "curl -LO it")])
def test_a_value_of_another_kind_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"a\.Set: its `official` has {field}="):
        official({"name": "x", "where": "y", field: value}, {"_target_": "a.Set"})


@pytest.mark.parametrize("split", [1, 2, 3])
def test_the_official_numbers_of_ucf101_are_those_of_its_lists(split: int) -> None:
    lists = shared("data/ucf101/ucfTrainTestlist")
    known = stated("ucf101", split=split)
    assert known is not None
    for part, number in (("train", known.train), ("test", known.val)):
        assert len((lists / f"{part}list0{split}.txt").read_text().splitlines()) == number
    assert len((lists / "classInd.txt").read_text().split()) == 2 * (known.classes or 0)
    assert (known.train or 0) + (known.val or 0) == 13_320


def test_the_official_numbers_of_taichi_and_coco_are_those_of_their_tables() -> None:
    table = shared("data/taichi/taichi-metadata.csv").read_text().splitlines()[1:]
    taichi, coco = stated("taichi"), stated("coco")
    assert taichi is not None
    assert coco is not None
    assert sum(line.endswith(",train") for line in table) == taichi.train
    assert sum(line.endswith(",test") for line in table) == taichi.val
    whole = shared("data/coco/annotations/captions_val2017_full5000.json").read_text()
    assert whole.count('"file_name"') == coco.val
