"""The process against the official DiT code, and against what the formulas say it must be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from neural_rdm.core.noise import even
from neural_rdm.diffusion.process import DDPM, Flow, split_output
from tests.diffusion.respaced import spaced
from tests.helpers import shared

GOLDEN = "golden/diffusion_dit.safetensors"


def stand_in(x: Tensor, t: Tensor) -> Tensor:
    """The network of the golden file: epsilon and variance halves."""
    shift = t.view(-1, 1, 1, 1) / 1000
    return torch.cat([torch.tanh(0.6 * x + shift - 0.3), 0.8 * torch.sin(x)], dim=1)


def samples(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_q_sample_equals_the_official_code():
    golden = load_file(shared(GOLDEN))
    xt = DDPM().q_sample(golden["x_start"], golden["t"], golden["noise"])
    torch.testing.assert_close(xt, golden["x_t"], rtol=1e-6, atol=1e-6)


def test_p_mean_variance_of_250_steps_equals_the_official_code():
    golden = load_file(shared(GOLDEN))
    (process, timesteps), index, xt = spaced(DDPM(), 250), golden["ddpm250.index"], golden["x_t"]
    assert torch.equal(timesteps, golden["ddpm250.timesteps"])
    output = stand_in(xt, timesteps[index])
    for got, name in zip(
        process.p_mean_variance(output, xt, index), ("mean", "log_variance", "pred_xstart"), strict=True
    ):
        torch.testing.assert_close(got, golden[f"ddpm250.{name}"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("process", "last"),
    [
        (DDPM(), 4.0358e-5),
        (DDPM("scaled_linear", beta_start=0.0015, beta_end=0.0195), 1.4230e-4),
        (DDPM("scaled_linear", beta_start=0.00085, beta_end=0.012), 4.6601e-3),
    ],
    ids=["DiT", "LDM", "SD"],
)
def test_alpha_bar_ends_where_the_published_schedules_do(process, last):
    assert process.alphas_cumprod[-1].item() == pytest.approx(last, rel=5e-5)


def test_even_spacing_is_the_official_one():
    assert even(1000, 250)[:5] == [0, 4, 8, 12, 16]
    assert even(1000, 250)[-3:] == [991, 995, 999]
    assert even(1000, 50)[:5] == [0, 20, 41, 61, 82]
    assert even(1000, 1000) == list(range(1000))


@settings(deadline=None)
@given(total=st.integers(1, 1200), data=st.data())
def test_even_spacing_ascends_from_first_to_last(total, data):
    steps = data.draw(st.integers(1, total))
    found = even(total, steps)
    assert found == sorted(set(found))
    assert len(found) == steps
    assert found[0] == 0
    assert steps == 1 or found[-1] == total - 1


@settings(deadline=None)
@given(t=st.integers(0, 999), seed=st.integers(0, 9))
def test_x0_from_eps_undoes_q_sample(t, seed):
    process, x0, noise = DDPM(), samples(2, 3, 2, 2, seed=seed), samples(2, 3, 2, 2, seed=seed + 10)
    step = torch.full((2,), t)
    found = process.predict_x0(noise, process.q_sample(x0, step, noise), step)
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [1, 17, 500, 999])
def test_the_posterior_is_the_product_of_its_two_gaussians(t):
    process, x0, xt = DDPM(), samples(1, 1, 2, 2), samples(1, 1, 2, 2, seed=1)
    beta, before = process.betas[t], process.alphas_cumprod[t - 1]
    # q(x_t | x_{t-1}) as a function of x_{t-1}, times q(x_{t-1} | x_0)
    precision = (1 - beta) / beta + 1 / (1 - before)
    expected = ((1 - beta).sqrt() / beta * xt + before.sqrt() / (1 - before) * x0) / precision
    mean, variance, log_variance = process.q_posterior(x0, xt, torch.tensor([t]))
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(variance, torch.full_like(x0, 1 / precision.item()), rtol=1e-9, atol=0)
    torch.testing.assert_close(log_variance, variance.log(), rtol=1e-9, atol=0)


def test_the_first_step_has_no_posterior_variance_and_a_finite_logarithm():
    process, x = DDPM(), samples(1, 1, 2, 2)
    _, variance, first = process.q_posterior(x, x, torch.tensor([0]))
    _, _, second = process.q_posterior(x, x, torch.tensor([1]))
    assert variance.abs().max() == 0
    assert torch.equal(first, second)


def test_the_learned_variance_runs_from_the_posterior_to_beta():
    process, x, t = DDPM(), samples(2, 3, 2, 2), torch.tensor([40, 900])
    low = process.p_mean_variance(torch.cat([x, -torch.ones_like(x)], 1), x, t)
    high = process.p_mean_variance(torch.cat([x, torch.ones_like(x)], 1), x, t)
    fixed = process.p_mean_variance(x, x, t)
    torch.testing.assert_close(low[1], process.q_posterior(x, x, t)[2], rtol=1e-12, atol=0)
    for a, b in zip(high, fixed, strict=True):  # without learn_sigma DiT's default is beta, "fixed large"
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    first = process.p_mean_variance(x, x, torch.tensor([0, 1]))[1]  # DiT: append(posterior_variance[1], betas[1:])
    expected = torch.stack(
        [process.q_posterior(x, x, torch.tensor([1, 1]))[1].log()[0, 0, 0, 0], process.betas[1].log()]
    )
    torch.testing.assert_close(first[:, 0, 0, 0], expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(high[1][:, 0, 0, 0], process.betas[t].log(), rtol=1e-12, atol=0)


def test_a_clip_is_treated_as_its_frames():
    process, x, t = DDPM(), samples(2, 5, 3, 2, 2), torch.tensor([40, 900])
    output = samples(2, 5, 6, 2, 2, seed=1)
    clip = process.p_mean_variance(output, x, t)
    frames = process.p_mean_variance(output.flatten(0, 1), x.flatten(0, 1), t.repeat_interleave(5))
    for a, b in zip(clip, frames, strict=True):
        assert torch.equal(a.flatten(0, 1), b)


def test_outputs_in_bfloat16_are_read_in_the_samples_precision():
    process, x, t = DDPM(), samples(2, 3, 2, 2).float(), torch.tensor([40, 900])
    output = samples(2, 6, 2, 2, seed=1).bfloat16()
    for a, b in zip(process.p_mean_variance(output, x, t), process.p_mean_variance(output.float(), x, t), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "arguments",
    [
        {"schedule": "sigmoid"},
        {"prediction": "score"},
        {"num_timesteps": 0},
        {"beta_start": 0.0},
        {"beta_start": 0.03},
        {"beta_end": 1.0},
    ],
)
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DDPM(**arguments)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="1000"):
        even(1000, steps)


def test_an_output_of_strange_width_is_refused():
    with pytest.raises(ValueError, match="learn_sigma"):
        split_output(torch.zeros(1, 5, 2, 2), 4)


@pytest.mark.parametrize("end", ["beta_start", "beta_end"])
def test_the_cosine_schedule_has_no_betas_to_choose(end):
    with pytest.raises(ValueError, match=f"pass .*{end}=null"):
        DDPM("cosine", **{end: 0.01})


def test_the_cosine_schedule_is_that_of_improved_ddpm():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2").betas
    torch.testing.assert_close(DDPM("cosine").betas.float(), theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_a_perfect_prediction_is_read_as_the_sample(prediction):
    process, x0, noise = DDPM(prediction=prediction), samples(3, 2, 4, 4), samples(3, 2, 4, 4, seed=1)
    t = torch.tensor([0, 500, 999])
    xt, target = process.q_sample(x0, t, noise), process.target(x0, t, noise)
    torch.testing.assert_close(process.predict_x0(target, xt, t), x0, rtol=1e-9, atol=1e-9)


def test_v_is_that_of_diffusers():
    from diffusers import DDIMScheduler

    process, x0, noise = DDPM(prediction="v"), samples(3, 2, 4, 4), samples(3, 2, 4, 4, seed=1)
    t, scheduler = torch.tensor([0, 500, 999]), DDIMScheduler(trained_betas=DDPM().betas.tolist())
    scheduler.alphas_cumprod = DDPM().alphas_cumprod
    torch.testing.assert_close(process.target(x0, t, noise), scheduler.get_velocity(x0, noise, t))


def test_a_flow_is_a_straight_path_with_one_velocity():
    flow, x0, noise = Flow(), samples(3, 2, 4, 4), samples(3, 2, 4, 4, seed=1)
    t = torch.tensor([0.0, 250.0, 1000.0])
    xt = flow.q_sample(x0, t, noise)
    torch.testing.assert_close(xt, torch.stack([x0[0], 0.75 * x0[1] + 0.25 * noise[1], noise[2]]))
    torch.testing.assert_close(flow.predict_x0(flow.target(x0, t, noise), xt, t), x0)
    with pytest.raises(ValueError, match="num_timesteps"):
        Flow(0)


@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_the_sample_is_read_from_v_and_x0_without_dividing_by_the_signal(prediction):
    process, x0, noise = DDPM("cosine", prediction=prediction), samples(1, 2, 4, 4), samples(1, 2, 4, 4, seed=1)
    t = torch.tensor([999])  # a signal of 5e-5
    output, xt = (f(x0, t, noise).float() for f in (process.target, process.q_sample))
    torch.testing.assert_close(process.predict_x0(output, xt, t), x0.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.p_mean_variance(output, xt, t)[2], x0.float(), rtol=1e-6, atol=1e-6)
