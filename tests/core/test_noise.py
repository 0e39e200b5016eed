"""The tables of noise that the preflight counts timesteps by, and the timesteps that samplers visit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.core import noise
from neural_rdm.diffusion.process import DDPM

DPM_LIMITS = [("linear", 1000, 999), ("scaled_linear", 1000, 999), ("cosine", 1000, 995)]


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("count", [1, 2, 20, 1000])
def test_the_preflight_counts_on_the_table_that_the_process_has(schedule: str, count: int) -> None:
    process = DDPM(schedule, count)
    assert torch.tensor(noise.alpha_bars(schedule, count), dtype=torch.float64).tolist() == pytest.approx(
        process.alphas_cumprod.tolist(), rel=1e-12
    )
    assert noise.usable(noise.alpha_bars(schedule, count)) == noise.usable(process.alphas_cumprod.tolist())


@pytest.mark.parametrize(("schedule", "count", "most"), DPM_LIMITS)
def test_the_usable_timesteps_are_those_that_diffusers_keeps(schedule: str, count: int, most: int) -> None:
    from diffusers import DPMSolverMultistepScheduler

    bars = noise.alpha_bars(schedule, count)
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=count, trained_betas=DDPM(schedule, count).betas.tolist(), lambda_min_clipped=-5.1
    )
    theirs.set_timesteps(10)
    assert theirs.timesteps[0] == most == noise.usable(bars) - 1
    assert theirs.timesteps.tolist() == noise.visited("dpm++", 10, bars)
    assert 0.5 * math.log(bars[most] / (1 - bars[most])) >= -5.1


@given(
    st.sampled_from(["linear", "scaled_linear", "cosine"]),
    st.integers(2, 300),
    st.integers(1, 300),
    st.sampled_from([("ddim", 0), ("ddim", 1), ("ddpm", 0), ("dpm++", 0)]),
)
@settings(max_examples=200, deadline=None)
def test_visited_timesteps_fall_stay_where_x0_can_be_read_and_are_as_many_as_asked(
    schedule: str, count: int, steps: int, sampler: tuple[str, int]
) -> None:
    bars, (name, offset) = noise.alpha_bars(schedule, count), sampler
    most = {"ddim": count - offset, "ddpm": noise.usable(bars), "dpm++": noise.usable(bars) - 1}[name]
    if steps > most:
        with pytest.raises(ValueError, match=f"at most {most} "):
            noise.visited(name, steps, bars, offset)
        return
    found = noise.visited(name, steps, bars, offset)
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[-1] >= 0
    assert found[0] < noise.usable(bars)
    assert len(found) == steps or name == "ddim"
