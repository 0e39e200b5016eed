from __future__ import annotations

from itertools import chain, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.data.sampler import Draw, StepBatchSampler, split_batch

sizes = st.integers(1, 40)
small = st.integers(1, 4)
seeds = st.integers(-(2**31), 2**31)


def draws(sampler: StepBatchSampler, batches: int) -> list[Draw]:
    return list(chain.from_iterable(islice(sampler, batches)))


@settings(max_examples=60, deadline=None)
@given(n=sizes, part=small, micro=small, world=small, seed=seeds, start=st.integers(0, 9), steps=small)
def test_ranks_and_micro_steps_partition_the_order_of_one_rank(n, part, micro, world, seed, start, steps):
    batch = part * micro * world
    whole = draws(StepBatchSampler(n, batch, seed, start), steps)
    assert [d.position for d in whole] == list(range(start * batch, (start + steps) * batch))
    ranks = [iter(StepBatchSampler(n, batch, seed, start, micro, world, r)) for r in range(world)]
    split = [draw for _ in range(steps * micro) for rank in ranks for draw in next(rank)]
    assert split == whole


@settings(max_examples=60, deadline=None)
@given(n=sizes, part=small, micro=small, seed=seeds, skip=st.integers(0, 12))
def test_starting_at_a_step_equals_skipping_to_it(n, part, micro, seed, skip):
    batch = part * micro
    whole = draws(StepBatchSampler(n, batch, seed, 0, micro), (skip + 3) * micro)
    assert draws(StepBatchSampler(n, batch, seed, skip, micro), 3 * micro) == whole[skip * batch :]


@settings(max_examples=60, deadline=None)
@given(n=sizes, batch=st.integers(1, 50), seed=seeds)
def test_every_epoch_visits_every_index_once(n, batch, seed):
    order = [d.index for d in draws(StepBatchSampler(n, batch, seed), -(-3 * n // batch))]
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own():
    first = [d.index for d in draws(StepBatchSampler(100, 50, 0), 4)]
    other = [d.index for d in draws(StepBatchSampler(100, 50, 1), 4)]
    assert first[:100] != first[100:]
    assert first != other
    assert first[:100] != list(range(100))


def test_the_position_formula():
    n, batch, micro, world = 1000, 48, 3, 4
    for rank in range(world):
        batches = iter(StepBatchSampler(n, batch, 7, 0, micro, world, rank))
        for step in range(3):
            for m in range(micro):
                expected = [step * 48 + m * 16 + rank * 4 + i for i in range(4)]
                assert [d.position for d in next(batches)] == expected


def test_a_function_as_start_is_asked_at_every_iteration():
    now = [2]
    sampler = StepBatchSampler(10, 4, 0, lambda: now[0])
    assert [d.position for d in next(iter(sampler))] == [8, 9, 10, 11]
    now[0] = 5
    assert [d.position for d in next(iter(sampler))] == [20, 21, 22, 23]


def test_it_never_ends_and_has_no_length():
    sampler = StepBatchSampler(3, 2, 0)
    with pytest.raises(TypeError):
        len(sampler)
    assert len(draws(sampler, 500)) == 1000


@pytest.mark.parametrize(
    ("batch", "micro", "world", "nearest"),
    [(100, 4, 3, 96), (255, 1, 8, 256), (1, 2, 4, 8), (6, 1, 4, 4), (10, 1, 4, 8), (11, 1, 4, 12)],
)
def test_an_indivisible_batch_is_refused_with_the_nearest_size(batch, micro, world, nearest):
    with pytest.raises(ConfigError) as error:
        StepBatchSampler(10, batch, 0, 0, micro, world)
    text = str(error.value)
    assert text.endswith(f"data.batch_size={nearest}")
    assert f"data.batch_size={batch} " in text
    assert "trainer.devices" in text
    assert "trainer.accumulate_grad_batches" in text
    assert split_batch(nearest, micro, world) * micro * world == nearest


def test_values_out_of_range_are_refused():
    with pytest.raises(DataError, match=r"no samples.*data\.limit"):
        StepBatchSampler(0, 4, 0)
    with pytest.raises(ConfigError, match=r"data\.batch_size must be at least 1, not 0"):
        StepBatchSampler(5, 0, 0)
    with pytest.raises(ConfigError, match=r"trainer\.accumulate_grad_batches must be at least 1"):
        StepBatchSampler(5, 4, 0, micro_steps=0)
    with pytest.raises(ConfigError, match="rank 2 is not one of the 2 ranks"):
        StepBatchSampler(5, 4, 0, world_size=2, rank=2)
