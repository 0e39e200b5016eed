from __future__ import annotations

import numpy as np
import pytest
import torch

from neural_rdm.data.builtin.digits import Digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = Digits()
    data.setup()
    return data


def test_shapes_ranges_and_classes(digits):
    x, y = digits.train_set.x, digits.train_set.y
    assert (digits.space, digits.num_classes, digits.sample_shape) == ("pixels", 10, (1, 8, 8))
    assert digits.class_names == list("0123456789")
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert x.shape[1:] == digits.val_set.x.shape[1:] == (1, 8, 8)
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert len(digits.train_set) + len(digits.val_set) == 1797
    batch = next(iter(Digits(batch_size=6).train_dataloader()))
    assert batch["x"].shape == (6, 1, 8, 8)
    assert batch["y"].dtype == torch.int64


def test_the_split_is_stratified_fixed_and_keeps_every_image_once(digits):
    for label in range(10):
        held_out = int((digits.val_set.y == label).sum())
        total = held_out + int((digits.train_set.y == label).sum())
        assert held_out == round(0.2 * total)
    again = Digits(batch_size=1)
    again.configure(seed=99)
    again.setup()
    assert torch.equal(again.val_set.x, digits.val_set.x)

    images, labels = sklearn_datasets.load_digits(return_X_y=True)
    rows = [
        np.concatenate([((part.x + 1) * 8).flatten(1).numpy(), part.y[:, None].numpy()], axis=1)
        for part in (digits.train_set, digits.val_set)
    ]
    ours, theirs = np.concatenate(rows), np.concatenate([images, labels[:, None]], axis=1)
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_a_sample_is_its_row_whatever_its_key(digits):
    for key in (0, 12345):
        sample = digits.train_set.load(17, key)
        assert torch.equal(sample["x"], digits.train_set.x[17])
        assert sample["y"] == int(digits.train_set.y[17])


def test_the_first_samples_mix_the_classes(digits):
    assert len(set(digits.train_set.y[:64].tolist())) == 10  # so that a small data.limit is still a sensible set
