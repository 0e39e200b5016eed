"""The losses against the official DiT code, and their parts against what they must be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from neural_rdm.diffusion.objectives import DDPMObjective, FlowObjective, discretized_log_likelihood, normal_kl
from neural_rdm.diffusion.process import DDPM, Flow
from tests.diffusion.test_process import GOLDEN, samples, stand_in
from tests.helpers import shared


def batch(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    x0, noise = samples(*shape, seed=1).to(dtype), samples(*shape, seed=2).to(dtype)
    t = torch.tensor([0, 1, 700])
    return {"x0": x0, "xt": DDPM().q_sample(x0, t, noise), "t": t, "noise": noise}


def test_hybrid_equals_the_official_training_losses():
    golden = load_file(shared(GOLDEN))
    x0, xt, t, noise = (golden[name] for name in ("x_start", "x_t", "t", "noise"))
    losses = DDPMObjective(DDPM(), "hybrid").loss(stand_in(xt, t), x0, xt, t, noise)
    assert set(losses) == {"loss", "mse", "vb"}
    for name, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, golden[f"training.{name}"], rtol=1e-5, atol=1e-7)


def test_simple_leaves_the_learned_variance_out():
    output, given_ = samples(3, 8, 2, 2), batch(3, 4, 2, 2)
    losses = DDPMObjective(DDPM(), "simple").loss(output, **given_)
    assert set(losses) == {"loss", "mse"}
    expected = (output[:, :4] - given_["noise"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses["loss"], expected, rtol=1e-12, atol=0)
    narrow = DDPMObjective(DDPM(), "simple").loss(output[:, :4], **given_)
    assert torch.equal(narrow["loss"], losses["loss"])


def test_the_bound_trains_only_the_variance():
    output = samples(3, 8, 2, 2).requires_grad_()
    losses = DDPMObjective(DDPM()).loss(output, **batch(3, 4, 2, 2))
    (gradient,) = torch.autograd.grad(losses["vb"].sum(), output)
    assert gradient[:, :4].abs().max() == 0
    assert (gradient[:, 4:].abs().amax(dim=(1, 2, 3)) > 0).all()


def test_the_bound_weighs_one_at_any_number_of_steps_as_in_official_dit():
    process = DDPM(num_timesteps=500)
    output, t = samples(3, 8, 2, 2), torch.tensor([0, 1, 400])
    x0, noise = samples(3, 4, 2, 2, seed=1), samples(3, 4, 2, 2, seed=2)
    xt = process.q_sample(x0, t, noise)
    objective = DDPMObjective(process)
    losses = objective.loss(output, x0, xt, t, noise)
    torch.testing.assert_close(losses["vb"], objective.bits(output, x0, xt, t), rtol=1e-12, atol=0)
    torch.testing.assert_close(losses["loss"], losses["mse"] + losses["vb"], rtol=1e-12, atol=0)


def test_the_bound_is_zero_where_the_prediction_is_exact():
    x0, noise, t = samples(2, 4, 2, 2), samples(2, 4, 2, 2, seed=1), torch.tensor([3, 700])
    xt = DDPM().q_sample(x0, t, noise)
    exact = torch.cat([noise, -torch.ones_like(noise)], dim=1)
    assert DDPMObjective(DDPM()).bits(exact, x0, xt, t).abs().max() < 1e-9


def test_losses_of_bfloat16_outputs_are_float32_and_computed_so():
    output, given_ = samples(3, 8, 2, 2).bfloat16(), batch(3, 4, 2, 2, dtype=torch.float32)
    objective = DDPMObjective(DDPM())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = objective.loss(output, **given_)
    for name, value in objective.loss(output.float(), **given_).items():
        assert losses[name].dtype == torch.float32
        assert torch.equal(losses[name], value)


def test_a_clips_loss_is_the_mean_of_its_frames():
    output, given_ = samples(3, 5, 8, 2, 2), batch(3, 5, 4, 2, 2)
    objective = DDPMObjective(DDPM())
    clip = objective.loss(output, **given_)
    t = given_.pop("t").repeat_interleave(5)
    frames = objective.loss(output.flatten(0, 1), t=t, **{k: v.flatten(0, 1) for k, v in given_.items()})
    for name, value in clip.items():
        torch.testing.assert_close(value, frames[name].view(3, 5).mean(dim=1), rtol=1e-12, atol=1e-12)


@settings(deadline=None)
@given(count=st.integers(1, 1000), u=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=20))
def test_timesteps_are_those_of_the_uniform_numbers(count, u):
    objective = DDPMObjective(DDPM(num_timesteps=count))
    t = objective.timesteps(torch.tensor(u, dtype=torch.float64))
    assert t.dtype == torch.int64
    assert t.tolist() == [min(int(value * count), count - 1) for value in u]


def test_each_timestep_gets_an_equal_share_and_float32_cannot_overflow():
    objective = DDPMObjective(DDPM(num_timesteps=10))
    assert objective.timesteps((torch.arange(1000) + 0.5) / 1000).bincount().tolist() == [100] * 10
    assert objective.timesteps(torch.tensor([1.0 - 1e-12], dtype=torch.float32)).tolist() == [9]


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(-4, 4), st.floats(-3, 3), st.floats(-4, 4))
def test_the_divergence_is_that_of_torch_and_never_negative(mean, log_variance, other_mean, other_log_variance):
    values = [torch.tensor(v, dtype=torch.float64) for v in (mean, log_variance, other_mean, other_log_variance)]
    p, q = (torch.distributions.Normal(m, (v / 2).exp()) for m, v in (values[:2], values[2:]))
    kl = normal_kl(*values)
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(p, q), rtol=1e-9, atol=1e-12)
    assert kl >= -1e-12


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(-4, 0))
def test_the_256_levels_share_all_the_probability(mean, log_scale):
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    log_p = discretized_log_likelihood(levels, torch.tensor(mean), torch.tensor(log_scale, dtype=torch.float64))
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_likelihood_is_near_the_true_normal_one():
    x = torch.tensor([-1.0, -0.5, 0.2, 1.0], dtype=torch.float64).round(decimals=6)
    normal = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.4)
    upper, lower = normal.cdf(x + 1 / 255), normal.cdf(x - 1 / 255)
    expected = torch.stack([upper[0], upper[1] - lower[1], upper[2] - lower[2], 1 - lower[3]])
    found = discretized_log_likelihood(x, normal.mean, normal.stddev.log())
    torch.testing.assert_close(found.exp(), expected, rtol=0.1, atol=0)  # the tanh form is 6 % off in the tail


@pytest.mark.parametrize("loss", ["hybrid", "simple"])
def test_a_training_step_never_waits_for_the_device(loss):
    # meta tensors have no values: whatever would copy one to the host fails on them
    process, x0, u = DDPM(), torch.zeros(3, 4, 2, 2, device="meta"), torch.zeros(3, device="meta")
    objective = DDPMObjective(process, loss)
    t = objective.timesteps(u)
    losses = objective.loss(torch.zeros(3, 8, 2, 2, device="meta"), x0, process.q_sample(x0, t, x0), t, x0)
    assert losses["loss"].shape == (3,)


def test_a_network_without_a_learned_variance_has_no_bound():
    output, given_ = samples(3, 4, 2, 2), batch(3, 4, 2, 2)
    losses = DDPMObjective(DDPM()).loss(output, **given_)
    assert set(losses) == {"loss", "mse"}
    assert torch.equal(losses["loss"], DDPMObjective(DDPM(), "simple").loss(output, **given_)["loss"])


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="hybrid, simple"):
        DDPMObjective(DDPM(), "huber")


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_min_snr_weighs_the_same_error_of_x0_whatever_is_predicted(prediction):
    """min(SNR, 5) times the squared error of x_0 (Hang et al. 2023, eq. 7)."""
    process, given_ = DDPM(prediction=prediction), batch(3, 4, 2, 2)
    output = samples(3, 4, 2, 2, seed=5)
    loss = DDPMObjective(process, "simple", min_snr_gamma=5.0).loss(output, **given_)["loss"]
    x0 = process.predict_x0(output, given_["xt"], given_["t"])
    snr = (process.alphas_cumprod / (1 - process.alphas_cumprod))[given_["t"]]
    expected = snr.clamp(max=5) * (x0 - given_["x0"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss, expected, rtol=1e-8, atol=0)
    assert (snr > 5).any()
    assert (snr < 5).any()


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
@pytest.mark.parametrize("loss", ["hybrid", "simple"])
def test_a_perfect_network_has_no_squared_error(prediction, loss):
    process, given_ = DDPM(prediction=prediction), batch(3, 4, 2, 2)
    target = process.target(given_["x0"], given_["t"], given_["noise"])
    # v = -1 is the posterior's own variance: then the bound is 0 too, but for t = 0
    losses = DDPMObjective(process, loss).loss(torch.cat([target, -torch.ones_like(target)], dim=1), **given_)
    assert losses["mse"].max() < 1e-20
    if loss == "hybrid":
        assert losses["vb"][1:].abs().max() < 1e-9


def test_a_flow_is_trained_on_its_velocity_and_leaves_a_learned_variance_out():
    x0, noise, t = samples(3, 4, 2, 2, seed=1), samples(3, 4, 2, 2, seed=2), torch.tensor([0.0, 300.0, 999.0])
    objective, output = FlowObjective(Flow()), samples(3, 8, 2, 2)
    losses = objective.loss(output, x0, objective.process.q_sample(x0, t, noise), t, noise)
    torch.testing.assert_close(losses["loss"], (noise - x0 - output[:, :4]).square().mean(dim=(1, 2, 3)))


def test_times_of_a_flow_are_logit_normal_or_uniform():
    u = (torch.arange(10_000) + 0.5) / 10_000
    assert torch.equal(FlowObjective(Flow(), logit_std=None).timesteps(u), 1000 * u)
    t = FlowObjective(Flow(), logit_mean=0.5, logit_std=0.8).timesteps(u) / 1000
    assert torch.logit(t).mean().item() == pytest.approx(0.5, abs=1e-3)
    assert torch.logit(t).std().item() == pytest.approx(0.8, abs=5e-3)
    ends = FlowObjective(Flow()).timesteps(torch.tensor([0.0, 1 - 2**-24]))
    assert FlowObjective(Flow()).timesteps(u.double()).dtype == torch.float32  # MPS has no float64
    assert ((ends > 0) & (ends < 1000)).all()


@pytest.mark.parametrize("arguments", [{"min_snr_gamma": 0.0}, {"loss": "huber"}])
def test_impossible_objectives_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        DDPMObjective(DDPM(), **arguments)
    with pytest.raises(ValueError, match="logit_std"):
        FlowObjective(Flow(), logit_std=0.0)
