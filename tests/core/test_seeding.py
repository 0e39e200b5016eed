"""Keyed randomness: a function of seed, purpose and position, and of nothing else."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.core import seeding
from neural_rdm.core.seeding import choice, generator, keys, normal, uniform

positions = st.lists(st.integers(0, 2**62), min_size=1, max_size=20)


def test_the_stream_never_changes() -> None:
    """Checkpoints of today must go on with the same noise tomorrow: these values may not be edited."""
    assert keys(0, "noise", [0, 1]).tolist() == [17343654272250463290, 3622113165595173294]
    assert uniform(7, "timestep", [3, 2**40]).tolist() == [0.6476904929289069, 0.9774638580468038]
    assert [round(v, 5) for v in normal(7, "train noise", [5], (3,))[0].tolist()] == [-0.64833, 0.95997, -0.68208]
    assert torch.randperm(6, generator=generator(7, "order", 2)).tolist() == [3, 0, 1, 4, 5, 2]


def splitmix64(state: int) -> int:
    """The generator's published step (Steele, Lea, Flood 2014), in Python integers."""
    mask = (1 << 64) - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**62), purpose=st.text(max_size=10), at=st.integers(0, 2**62))
def test_keys_are_splitmix_of_seed_purpose_and_position(seed: int, purpose: str, at: int) -> None:
    stream = splitmix64(seed ^ splitmix64(zlib.crc32(purpose.encode())))
    assert keys(seed, purpose, [at]).tolist() == [splitmix64(at ^ stream)]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(at=positions, cut=st.integers(0, 20), seed=st.integers(0, 2**31))
def test_a_split_of_the_batch_changes_nothing(at: list[int], cut: int, seed: int) -> None:
    whole = normal(seed, "noise", at, (2, 3))
    parts = [normal(seed, "noise", part, (2, 3)) for part in (at[:cut], at[cut:])]
    assert torch.equal(whole, torch.cat(parts))
    np.testing.assert_array_equal(
        uniform(seed, "t", at), np.concatenate([uniform(seed, "t", at[:cut]), uniform(seed, "t", at[cut:])])
    )


@settings(max_examples=30, deadline=None, derandomize=True)
@given(at=positions)
def test_lists_arrays_and_tensors_are_the_same_positions(at: list[int]) -> None:
    expected = keys(3, "noise", at)
    np.testing.assert_array_equal(keys(3, "noise", np.asarray(at)), expected)
    np.testing.assert_array_equal(keys(3, "noise", torch.tensor(at)), expected)


def test_keys_differ_by_seed_purpose_and_position() -> None:
    count = np.arange(20_000)
    streams = [keys(seed, purpose, count) for seed in (0, 1, 2**32) for purpose in ("train noise", "val noise", "t")]
    assert len(np.unique(np.concatenate(streams))) == 9 * len(count)


def test_uniform_numbers_are_uniform() -> None:
    count = 200_000
    u = uniform(0, "timestep", np.arange(count))
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    # 6 standard errors of a histogram, of the mean, and of the correlation between neighbours and between streams
    histogram = np.histogram(u, bins=50, range=(0, 1))[0]
    assert np.abs(histogram - count / 50).max() < 6 * np.sqrt(count / 50)
    assert abs(u.mean() - 0.5) < 6 / np.sqrt(12 * count)
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 6 / np.sqrt(count)
    assert abs(np.corrcoef(u, uniform(1, "timestep", np.arange(count)))[0, 1]) < 6 / np.sqrt(count)


def test_uniform_stays_below_one_for_the_largest_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeding, "keys", lambda *_: np.array([0, 2**64 - 1], dtype=np.uint64))
    assert seeding.uniform(0, "t", [0, 1]).tolist() == [0.0, 1 - 2.0**-53]


def test_normal_noise_is_normal_and_independent() -> None:
    z = normal(0, "noise", range(500), (100,)).double()
    assert z.shape == (500, 100)
    assert normal(0, "noise", [0], (2,)).dtype == torch.float32
    error = 1 / np.sqrt(z.numel())
    assert abs(z.mean().item()) < 6 * error
    assert abs(z.var().item() - 1) < 6 * np.sqrt(2) * error
    assert abs((z[1:] * z[:-1]).mean().item()) < 6 * error
    assert normal(0, "noise", [], (2, 3)).shape == (0, 2, 3)


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    normal(1, "noise", [1, 2], (4,))
    generator(1, "order")
    assert torch.equal(torch.rand(3), expected)


def test_a_choice_is_keyed_in_range_and_reaches_everything() -> None:
    drawn = [choice(7, "caption", position, 5) for position in range(100)]
    assert drawn == [int(key) % 5 for key in keys(7, "caption", range(100)).tolist()]
    assert set(drawn) == set(range(5))
