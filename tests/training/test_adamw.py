"""Rounding at random: unbiased, exact where nothing is cut off, the same for any sharding and after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neural_rdm.core.errors import ConfigError
from neural_rdm.training.adamw import AdamW, noise, rounded
from neural_rdm.training.optim import Optimizer

OPTIONS = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}


def test_all_bits_together_are_exactly_unbiased() -> None:
    """Over all 65536 values of what is drawn the mean is the number itself, of either sign."""
    x = torch.tensor([1.0 + 2**-20, -3.14159, 1e-30, -7e8, 0.333])[:, None]
    bits = torch.arange(65536, dtype=torch.int32)[None].expand(5, -1)
    up = rounded(x.expand(-1, 65536).contiguous(), bits)
    torch.testing.assert_close(up.double().mean(dim=1), x[:, 0].double(), rtol=1e-12, atol=0)
    assert all(len(row.unique()) == 2 for row in up)


def test_what_is_drawn_is_uniform_and_another_in_each_step_and_parameter() -> None:
    weight = torch.zeros(512, 512)
    draws = [noise(weight, key, torch.tensor(float(step))) for key in (5, 6) for step in (1, 2)]
    for drawn in draws:
        counts = torch.bincount(drawn.flatten() // 4096, minlength=16)
        chi2 = ((counts - 512**2 / 16) ** 2 / (512**2 / 16)).sum()
        assert chi2 < 45  # 15 degrees of freedom: passed by all but one in 10 000
    for a in range(4):
        for b in range(a):
            pair = torch.stack([draws[a].flatten(), draws[b].flatten()]).double()
            assert abs(torch.corrcoef(pair)[0, 1]) < 5 / 512


def test_numbers_that_bfloat16_has_and_what_is_not_finite_stay() -> None:
    bits = torch.full((5,), 65535, dtype=torch.int32)
    x = torch.tensor([1.5, -0.0, float("inf"), float("-inf"), 256.0])
    assert torch.equal(rounded(x, bits).float(), x)
    nan = torch.tensor([-1], dtype=torch.int32).view(torch.float32)  # all bits set: a carry would make it 0
    assert rounded(nan, bits[:1]).isnan().all()


def test_small_updates_arrive_on_average() -> None:
    """Steps of a 4000th of the weight, each below half of the last place: rounding to the nearest loses them all."""
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = AdamW([{"params": [weight]}], lr=2.5e-4, betas=(0.0, 0.0), eps=0.0, weight_decay=0.0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    moved = 1 - weight.detach().double()
    sigma = 2**-8 / 2 * 10 / 64  # of the mean: 100 roundings by half of a place each, 4096 weights
    assert abs(moved.mean() - 0.025) < 4 * sigma
    nearest = torch.ones((), dtype=torch.bfloat16)
    assert (nearest - torch.tensor(2.5e-4).bfloat16()) == 1


def steps(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], count: range) -> None:
    for i in count:
        for number, weight in enumerate(weights):
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(100 * i + number))
            weight.grad = drawn.to(weight.dtype)
        optimizer.step()


@pytest.mark.parametrize("offload", [False, True])
def test_float32_weights_are_those_of_torch_to_the_bit(offload: bool) -> None:
    first = [nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4)), nn.Parameter(torch.ones(5))]
    second = copy.deepcopy(first)
    steps(AdamW([{"params": first}], offload=offload, **OPTIONS), first, range(5))
    steps(torch.optim.AdamW(second, fused=True, **OPTIONS), second, range(5))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("offload", [False, True])
def test_a_resumed_run_is_the_same_to_the_bit(offload: bool) -> None:
    def made() -> tuple[list[nn.Parameter], AdamW]:
        weights = [nn.Parameter(torch.linspace(-1, 1, 60).view(6, 10).bfloat16()), nn.Parameter(torch.ones(5))]
        return weights, AdamW([{"params": weights}], seed=3, offload=offload, **OPTIONS)

    whole, optimizer = made()
    steps(optimizer, whole, range(4))
    saved, held = copy.deepcopy(optimizer.state_dict()), [w.detach().clone() for w in whole]
    steps(optimizer, whole, range(4, 8))
    resumed, again = made()
    for weight, value in zip(resumed, held, strict=True):
        weight.data.copy_(value)
    again.load_state_dict(saved)
    assert {state["exp_avg"].dtype for state in again.state.values()} == {torch.float32}
    steps(again, resumed, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    for a, b in zip(optimizer.state.values(), again.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_that_is_left_out_changes_nothing() -> None:
    weight = nn.Parameter(torch.linspace(-1, 1, 64).bfloat16())
    optimizer = AdamW([{"params": [weight]}], **OPTIONS)
    steps(optimizer, [weight], range(1))
    before, state = weight.detach().clone(), copy.deepcopy(optimizer.state[weight])
    optimizer.found_inf = torch.ones(())
    weight.grad.fill_(float("nan"))
    optimizer.step()
    assert torch.equal(weight, before)
    assert all(torch.equal(state[name], optimizer.state[weight][name]) for name in state)


def test_muon_is_refused_where_it_would_round_and_with_moments_on_the_host() -> None:
    with pytest.raises(ValueError, match="its weights have to be float32"):
        Optimizer(name="muon").build(nn.Linear(4, 4).bfloat16())
    with pytest.raises(ConfigError, match=r"offload.*optimizer=muon pass optimizer\.offload=false"):
        Optimizer(name="muon", offload=True)


def test_a_shard_draws_what_its_rows_draw_in_the_whole() -> None:
    """On the third of four ranks, of which one stands for all; 10 rows: shares of 3, 3, 3 and 1."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    whole, step = torch.zeros(10, 6), torch.tensor(7.0)
    torch.distributed.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (4,))
        rows = distribute_tensor(whole, mesh, [Shard(0)], src_data_rank=None)
        columns = distribute_tensor(whole, mesh, [Shard(1)], src_data_rank=None)
        assert torch.equal(noise(rows, 9, step), noise(whole, 9, step)[6:9])
        assert torch.equal(noise(columns, 9, step), noise(whole, 9, step)[:, 4:6])
    finally:
        torch.distributed.destroy_process_group()
