from __future__ import annotations

import pytest
import torch

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.builtin.synthetic import Synthetic, SyntheticSet


@pytest.mark.parametrize("shape", [[4, 32, 32], [16, 4, 32, 32], [3, 17, 30], [1, 1, 1], [5, 2, 3, 3]])
def test_any_shape_and_a_function_of_the_index_alone(shape):
    data = SyntheticSet(shape, 10, 100, "latents")
    sample = data.load(7, 0)
    assert sample["x"].shape == tuple(shape)
    assert sample["x"].dtype == torch.float32
    assert sample["x"].is_contiguous()
    assert sample["y"] == 7
    data.load(3, 1)
    assert torch.equal(SyntheticSet(shape, 10, 500, "latents").load(7, 999)["x"], sample["x"])
    assert not torch.equal(data.load(17, 0)["x"], sample["x"])


def test_workers_and_threads_change_nothing():
    def first(workers: int) -> torch.Tensor:
        return next(iter(Synthetic([16, 4, 32, 32], 5, 4, num_workers=workers).train_dataloader()))["x"]

    assert torch.equal(first(0), first(1))


def test_samples_are_smooth_in_space_and_time_and_of_about_unit_variance():
    data = SyntheticSet([16, 4, 32, 32], 3, 30, "latents")
    x = torch.stack([data.load(i, 0)["x"] for i in range(30)])
    assert 0.85 < x.var().item() < 1.15
    for axis in (1, 3, 4):
        assert x.diff(dim=axis).square().mean() < 0.5 * x.var()  # white noise: 2 * variance
    assert x.diff(dim=2).square().mean() > 1.5 * x.var()  # channels are independent


def test_the_class_shows_in_the_sample():
    data = SyntheticSet([4, 16, 16], 4, 400, "latents")
    x = torch.stack([data.load(i, 0)["x"] for i in range(400)]).reshape(100, 4, -1)
    means = x[:50].mean(0)
    guess = torch.cdist(x[50:].reshape(-1, x.shape[-1]), means).argmin(1)
    assert (guess == torch.arange(4).repeat(50)).float().mean() > 0.9


def test_pixels_are_in_range_and_labels_may_be_absent():
    data = Synthetic([3, 16, 16], None, 4, space="pixels", size=6)
    batch = next(iter(data.train_dataloader()))
    assert "y" not in batch
    assert batch["x"].abs().max() <= 1
    assert batch["x"].std() > 0.2
    assert data.train_size == 6
    assert (data.space, data.num_classes, data.sample_shape) == ("pixels", None, (3, 16, 16))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"shape: \[4, 4\] is neither \[C,H,W\]"):
        Synthetic([4, 4], 10, 1)
    with pytest.raises(ConfigError, match="space=pixel is not one of latents, pixels"):
        Synthetic([4, 4, 4], 10, 1, space="pixel")
    with pytest.raises(ConfigError, match="num_classes=-1 must be at least 0"):
        Synthetic([4, 4, 4], -1, 1)
