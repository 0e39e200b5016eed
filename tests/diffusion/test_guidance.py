"""Guidance: its identities in float64 and how many samples it sends through the network."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neural_rdm.diffusion.guidance import Guidance, guided_model
from tests.diffusion.test_process import samples

NULL = 10


class Network:
    """Depends on x, t and y, sample by sample; 2C channels; remembers its batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        label = torch.zeros(len(x)) if y is None else y
        shift = (label.double().sin() + t / 1000).view(-1, *[1] * (x.dim() - 1))
        return torch.cat([torch.tanh(x + shift), x * shift], dim=-3)


X, T, Y = samples(2, 4, 3, 3), torch.tensor([500, 500]), torch.tensor([3, 7])
CONDITION, NOTHING = {"y": Y}, {"y": torch.tensor([NULL])}


def outputs(guidance: Guidance, x: Tensor = X, t: Tensor = T) -> Tensor:
    return guided_model(Network(), guidance, CONDITION, NOTHING)(x, t)


def halves(x: Tensor = X, t: Tensor = T) -> tuple[Tensor, Tensor]:
    return Network()(x, t, Y), Network()(x, t, torch.full_like(Y, NULL))


def test_scale_one_is_one_conditional_forward():
    network = Network()
    out = guided_model(network, Guidance(1.0), CONDITION, NOTHING)(X, T)
    assert torch.equal(out, halves()[0])
    assert network.batches == [2]


def test_guided_steps_run_both_halves_as_one_batch():
    network = Network()
    guided_model(network, Guidance(4.0), CONDITION, NOTHING)(X, T)
    assert network.batches == [4]


@settings(deadline=None)
@given(st.floats(-10, 10).filter(lambda s: s != 1))
def test_epsilon_is_extrapolated_and_the_variance_is_conditional(scale):
    (cond, uncond), out = halves(), outputs(Guidance(scale))
    torch.testing.assert_close(out[:, :4], (1 - scale) * uncond[:, :4] + scale * cond[:, :4], rtol=1e-10, atol=1e-10)
    assert torch.equal(out[:, 4:], cond[:, 4:])


def test_output_is_linear_in_the_scale():
    at_2, at_3, at_5 = (outputs(Guidance(s)) for s in (2.0, 3.0, 5.0))
    torch.testing.assert_close(at_5, at_2 + 3 * (at_3 - at_2), rtol=1e-12, atol=1e-12)


def test_scale_zero_is_unconditional():
    torch.testing.assert_close(outputs(Guidance(0.0))[:, :4], halves()[1][:, :4], rtol=0, atol=0)


def test_three_channels_are_the_official_forward_with_cfg():
    def forward_with_cfg(model: Network, x: Tensor, t: Tensor, y: Tensor, cfg_scale: float) -> Tensor:
        # restated from the official DiT: the batch holds every sample twice, the second half with the null class
        half = x[: len(x) // 2]
        out = model(torch.cat([half, half]), t, y)
        eps, rest = out[:, :3], out[:, 3:]
        cond_eps, uncond_eps = eps.chunk(2)
        half_eps = uncond_eps + cfg_scale * (cond_eps - uncond_eps)
        return torch.cat([torch.cat([half_eps, half_eps]), rest], dim=1)

    both = torch.cat([Y, torch.full_like(Y, NULL)])
    official = forward_with_cfg(Network(), torch.cat([X, X]), torch.cat([T, T]), both, 1.5)
    torch.testing.assert_close(outputs(Guidance(1.5, channels=3)), official[:2], rtol=0, atol=0)


def test_all_channels_of_a_clip_are_those_of_dimension_minus_three():
    clip = samples(2, 5, 4, 3, 3)
    out, (cond, uncond) = outputs(Guidance(3.0), clip), halves(clip)
    torch.testing.assert_close(out[:, :, :4], uncond[:, :, :4] + 3 * (cond - uncond)[:, :, :4], rtol=1e-12, atol=1e-12)
    assert torch.equal(out[:, :, 4:], cond[:, :, 4:])


@pytest.mark.parametrize(("t", "inside"), [(199, False), (200, True), (700, True), (701, False)])
def test_guidance_acts_from_lo_up_to_hi(t, inside):
    network, step = Network(), torch.tensor([t, t])
    out = guided_model(network, Guidance(3.0, interval=(200, 700)), CONDITION, NOTHING)(X, step)
    assert network.batches == [4 if inside else 2]
    assert torch.equal(out, outputs(Guidance(3.0 if inside else 1.0), t=step))


def test_an_interval_is_kept_sample_by_sample():
    mixed = torch.tensor([100, 500])
    out = outputs(Guidance(3.0, interval=(200, 700)), t=mixed)
    assert torch.equal(out[0], outputs(Guidance(1.0), t=mixed)[0])
    assert torch.equal(out[1], outputs(Guidance(3.0), t=mixed)[1])


def test_networks_without_labels_are_called_without_y():
    def network(x: Tensor, t: Tensor) -> Tensor:
        return x + t.view(-1, 1, 1, 1)

    assert torch.equal(guided_model(network, Guidance())(X, T), X + 500)


def test_outputs_come_in_the_samples_precision():
    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (x + y.view(-1, 1, 1, 1)).bfloat16()

    assert guided_model(network, Guidance(1.7), CONDITION, NOTHING)(X.float(), T).dtype == torch.float32


@pytest.mark.parametrize(
    ("y", "null", "word"), [(None, NOTHING, "labels or a text"), (CONDITION, None, "null condition")]
)
def test_guidance_needs_a_condition_and_a_null_one(y, null, word):
    with pytest.raises(ValueError, match=word):
        guided_model(Network(), Guidance(2.0), y, null)


@pytest.mark.parametrize(
    "arguments", [{"channels": 0}, {"channels": "3"}, {"interval": (5, 5)}, {"interval": (1,)}], ids=str
)
def test_impossible_guidance_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Guidance(**arguments)


def test_more_channels_than_there_are_is_refused():
    with pytest.raises(ValueError, match="channels=5"):
        outputs(Guidance(2.0, channels=5))
