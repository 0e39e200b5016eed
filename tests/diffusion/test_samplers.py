"""The samplers: against the official DiT code, on a distribution known exactly, and independent of the batch."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from neural_rdm.core.seeding import normal
from neural_rdm.diffusion.guidance import guided_model
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import Sampler, denoise, sample
from tests.diffusion.respaced import spaced
from tests.diffusion.test_process import GOLDEN, samples, stand_in
from tests.helpers import covering, shared

NOTHING = {"y": torch.tensor([0])}  # the null condition
KINDS = [Sampler("ddim", 6), Sampler("ddim", 6, eta=0.7), Sampler("dpm++", 6), Sampler("ddpm", 6)]
MEAN, STD = 0.8, 0.5


class Network(nn.Module):
    """Conditional, mixes pixels, 2C channels, with dropout that must not act."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        shift = 0.0 if y is None else 0.1 * y.view(-1, 1, 1, 1)
        flat = x.flatten(0, -4)
        out = self.dropout(torch.tanh(self.conv(flat))).unflatten(0, x.shape[:-3])
        return 0.3 * out + shift


def exact_epsilon(process: DDPM):
    """What a perfect network says where the data are N(MEAN, STD^2)."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        bar = process.alphas_cumprod[t].to(x.dtype).view(-1, 1, 1, 1)
        return (1 - bar).sqrt() * (x - bar.sqrt() * MEAN) / (bar * STD**2 + 1 - bar)

    return predict


def test_50_ddim_steps_equal_the_official_run():
    golden = load_file(shared(GOLDEN))
    found = denoise(stand_in, DDPM(), Sampler("ddim", 50), golden["ddim.noise"])
    assert (found - golden["ddim.sample"]).abs().max() / golden["ddim.sample"].std() < 1e-5
    assert Sampler("ddim", 50).scheduler(DDPM()).timesteps.flip(0).tolist() == golden["ddim.timesteps"].tolist()


def test_ddpm_visits_the_official_250_timesteps():
    golden = load_file(shared(GOLDEN))
    assert Sampler("ddpm", 250).scheduler(DDPM()).timesteps.flip(0).tolist() == golden["ddpm250.timesteps"].tolist()


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("shape", [(2, 4, 3, 3), (2, 5, 4, 3, 3)], ids=["images", "clips"])
def test_ddpm_steps_draw_from_our_process(learned, shape):
    """All of a short run, redone with the mean and variance of `process.p_mean_variance` (itself golden)."""
    process, noise = DDPM(), samples(*shape)
    channels = 2 * shape[-3] if learned else shape[-3]

    def predict(x: Tensor, t: Tensor) -> Tensor:
        shift = t.view(-1, *[1] * (x.dim() - 1)) / 1000
        return torch.cat([torch.tanh(x + shift), torch.sin(x)], dim=-3).narrow(-3, 0, channels)

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(i) for i in range(len(noise))]

    found = denoise(predict, process, Sampler("ddpm", 5), noise, generators())
    (fewer, timesteps), x, draws = spaced(process, 5), noise, generators()
    for index in reversed(range(5)):
        t = torch.full((len(x),), index)
        mean, log_variance, _ = fewer.p_mean_variance(predict(x, timesteps[t]), x, t)
        x = mean
        if index > 0:
            rows = [torch.randn(1, *x.transpose(1, -3).shape[1:], generator=g, dtype=x.dtype) for g in draws]
            x = mean + torch.exp(log_variance / 2) * torch.cat(rows).transpose(1, -3)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)


def test_without_a_learned_variance_ddpm_draws_with_fixed_large_as_dit_does():
    """One step to t = 250 of 0, 250, ..., 999 from one noise: its spread is sqrt(1 - bar_t / bar_before), not less."""
    process, x = DDPM(), torch.zeros(1, 1, 64, 64)
    (fewer, _), draws = spaced(process, 5), torch.Generator().manual_seed(0)
    found = denoise(lambda x, t: torch.zeros_like(x), process, Sampler("ddpm", 5), x, [draws])
    draws, expected = torch.Generator().manual_seed(0), x
    for index in reversed(range(5)):
        t = torch.tensor([index])
        expected, _, _ = fewer.q_posterior(fewer.predict_x0(torch.zeros_like(x), expected, t), expected, t)
        if index:
            expected = expected + fewer.betas[index].sqrt() * torch.randn(x.shape, generator=draws)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def deviation(name: str, steps: int) -> float:
    """How far a run under the exact epsilon ends from the probability flow's exact solution (affine in the noise)."""
    process, noise = DDPM(), torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1)
    bar = process.alphas_cumprod[-1].item()
    exact = MEAN + STD * (noise - math.sqrt(bar) * MEAN) / math.sqrt(bar * STD**2 + 1 - bar)
    return (denoise(exact_epsilon(process), process, Sampler(name, steps), noise) - exact).abs().max().item()


def test_ddim_solves_the_probability_flow_to_first_order():
    coarse, fine = deviation("ddim", 50), deviation("ddim", 100)
    assert coarse < 0.12 * STD
    assert fine < 0.55 * coarse


def test_dpm_solver_solves_it_to_higher_order():
    assert deviation("dpm++", 50) < 2e-3 * STD
    assert deviation("dpm++", 50) < deviation("ddim", 50) / 50


@pytest.mark.parametrize("sampler", [Sampler("ddpm", 100), Sampler("ddim", 100, eta=1.0)], ids=["ddpm", "ddim"])
def test_stochastic_samplers_draw_from_the_data(sampler):
    process = DDPM()
    drawn = sample(exact_epsilon(process), process, sampler, (1, 32, 32), 16, batch_size=16)
    error = STD / math.sqrt(drawn.numel())
    assert drawn.mean().item() == pytest.approx(MEAN, abs=4 * error + 0.01)
    assert drawn.std().item() == pytest.approx(STD, abs=4 * error + 0.02)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_no_step_waits_for_the_device(name):
    # meta tensors have no values: whatever would copy one to the host fails on them
    network, noise, y = Network().to("meta"), torch.zeros(2, 3, 4, 4, device="meta"), torch.zeros(2, device="meta")
    sampler = Sampler(name, 4, cfg_scale=2.0, interval=(200, 700))
    predict = guided_model(network, sampler.guidance, {"y": y}, NOTHING)
    assert denoise(predict, DDPM(), sampler, noise).shape == noise.shape


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4)], ids=["images", "clips"])
@pytest.mark.parametrize("sampler", KINDS, ids=["ddim", "eta", "dpm++", "ddpm"])
def test_a_sample_depends_only_on_its_number(sampler, shape):
    network, process = Network(), DDPM()
    y = {"y": torch.tensor([1, 2, 3, 4, 5])} if len(shape) == 3 else None
    whole = sample(network, process, sampler, shape, 5, seed=3, condition=y, batch_size=4)
    single = sample(network, process, sampler, shape, 5, seed=3, condition=y, batch_size=1)
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=1e-5)
    some = sample(network, process, sampler, shape, [4, 1], seed=3, condition=y and {"y": y["y"][[4, 1]]})
    torch.testing.assert_close(some, whole[[4, 1]], rtol=1e-5, atol=1e-5)
    other = sample(network, process, sampler, shape, 5, seed=4, condition=y)
    assert (other - whole).flatten(1).abs().amax(dim=1).min() > 1e-2


@pytest.mark.parametrize("sampler", KINDS[1::2], ids=["eta", "ddpm"])
def test_step_noise_is_not_the_initial_noise(sampler):
    drawn = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        drawn.append(x)
        return torch.zeros_like(x)

    sample(network, DDPM(), sampler, (1, 8, 8), 2, seed=5)
    assert torch.equal(drawn[0], normal(5, "sample", [0, 1], (1, 8, 8)))
    # were the same noise added again, the second state would be a multiple of the first
    ratio = (drawn[1] / drawn[0]).flatten(1)
    assert (ratio.std(dim=1) > 1e-2).all()


def test_guidance_reaches_the_network():
    network, process = Network(), DDPM()
    y, null = torch.tensor([1, 2]), torch.tensor([0, 0])
    plain = sample(network, process, Sampler(steps=4), (3, 4, 4), 2, condition={"y": y})
    guided = sample(
        network,
        process,
        Sampler(steps=4, cfg_scale=3.0),
        (3, 4, 4),
        2,
        condition={"y": y},
        null=NOTHING,
    )
    # this network is affine in y, so guiding by 3 from the null class 0 is conditioning on 3 y
    tripled = sample(network, process, Sampler(steps=4), (3, 4, 4), 2, condition={"y": 3 * y})
    torch.testing.assert_close(guided, tripled, rtol=1e-5, atol=1e-5)
    outside = Sampler(steps=4, cfg_scale=3.0, interval=(1, 2))
    with pytest.raises(ValueError, match=r"interval=\(1, 2\) holds none of the timesteps"):
        sample(network, process, outside, (3, 4, 4), 2, condition={"y": y}, null=NOTHING)
    assert not torch.equal(guided, plain)
    unconditional = sample(
        network,
        process,
        Sampler(steps=4, cfg_scale=0.0),
        (3, 4, 4),
        2,
        condition={"y": y},
        null=NOTHING,
    )
    torch.testing.assert_close(
        unconditional, sample(network, process, Sampler(steps=4), (3, 4, 4), 2, condition={"y": null})
    )


def test_the_module_runs_in_eval_mode_without_gradients_and_gets_its_modes_back():
    network = Network()
    network.conv.eval()
    network.register_forward_pre_hook(lambda module, _: seen.append((module.dropout.training, torch.is_grad_enabled())))
    seen: list[tuple[bool, bool]] = []
    sample(network, DDPM(), Sampler(steps=2), (3, 4, 4), 1)
    assert seen == [(False, False)] * 2
    assert (network.training, network.dropout.training, network.conv.training) == (True, True, False)
    with pytest.raises(ValueError, match="cfg_scale"):
        sample(network, DDPM(), Sampler(steps=2, cfg_scale=2.0), (3, 4, 4), 1)
    assert network.training


def test_finish_is_applied_to_each_batch():
    sizes = []

    def finish(z: Tensor) -> Tensor:
        sizes.append(len(z))
        return z.mul(10).round().to(torch.int16)

    kept = sample(Network(), DDPM(), Sampler(steps=2), (3, 4, 4), 5, batch_size=2, finish=finish)
    assert sizes == [2, 2, 1]
    assert torch.equal(kept, finish(sample(Network(), DDPM(), Sampler(steps=2), (3, 4, 4), 5, batch_size=2)))


def test_the_progress_bar_counts_every_step_on_standard_error(capsys, monkeypatch):
    monkeypatch.setattr("neural_rdm.core.progress._WORTH_TELLING", 0.0)
    sample(Network(), DDPM(), Sampler(steps=3), (3, 4, 4), 5, batch_size=2, progress=True)
    captured = capsys.readouterr()
    assert "9/9" in captured.err
    assert "steps, " in captured.err
    assert captured.out == ""


def test_latent_diffusions_timesteps_start_at_one_and_end_at_the_first_alpha_bar():
    process = DDPM("scaled_linear", beta_start=0.0015, beta_end=0.0195)
    scheduler = Sampler("ddim", 50, steps_offset=1).scheduler(process)
    assert scheduler.timesteps.tolist()[-3:] == [41, 21, 1]
    assert scheduler.final_alpha_cumprod.item() == pytest.approx(process.alphas_cumprod[0].item())
    assert Sampler("ddim", 50).scheduler(process).final_alpha_cumprod.item() == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "lcm"},
        {"steps": 0},
        {"eta": 1.5},
        {"steps_offset": 2},
        {"name": "dpm++", "eta": 0.5},
        {"name": "ddpm", "steps_offset": 1},
        {"channels": "some"},
        {"interval": (3, 1)},
    ],
    ids=str,
)
def test_impossible_samplers_are_refused(arguments):
    with pytest.raises(ValueError, match=list(arguments)[-1]):
        Sampler(**arguments)


@pytest.mark.parametrize(
    ("name", "offset", "most"), [("ddim", 0, 20), ("ddim", 1, 19), ("ddpm", 0, 20), ("dpm++", 0, 19)]
)
def test_the_most_steps_run_and_one_more_is_refused(name, offset, most):
    process, noise = DDPM(num_timesteps=20), samples(1, 1, 2, 2)
    generators = [torch.Generator()] if name == "ddpm" else None
    found = denoise(lambda x, t: 0.1 * x, process, Sampler(name, most, steps_offset=offset), noise, generators)
    assert found.isfinite().all()
    with pytest.raises(ValueError, match=f"at most {most}"):
        denoise(lambda x, t: x, process, Sampler(name, most + 1, steps_offset=offset), noise, generators)


def test_what_cannot_be_sampled_is_refused():
    network, process = Network(), DDPM()
    with pytest.raises(ValueError, match="nothing to sample"):
        sample(network, process, Sampler(), (3, 4, 4), [])
    with pytest.raises(ValueError, match="3 rows of y for 2"):
        sample(network, process, Sampler(), (3, 4, 4), 2, condition={"y": torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match="one generator per sample"):
        denoise(network, process, Sampler("ddpm"), torch.zeros(2, 3, 4, 4))


def exact_flow(mean: Tensor, variance: Tensor):
    """The velocity E[eps - x_0 | x_t] for data N(mean, variance), with t in [0, 1000]."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, 1, 1, 1).to(x.dtype) / 1000
        total = (1 - t) ** 2 * variance + t**2
        centred = x - (1 - t) * mean
        return t * centred / total - mean - (1 - t) * variance * centred / total

    return velocity


def test_euler_and_heun_follow_a_flow_at_first_and_second_order() -> None:
    mean, variance = torch.tensor([1.0, -0.5]).view(2, 1, 1), torch.tensor([0.2, 2.0]).view(2, 1, 1)
    noise = samples(4, 2, 3, 3).double()
    exact = mean + variance.sqrt() * noise  # a Gaussian keeps its standard score along the PF-ODE
    errors = {
        name: [
            (denoise(exact_flow(mean, variance), Flow(), Sampler(name, steps=n), noise) - exact).abs().max().item()
            for n in (16, 32, 64)
        ]
        for name in ("euler", "heun")
    }
    for name, order in (("euler", 1), ("heun", 2)):
        for coarse, fine in itertools.pairwise(errors[name]):
            assert math.log2(coarse / fine) == pytest.approx(order, abs=0.3), (name, errors)


@pytest.mark.parametrize(
    ("name", "prediction"), covering(["ddim", "dpm++", "ddpm"], ["v", "x0"], whole=[("dpm++", ...)])
)
def test_a_network_may_predict_v_or_x0_instead(name: str, prediction: str) -> None:
    process, other = DDPM(), DDPM(prediction=prediction)
    sampler, noise = Sampler(name, steps=10), samples(2, 3, 4, 4).double()
    generators = [[torch.Generator().manual_seed(i) for i in range(2)] for _ in range(2)]

    def as_epsilon(x: Tensor, t: Tensor) -> Tensor:
        return 0.9 * x * process._at("noise", t, x)

    def as_other(x: Tensor, t: Tensor) -> Tensor:
        eps = as_epsilon(x, t)
        return other.target(process.predict_x0(eps, x, t), t, eps)

    expected = denoise(as_epsilon, process, sampler, noise, generators[0])
    found = denoise(as_other, other, sampler, noise, generators[1])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "process"), [("euler", DDPM()), ("heun", DDPM()), ("ddim", Flow()), ("ddpm", Flow())])
def test_a_sampler_of_the_other_kind_of_process_is_refused(name: str, process: DDPM | Flow) -> None:
    with pytest.raises(ValueError, match=f"name={name} cannot run a"):
        Sampler(name).scheduler(process)


#: processes whose last timesteps are so noisy that x_0 cannot be read from a predicted epsilon
NOISY = {"cosine": DDPM("cosine"), "steep": DDPM(beta_end=0.05), "long": DDPM(num_timesteps=4000)}


@pytest.mark.parametrize(
    ("name", "noisy"), [*covering(["ddim", "dpm++", "ddpm"], list(NOISY), whole=[(..., "cosine")]), ("ddpm", "steep")]
)
def test_no_sampler_starts_where_an_error_of_epsilon_explodes(name: str, noisy: str) -> None:
    """A network that is wrong by 0.02, at the most steps that the sampler takes: errors must not grow beyond bounds."""
    process = NOISY[noisy]
    start, last = samples(4, 1, 4, 4).double(), process.usable
    most = {"ddim": process.num_timesteps, "dpm++": last - 1, "ddpm": last}[name]
    assert last < process.num_timesteps
    exact, wrong = exact_epsilon(process), 0.02 * samples(4, 1, 4, 4, seed=3).double()
    for steps in (250, most):
        drawn = [
            denoise(p, process, Sampler(name, steps), start, [torch.Generator().manual_seed(i) for i in range(4)])
            for p in (exact, lambda x, t: exact(x, t) + wrong)
        ]
        assert drawn[1].isfinite().all()
        assert (drawn[1] - drawn[0]).abs().max() < 1, steps


@pytest.mark.parametrize("process", NOISY.values(), ids=NOISY)
def test_the_most_dpm_steps_are_distinct_and_one_more_is_refused(process: DDPM) -> None:
    most = process.usable - 1
    times = Sampler("dpm++", most).scheduler(process).timesteps
    assert len(times) == most
    assert (times.diff() < 0).all()
    with pytest.raises(ValueError, match=f"at most {most}"):
        Sampler("dpm++", most + 1).scheduler(process)


@pytest.mark.parametrize("sampler", [Sampler("euler", 4), Sampler("heun", 4)], ids=["euler", "heun"])
def test_guidance_up_to_pure_noise_guides_a_flow_from_its_first_step(sampler: Sampler) -> None:
    network, y = Network(), {"y": torch.tensor([1, 2])}
    wide, always = replace(sampler, cfg_scale=3.0, interval=(0, 1000)), replace(sampler, cfg_scale=3.0)
    drawn = [sample(network, Flow(), s, (3, 4, 4), 2, condition=y, null=NOTHING) for s in (wide, always)]
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="interval"):
        replace(sampler, cfg_scale=3.0, interval=(10, 20)).scheduler(Flow())
    assert replace(sampler, interval=(10, 20)).scheduler(Flow()) is not None  # without guidance it says nothing
