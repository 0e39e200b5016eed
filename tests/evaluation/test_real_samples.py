"""Samples of a data set for its statistics: the bytes on disk, in order, never mirrored, without the broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.builtin.digits_video import DigitsVideo
from neural_rdm.data.builtin.synthetic import Synthetic
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.videos.datasets import SkyTimelapse
from neural_rdm.evaluation.real_samples import RealSamples, chosen, examples
from neural_rdm.media.images import adm_crop, read_rgb
from tests.helpers import shared


def ready(data: Any, seed: int = 0) -> Any:
    data.configure(seed)
    data.setup()
    return data


def everything(samples: RealSamples, *args: Any) -> tuple[torch.Tensor, Any]:
    batches = list(samples.batches(*args))
    labels = None if batches[0][1] is None else np.concatenate([y for _, y in batches])
    return torch.cat([x for x, _ in batches]), labels


@pytest.mark.parametrize("workers", [0, 2])
def test_real_images_are_the_bytes_of_the_crop(workers: int) -> None:
    root = shared("data/imagenet/sample1000_256")
    data = ready(ImageFolder(root, image_size=64, num_workers=workers, limit=20, flip=True))
    samples = RealSamples(data, "train")
    assert (samples.kind, len(samples)) == ("image", 20)
    found, labels = everything(samples, 6, range(20))
    assert found.dtype == torch.uint8
    for i, x in enumerate(found):
        wanted = adm_crop(read_rgb(data.train_set.path(i)), 64)
        np.testing.assert_array_equal(x.movedim(0, -1).numpy(), wanted)
    assert labels.tolist() == list(range(20))


def test_every_byte_survives_its_scaling(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(tmp_path / "a" / "0.png")
    found, _ = everything(RealSamples(ready(ImageFolder(tmp_path, image_size=16)), "train"), 1)
    np.testing.assert_array_equal(found[0].movedim(0, -1).numpy().ravel(), np.arange(768, dtype=np.uint8))


def test_examples_are_training_samples_of_a_rows_class(tmp_path: Path) -> None:
    data = ready(Digits(limit=200))
    x, positions = examples(data, [3, 8], 2, 3)
    labels = data.train_set.labels()[positions.numpy()].tolist()
    assert (labels, len(set(positions.tolist()))) == ([3, 3, 3, 8, 8, 8], 6)
    for image, position in zip(x, positions.tolist(), strict=True):
        torch.testing.assert_close(image, data.train_set.load(position, 0)["x"])
    again, _ = examples(ready(Digits(limit=200)), [3, 8], 2, 3)
    torch.testing.assert_close(again, x)
    _, other = examples(ready(Digits(limit=200), seed=1), [3, 8], 2, 3)
    assert other.tolist() != positions.tolist()
    _, free = examples(data, None, 2, 3)
    assert len(set(free.tolist())) == 6
    clips = ready(DigitsVideo(num_frames=2))
    x, positions = examples(clips, [3, 8], 2, 2)
    assert x.shape == (4, *clips.sample_shape)
    assert [clips.train_set.load(p, p)["y"] for p in positions.tolist()] == [3, 3, 8, 8]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16)).save(tmp_path / name / "0.png")
        (tmp_path / name / "1.png").write_bytes(b"no image")
    folder = ready(ImageFolder(tmp_path, image_size=16, max_bad_fraction=1.0, flip=True))
    x, _ = examples(folder, [0, 1], 2, 2)
    assert [float(image.mean()) for image in x] == [-1, 1, -1, 1]  # what cannot be read is white in the end


def test_grey_images_have_three_channels() -> None:
    data = ready(Digits())
    found, labels = everything(RealSamples(data, "val"), 50)
    assert found.shape == (data.val_size, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 2])
    assert torch.equal(torch.from_numpy(labels), data.val_set.y)


def test_training_clips_begin_anywhere_and_may_be_more_than_the_videos() -> None:
    data = ready(SkyTimelapse(shared("data/sky"), image_size=32, num_frames=4, frame_interval=2, num_workers=0))
    samples = RealSamples(data, "train")
    positions = chosen(len(samples), len(samples) + 3, 0, samples.again)
    found, labels = everything(samples, 16, positions)
    assert (samples.kind, found.shape, labels) == ("clip", (len(samples) + 3, 4, 3, 32, 32), None)
    assert not torch.equal(found[0], found[len(samples)])  # the same video, from another frame on
    again, _ = everything(samples, 5, positions)
    assert torch.equal(again, found)


def test_broken_images_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i,) * 3).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "3.png").write_bytes(b"no image")
    data = ready(ImageFolder(tmp_path, image_size=8, max_bad_fraction=0.2))
    found, labels = everything(RealSamples(data, "train"), 4)
    assert found[:, 0, 0, 0].tolist() == [0, 40, 80, 160, 200]
    assert len(labels) == 5
    assert "3.png" in capsys.readouterr().out
    (tmp_path / "a" / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match="2 of 6 training samples cannot be read"):
        everything(RealSamples(ready(ImageFolder(tmp_path, image_size=8, max_bad_fraction=0.2)), "train"), 4)


def test_what_has_no_pixels_is_refused() -> None:
    with pytest.raises(ConfigError, match="latents with 4 channels"):
        RealSamples(ready(Synthetic([4, 8, 8], None, size=10, batch_size=2)), "train")
    with pytest.raises(DataError, match="split=val"):
        RealSamples(ready(Synthetic([3, 8, 8], None, size=10, space="pixels", batch_size=2)), "val")


@given(st.integers(2, 200), st.data(), st.integers(0, 5))
def test_a_choice_is_seeded_ascending_and_without_repeats(size: int, data: st.DataObject, seed: int) -> None:
    count = data.draw(st.integers(1, size))
    found = chosen(size, count, seed)
    assert found == chosen(size, count, seed)
    assert len(set(found)) == count
    assert found == sorted(found)
    assert 0 <= found[0] <= found[-1] < size
    assert chosen(size, None, seed) == list(range(size))
    assert chosen(size, size + 3, seed, again=True) == list(range(size + 3))
    with pytest.raises(ConfigError, match=f"there are {size} samples"):
        chosen(size, size + 1, seed)
