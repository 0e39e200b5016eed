"""Gates in diffusers' models: the output does not move by a bit, run order, what is saved, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import gate
from neural_rdm.core.errors import CheckpointError
from neural_rdm.dynamics.probe import probe
from neural_rdm.residual import Residual, Unit, units
from tests.helpers import FIVE, covering, is_gate

diffusers = pytest.importorskip("diffusers", reason="gating foreign models needs diffusers")


def stable_diffusion(**more: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A small U-Net laid out like Stable Diffusion's, and inputs."""
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=2, **more,
    )  # fmt: skip
    return net, {"encoder_hidden_states": torch.randn(2, 5, 24)}


def linear_projection() -> tuple[nn.Module, dict[str, Any]]:
    """The same as Stable Diffusion 2 writes it."""
    return stable_diffusion(use_linear_projection=True, only_cross_attention=(True, False))


def adm() -> tuple[nn.Module, dict[str, Any]]:
    """Bare attention, scale-shift norms, ResBlocks that change the resolution, labels."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D"), attention_head_dim=16, downsample_type="resnet",
        upsample_type="resnet", resnet_time_scale_shift="scale_shift", num_class_embeds=5,
    )  # fmt: skip
    return net, {"class_labels": torch.tensor([1, 4])}


NETWORKS = {"stable_diffusion": stable_diffusion, "linear_projection": linear_projection, "adm": adm}


def run(net: nn.Module, condition: dict[str, Any]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=next(net.parameters()).dtype)
    return net(x, torch.tensor([3, 700]), **condition).sample


@pytest.mark.parametrize(
    ("kind", "rule", "training"), covering(list(NETWORKS), FIVE, [True, False], whole=[(..., "gated", True)])
)
def test_the_output_does_not_move_by_a_bit_and_keys_stay(kind: str, rule: str, training: bool) -> None:
    net, condition = NETWORKS[kind]()
    net.train(training)
    keys, before = set(net.state_dict()), run(net, condition)
    assert gate(net, rule) is net
    assert torch.equal(run(net, condition), before)
    new = set(net.state_dict()) - keys
    assert keys <= set(net.state_dict())
    assert all(is_gate(k) for k in new)
    assert len(new) == len(list(units(net))) * {"gated": 2, "adaln": 2, "skip": 2, "resnet": 0, "rezero": 1}[rule]


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_units_are_listed_in_the_order_in_which_they_run(kind: str) -> None:
    net, condition = NETWORKS[kind]()
    gate(net)
    names, seen = {unit: name for name, unit in units(net)}, []
    for unit in names:
        unit.register_forward_pre_hook(lambda module, _: seen.append(names[module]))
    run(net, condition)
    assert seen == list(names.values())
    assert len(set(seen)) == len(seen) == sum(1 for m in net.modules() if isinstance(m, Unit))
    inner = [n for n in seen if "/" in n]
    assert all(n.split("/")[0] in seen for n in inner)
    assert bool(inner) == (kind != "adm")


@pytest.mark.parametrize(("kind", "rule"), covering(list(NETWORKS), ["gated", "adaln", "skip", "rezero"]))
def test_every_gate_reaches_the_output(kind: str, rule: str) -> None:
    net, condition = NETWORKS[kind]()
    gate(net, rule)
    run(net, condition).square().sum().backward()
    gates = {k: p.grad for k, p in net.named_parameters() if is_gate(k)}
    silent = [k for k, g in gates.items() if g is None or not g.any()]
    assert gates
    assert silent == []


@pytest.mark.parametrize(("kind", "rule"), covering(["stable_diffusion", "adm"], FIVE, whole=[(..., "gated")]))
def test_norms_of_the_probe_are_those_of_autograd_in_float64(kind: str, rule: str) -> None:
    """Entry and exit of every unit, nested and width-changing ones too, and the gates' own sensitivities (Eq. 12)."""
    net, condition = NETWORKS[kind]()
    gate(net, rule)
    net.double()
    condition = {k: v.double() if v.is_floating_point() else v for k, v in condition.items()}
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_gate(name):
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))
    with probe(net, branches=True) as rows:
        run(net, condition).square().sum().backward()
    squared, gradients = rows.grad, {k: p.grad.clone() for k, p in net.named_parameters() if is_gate(k)}
    entries, exits = {}, {}

    def enter(name: str) -> Any:
        def hook(unit: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            z = arguments[0].view_as(arguments[0])
            z.retain_grad()
            entries[name] = z
            return z, *arguments[1:]

        return hook

    def leave(name: str) -> Any:
        def hook(unit: nn.Module, arguments: tuple[Any, ...], out: Tensor) -> None:
            out.retain_grad()
            exits[name] = out

        return hook

    for name, unit in units(net):
        unit.register_forward_pre_hook(enter(name))
        unit.register_forward_hook(leave(name))
    net.zero_grad()
    run(net, condition).square().sum().backward()
    for (name, unit), row in zip(units(net), squared, strict=True):
        torch.testing.assert_close(row[0], entries[name].grad.square().sum(), rtol=1e-9, atol=0)
        torch.testing.assert_close(row[1], exits[name].grad.square().sum(), rtol=1e-9, atol=0)
        if rule in ("gated", "skip"):  # dL/dbeta = sum of the exit's gradient
            total = exits[name].grad.movedim(unit.channel_axis, -1).flatten(0, -2).sum(0)
            found = next(g for k, g in gradients.items() if unit.beta is dict(net.named_parameters())[k])
            torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-12)


def test_only_the_units_that_are_asked_for_get_gates() -> None:
    net, condition = stable_diffusion()
    before = run(net, condition)
    gate(net, units=["up_blocks.*resnets*", "*attn2_unit"])
    gated = {name for name, unit in units(net) if unit.has_alpha}
    assert torch.equal(run(net, condition), before)
    assert {n for n, _ in units(net)} > gated
    assert all(n.startswith("up_blocks.") or n.endswith("attn2_unit") for n in gated)
    with pytest.raises(ValueError, match=r"units='nothing\.\*' fits no unit; they are called down_blocks\.0"):
        gate(stable_diffusion()[0], units=["nothing.*"])
    for wrong in (3, [3]):
        with pytest.raises(ValueError, match="are no names of units, or patterns of them"):
            gate(stable_diffusion()[0], units=wrong)
    for wrong in ({"rule": "gated"}, ["gated"], None):
        with pytest.raises(ValueError, match=r"is no rule; pass its name, its class or a Residual"):
            gate(stable_diffusion()[0], wrong)


def test_a_list_of_blocks_and_an_autoencoder_can_be_gated() -> None:
    from diffusers.models.resnet import ResnetBlock2D

    blocks = nn.ModuleList([ResnetBlock2D(in_channels=32, temb_channels=None) for _ in "ab"])
    x = torch.randn(1, 32, 4, 4)
    before = blocks[1](blocks[0](x, None), None)
    gate(blocks)
    assert torch.equal(blocks[1](blocks[0](x, None), None), before)
    assert [name for name, _ in units(blocks)] == ["0.unit", "1.unit"]

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).eval()
    image = torch.randn(2, 3, 16, 16)  # of one image alone diffusers keeps another memory layout: equal to rounding
    before = vae(image).sample
    assert torch.equal(gate(vae)(image).sample, before)


def test_a_gated_model_is_saved_so_that_stock_diffusers_does_not_take_it(tmp_path: Path) -> None:
    from neural_rdm.residual.foreign.models import load_gated

    net, condition = stable_diffusion()
    gate(net, Residual("gated", granularity="scalar"), units=["down_blocks.*"])
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_gate(name):
                p.add_(0.3)
    net.eval().save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no file named"):
        diffusers.UNet2DConditionModel.from_pretrained(tmp_path)
    again = load_gated(tmp_path).eval()
    assert torch.equal(run(again, condition), run(net, condition))
    assert [u.has_alpha for _, u in units(again)] == [u.has_alpha for _, u in units(net)]
    with pytest.raises(CheckpointError, match="is not the folder of a gated model"):
        load_gated(tmp_path / "nothing")


def test_what_has_another_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="Linear has no residual blocks that can be gated"):
        gate(nn.Linear(2, 2))
    net, _ = stable_diffusion()
    with pytest.raises(ValueError, match="time_conditioned=true"):
        gate(net, Residual(time_conditioned=True))
    net.down_blocks[0].resnets[0].output_scale_factor = 2.0
    with pytest.raises(ValueError, match=r"down_blocks\.0\.resnets\.0 .*output_scale_factor=2 behind the sum"):
        gate(net)
    gated = gate(stable_diffusion()[0])
    with pytest.raises(ValueError, match="has gates already"):
        gate(gated, "skip")
    net, _ = stable_diffusion()
    net.down_blocks[0].attentions[0].transformer_blocks[0].set_chunk_feed_forward(1, 1)
    with pytest.raises(ValueError, match="chunked feed-forward"):
        gate(net)
