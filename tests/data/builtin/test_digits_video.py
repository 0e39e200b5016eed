"""Moving digits: real images, keyed motion, and a metric that real clips pass and others fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.digits_video import DigitsVideo, bounced
from neural_rdm.evaluation.digits import DigitsVideoReport
from neural_rdm.metrics.digits_video import DigitsVideoEvaluation


@given(st.integers(-50, 50), st.integers(1, 9))
def test_a_bouncing_place_stays_inside_and_moves_one_at_a_time(place: int, room: int) -> None:
    assert 0 <= bounced(place, room) <= room
    assert abs(bounced(place + 1, room) - bounced(place, room)) == 1


def test_clips_show_a_real_digit_that_never_stands_still() -> None:
    data = DigitsVideo(image_size=12, num_frames=8)
    data.configure(seed=5)
    assert (data.train_size, data.val_size) == (1438, 359)
    for key in range(60):
        sample = data.train_set.load(key, key)
        assert sample["x"].shape == data.sample_shape == (8, 1, 12, 12)
        ink = (sample["x"] + 1).sum(dim=(1, 2, 3))
        assert torch.allclose(ink, ink[:1].expand(8))
        assert all(not torch.equal(a, b) for a, b in zip(sample["x"], sample["x"][1:], strict=False))
    assert torch.equal(data.train_set.load(3, 9)["x"], data.train_set.load(3, 9)["x"])
    assert not torch.equal(data.train_set.load(3, 9)["x"], data.train_set.load(3, 10)["x"])


def test_one_frame_is_an_image_and_images_may_follow() -> None:
    image = DigitsVideo(num_frames=1)
    image.setup()
    assert image.train_set.load(0, 0)["x"].shape == image.sample_shape == (1, 12, 12)
    joint = DigitsVideo(num_frames=4, image_frames=3)
    joint.setup()
    sample = joint.train_set.load(0, 0)
    assert sample["x"].shape == joint.sample_shape == (7, 1, 12, 12)
    assert sample["y"].shape == (4,)
    with pytest.raises(ConfigError, match="images follow clips"):
        DigitsVideo(num_frames=1, image_frames=3)
    with pytest.raises(ConfigError, match="image_size=7 must be at least 8"):
        DigitsVideo(image_size=7)


@pytest.fixture(scope="module")
def metric() -> DigitsVideoEvaluation:
    data = DigitsVideo()
    data.setup()
    return DigitsVideoReport().metric(data)


def test_real_clips_pass(metric: DigitsVideoEvaluation) -> None:
    numbers = metric.reference()
    assert numbers["accuracy"] > 0.97
    assert numbers["consistency"] > 0.95
    assert numbers["motion"] == pytest.approx(1, abs=0.05)
    assert numbers["frechet_pixels"] < 1
    assert numbers["count"] == 359
    assert "held out" in metric.protocol


def test_real_clips_stand_beside_samples_at_equal_counts(metric: DigitsVideoEvaluation) -> None:
    x, y = metric._val
    chosen = torch.cat([(y == label).nonzero()[:12, 0] for label in range(10)])
    metric.reset()
    metric.update(x[chosen], y[chosen])
    row, real = metric.compute(), metric.reference(120)
    assert row["at_120_frechet_pixels"] == row["frechet_pixels"]
    assert "frechet_pixels" not in real
    assert real["at_120_frechet_pixels"] > 1.3 * metric.reference()["frechet_pixels"]


def test_noise_wrong_labels_and_still_clips_fail(metric: DigitsVideoEvaluation) -> None:
    x, y = metric._val
    x, y = x[:60], y[:60]

    def of(clips: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
        metric.reset()
        metric.update(clips, labels)
        return metric.compute()

    assert of(x, (y + 1) % 10)["accuracy"] < 0.1
    noise = of(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y)
    assert noise["accuracy"] < 0.3
    assert noise["frechet_pixels"] > 10
    assert of(x[:, :1].expand(x.shape), y)["motion"] == 0
    mixed = torch.cat([x[:, :4], x.roll(1, 0)[:, 4:]], dim=1)
    assert of(mixed, y)["consistency"] < 0.3
    assert of(torch.full_like(x, float("nan")), y)["accuracy"] <= 0.3


def test_numbers_do_not_depend_on_the_batches(metric: DigitsVideoEvaluation) -> None:
    x, y = metric._val
    rows = []
    for size in (7, 40):
        metric.reset()
        for start in range(0, 40, size):
            metric.update(x[start : min(start + size, 40)], y[start : min(start + size, 40)])
        rows.append(metric.compute())
    assert rows[0] == pytest.approx(rows[1])
