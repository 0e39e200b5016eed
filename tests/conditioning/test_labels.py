"""Label dropout: the right rate, the same for a sample wherever it is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.conditioning.labels import drop_labels, dropout_mask
from neural_rdm.core.seeding import uniform

seeds = st.integers(0, 2**31 - 1)


@settings(deadline=None)
@given(seed=seeds, p=st.floats(0, 1))
def test_the_rate_is_p(seed, p):
    count = 4000
    mask = dropout_mask(seed, range(count), p)
    assert mask.dtype == torch.bool
    assert abs(mask.double().mean().item() - p) <= 6 * math.sqrt(p * (1 - p) / count) + 6 / count


@settings(deadline=None)
@given(seed=seeds, first=st.integers(0, 2**40))
def test_nothing_is_dropped_at_0_and_everything_at_1(seed, first):
    positions = range(first, first + 50)
    assert not dropout_mask(seed, positions, 0).any()
    assert dropout_mask(seed, positions, 1).all()


@settings(deadline=None)
@given(seed=seeds, p=st.floats(0, 1), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_the_mask_does_not_depend_on_the_batch(seed, p, sizes):
    whole = dropout_mask(seed, range(sum(sizes)), p)
    parts = torch.arange(sum(sizes)).split(sizes)
    assert torch.equal(torch.cat([dropout_mask(seed, part, p) for part in parts]), whole)


@settings(deadline=None)
@given(seed=seeds, p=st.floats(0, 1), more=st.floats(0, 1))
def test_a_higher_rate_drops_the_same_samples_and_more(seed, p, more):
    low, high = sorted([p, more])
    assert not (dropout_mask(seed, range(100), low) & ~dropout_mask(seed, range(100), high)).any()


def test_the_draw_is_its_own():
    mask = dropout_mask(0, range(4000), 0.5)
    noise = torch.from_numpy(uniform(0, "timestep", range(4000)) < 0.5)
    assert 0.45 < (mask == noise).double().mean().item() < 0.55


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=20))
def test_dropped_labels_are_the_null_class_and_the_others_stay(rows):
    y, drop = torch.tensor([label for label, _ in rows]), torch.tensor([dropped for _, dropped in rows])
    before = y.clone()
    assert drop_labels(y, drop, 10).tolist() == [10 if dropped else label for label, dropped in rows]
    assert torch.equal(y, before)


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_none_is_refused(p):
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        dropout_mask(0, [0], p)
