"""Tables of modulation: the same samples, with the layers that make it called once for many steps."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn

from neural_rdm.backbones import modulation
from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.backbones.uvit import UViT
from neural_rdm.diffusion.process import DDPM, Flow
from neural_rdm.diffusion.samplers import Sampler, sample

TINY = {"input_size": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
Y, NULL = {"y": torch.tensor([0, 1, 2])}, {"y": torch.tensor([3])}


def opened(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.1, generator=generator)
    return net


@pytest.mark.parametrize(
    ("net", "process", "sampler"),
    [
        (DiT(**TINY), DDPM(), Sampler("ddim", 5, cfg_scale=4.0, interval=(300, 700))),
        (DiT(**TINY, adaln="single"), DDPM(), Sampler("dpm++", 3)),
        (Latte(**TINY, num_frames=2, extras=2), Flow(), Sampler("heun", 3, cfg_scale=2.0)),
        (UViT(4, 2, 4, 16, 2, 2, num_classes=4), DDPM(), Sampler("ddim", 3, cfg_scale=2.0)),
    ],
)
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_samples_stay_and_layers_run_once_for_many_steps(
    net: nn.Module, process: DDPM | Flow, sampler: Sampler, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(net)
    layers = [block.adaLN_modulation for block in getattr(net, "blocks", []) if hasattr(block, "adaLN_modulation")]
    made = [layer for layer in layers if isinstance(layer[-1], nn.Linear)]
    rows = 2 * (1 if sampler.cfg_scale == 1 else 2)  # of the batch of two; that of one holds twice as many steps
    monkeypatch.setattr(modulation, "BYTES", at_once * 4 * rows * 6 * 16 * max(1, len(made)))
    draw = partial(sample, net, process, sampler, net.input_shape, 3, 0, Y, NULL, batch_size=2)
    plain, calls = draw(), []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in made]
    tabled = draw(ahead=partial(modulation.modulated, net))
    for handle in handles:
        handle.remove()
    assert (tabled - plain).abs().max() / plain.std() < 1e-5
    steps = len(set(sampler.scheduler(process).timesteps.tolist()))
    assert len(calls) == len(made) * (-(-steps // at_once) + -(-steps // (2 * at_once)))
    assert all(a is b.adaLN_modulation for a, b in zip(layers, getattr(net, "blocks", []), strict=False))


def test_layers_are_back_afterwards_and_after_an_error() -> None:
    net = DiT(**TINY)
    layers = [block.adaLN_modulation for block in net.blocks]
    with modulation.modulated(net, [1, 0], Y, 3) as tell:
        tell(1)
        assert net.blocks[0].adaLN_modulation is not layers[0]
    with suppress(ValueError), modulation.modulated(net, [1, 0], Y, 3) as tell:
        tell(2)  # no such time
    assert [block.adaLN_modulation for block in net.blocks] == layers


def test_compiled_blocks_are_left_alone() -> None:
    net = DiT(**TINY)
    layers = [block.adaLN_modulation for block in net.blocks]
    net.blocks[0].compile(backend="eager")
    with modulation.modulated(net, [1, 0], Y, 3) as tell:
        tell(1)
        assert [block.adaLN_modulation is layer for block, layer in zip(net.blocks, layers, strict=True)] == [
            True,
            False,
        ]
