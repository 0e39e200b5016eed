"""`python -m neural_rdm.preview`: what it shows is what training gets."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from neural_rdm.cli.datasets import check_layout, docstring
from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.layouts import drawn
from neural_rdm.data.sampler import StepBatchSampler
from neural_rdm.data.videos.datasets import UCF101
from neural_rdm.preview import gather, preview
from neural_rdm.runs import build
from tests.data.images.test_captions import coco
from tests.data.videos.test_datasets import frames
from tests.test_sample import refused_without_torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of the videos goes into the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def composed(command: str, *overrides: str) -> DictConfig:
    """A checked configuration."""
    result = compose_config(command, list(overrides))
    validate(result.cfg, command, result.sources)
    return result.cfg


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_first_samples_of_a_run_are_shown_with_their_classes(tmp_path: Path) -> None:
    cfg = composed("preview", "data=digits", "count=20", "seed=4", "data.batch_size=7")
    assert preview(cfg, tmp_path) == 0
    data = build.build(cfg.data, "data")
    data.configure(4)
    data.setup()
    batches = iter(StepBatchSampler(data.train_size, 7, 4))
    draws = [draw for _ in range(3) for draw in next(batches)][:20]
    expected = [data.train_set.load(draw.index, draw.position) for draw in draws]
    seen = gather(data, "train", 20)
    assert torch.equal(seen.x, torch.stack([sample["x"] for sample in expected]))
    found = rows(tmp_path / "samples.csv")
    assert [int(row["class"]) for row in found] == [int(sample["y"]) for sample in expected] == seen.labels
    assert [row["number"] for row in found] == [str(i) for i in range(20)]
    facts = json.loads((tmp_path / "preview.json").read_text())
    assert (facts["data"], facts["samples"], facts["shape"], facts["classes"]) == ("digits", 20, [1, 8, 8], 10)
    assert (facts["train_samples"], facts["val_samples"]) == (1438, 359)
    assert (facts["minimum"], facts["maximum"]) == (-1.0, 1.0)
    assert facts["samples_per_second_of_one_process"] > 0
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width == 2 * 8 + 8 * 96 + 7 * 2  # eight digits, enlarged to 96 pixels


def test_validation_samples_are_spread_over_the_set(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for split in ("train", "val"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (9, 9), (20 * i, 0, 200 if label == "a" else 0)).save(
                    tmp_path / split / label / f"{i}.png"
                )
    cfg = composed("preview", "data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "split=val", "count=6")
    preview(cfg, tmp_path / "out")
    names = [row["name"] for row in rows(tmp_path / "out/samples.csv")]
    assert names == ["a", "a", "a", "b", "b", "b"]


def test_clips_play_and_stand_side_by_side(tmp_path: Path) -> None:
    for i in range(3):
        frames(tmp_path / "sky_train" / f"v{i}" / f"v{i}_1", 20)
    cfg = composed("preview", "data=sky", f"data.root={tmp_path}", "data.image_size=48", "data.num_frames=5", "count=2")
    preview(cfg, tmp_path / "out")
    assert not (tmp_path / "out/samples.csv").exists()  # no classes, no captions
    with Image.open(tmp_path / "out/grid.gif") as gif:
        assert gif.n_frames == 5
        assert gif.width == 2 * 8 + 2 * 48 + 2
    with Image.open(tmp_path / "out/strips.png") as strips:
        assert strips.width == 2 * 8 + 5 * 48 + 4 * 2
    facts = json.loads((tmp_path / "out/preview.json").read_text())
    assert (facts["frames"], facts["frame_interval"], facts["first_video"]["frames"]) == (5, 3, 20)


def test_captions_are_below_the_pictures_and_in_the_csv(tmp_path: Path) -> None:
    coco(tmp_path)
    cfg = composed("preview", "data=coco", f"data.root={tmp_path}", "data.image_size=100", "count=3")
    preview(cfg, tmp_path / "out")
    captions = [row["caption"] for row in rows(tmp_path / "out/samples.csv")]
    assert len(captions) == 3
    assert all(text.startswith("picture ") for text in captions)
    with Image.open(tmp_path / "out/grid.png") as grid:
        assert grid.height > 2 * 8 + 100 + 10
    with pytest.raises(DataError, match="no validation set; pass split=train"):
        preview(composed("preview", "data=coco", f"data.root={tmp_path}", "split=val"), tmp_path / "out")


def test_broken_samples_do_not_stop_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(12):
        Image.new("RGB", (9, 9)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "3.png").write_bytes(b"no picture")
    cfg = composed("preview", "data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "count=12")
    assert preview(cfg, tmp_path / "out") == 0
    assert len(rows(tmp_path / "out/samples.csv")) == 12


def test_validation_samples_that_are_broken_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (9, 9)).save(tmp_path / split / "a" / f"{i}.png")
    broken = tmp_path / "val" / "a" / "0.png"
    broken.write_bytes(b"no picture")
    cfg = composed("preview", "data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "split=val", "count=6")
    assert preview(cfg, tmp_path / "out") == 0
    assert len(rows(tmp_path / "out/samples.csv")) == 5
    assert f"bad val sample {broken}: " in capsys.readouterr().out
    for file in (tmp_path / "val" / "a").iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(DataError, match="split=val: none of 6 samples can be read"):
        preview(cfg, tmp_path / "out")


def test_the_first_video_that_can_be_read_is_described(tmp_path: Path) -> None:
    for i in range(3):
        frames(tmp_path / "sky_train" / f"v{i}", 10 + i)
    for file in (tmp_path / "sky_train" / "v0").iterdir():
        file.write_bytes(b"no picture")
    small = ["data.image_size=9", "data.num_frames=3", "data.max_bad_fraction=0.5", "count=2"]
    assert preview(composed("preview", "data=sky", f"data.root={tmp_path}", *small), tmp_path / "out") == 0
    assert json.loads((tmp_path / "out/preview.json").read_text())["first_video"]["frames"] == 11


def test_it_needs_a_data_set_that_is_there_and_says_where_to_get_it(tmp_path: Path) -> None:
    assert "pass data=NAME, one of coco, digits" in refused_without_torch("preview", cwd=tmp_path)
    for command in ("prepare", "preview"):
        line = [sys.executable, "-m", f"neural_rdm.{command}", "--help"]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"python -m neural_rdm.{command} data=ucf101 data.root=DIR" in done.stdout
    said = refused_without_torch("preview", "data=ucf101", "data.root=absent", cwd=tmp_path)
    assert f"no folder {tmp_path / 'absent'}" in said
    assert "ROOT/**/ucfTrainTestlist/" in said
    assert "UCF-101, split 1 comes from https://www.crcv.ucf.edu" in said
    with pytest.raises(DataError, match=r"(?s)<wnid>.*ImageNet-1k .* comes from https://image-net\.org"):
        check_layout(composed("preview", "data=imagenet", f"data.root={tmp_path}").data)
    with pytest.raises(ConfigError, match=r"data\.source.*looks at pixels"):
        composed("preview", "data=ucf101", "data.source=latents")


def test_layouts_are_read_from_the_source_of_the_data_modules() -> None:
    text = docstring("neural_rdm.data.videos.datasets.UCF101")
    assert text
    assert (UCF101.__doc__ or "").startswith(text.splitlines()[0])
    assert "Args:" not in text
    assert text == drawn(UCF101.__doc__)
    assert "see `Clips`" not in docstring("neural_rdm.data.videos.datasets.TaichiHD")
    assert docstring("neural_rdm.data.nowhere.X") == docstring("no.such.module.X") == ""
