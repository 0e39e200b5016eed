"""Latte against the official network, its joint training on clips and images, and its image form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.latte import Latte
from neural_rdm.dynamics import probe
from neural_rdm.residual import Residual, units
from tests.helpers import FIVE, is_gate, shared

TINY: dict[str, Any] = {
    "input_size": 4, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 4, "num_heads": 2,
    "num_frames": 3, "num_classes": 5, "extras": "class",
}  # fmt: skip
#: total and trainable parameters of the official models at 16 frames of 32 x 32 x 4, unconditional and with 101 classes
OFFICIAL_COUNTS = {
    "Latte-S/2": ((32_585_120, 32_480_672), (32_624_288, 32_519_840)),
    "Latte-B/2": ((129_755_936, 129_547_040), (129_834_272, 129_625_376)),
    "Latte-L/2": ((457_094_176, 456_815_648), (457_198_624, 456_920_096)),
    "Latte-XL/2": ((673_994_912, 673_681_568), (674_112_416, 673_799_072)),
}


def network(**arguments: Any) -> Latte:
    """A small network, every value but its gates random, the zero-initialised ones too."""
    net = Latte(**{**TINY, **arguments})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not is_gate(name) and p.requires_grad:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return net


def inputs(batch: int = 2, frames: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, frames, 3, 4, 4, generator=generator), torch.tensor([7, 800])[:batch], torch.arange(batch)


@pytest.mark.parametrize("rule", FIVE)
@pytest.mark.parametrize("extras", [1, 2])
def test_official_output_under_every_rule(extras: int, rule: str) -> None:
    with safe_open(shared(f"golden/latte_extras{extras}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    config.pop("attention_mode", None)
    net = Latte(**config, residual=rule)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(map(is_gate, missing))
    with torch.no_grad():
        for _, unit in units(net):
            if rule == "rezero":
                unit.alpha.fill_(1.0)
        out = net(tensors["input.x"], tensors["input.t"], tensors.get("input.y") if extras == 2 else None)
    expected = tensors["output"]
    assert ((out - expected).abs().max() / expected.std()).item() < 1e-5


@pytest.mark.parametrize("name", list(OFFICIAL_COUNTS))
def test_parameter_counts_of_the_published_sizes(name: str) -> None:
    for expected, arguments in zip(
        OFFICIAL_COUNTS[name], ({"extras": 1}, {"extras": 2, "num_classes": 101}), strict=True
    ):
        with torch.device("meta"):
            net = Latte.named(name, residual="resnet", **arguments)
        total = sum(p.numel() for p in net.parameters())
        assert (total, sum(p.numel() for p in net.parameters() if p.requires_grad)) == expected
    assert {n for n, p in net.named_parameters() if not p.requires_grad} == {"pos_embed", "temp_embed"}


@pytest.mark.parametrize(("patch", "count"), [(4, 673_939_712), (8, 674_548_352)])
def test_parameter_counts_of_larger_patches(patch: int, count: int) -> None:
    with torch.device("meta"):
        net = Latte.named(f"Latte-XL/{patch}", residual="resnet")
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("rule", ["gated", "adaln", "skip"])
def test_plain_starts_are_bit_equal_to_resnet_and_zero_at_first(rule: str) -> None:
    out = network(residual=rule)(*inputs())
    assert out.std() > 0.01
    assert torch.equal(out, network(residual="resnet")(*inputs()))
    assert not Latte(**TINY, residual=rule)(*inputs()).any()


def test_units_come_in_run_order_with_two_a_block() -> None:
    names = [name for name, _ in units(Latte(**TINY))]
    assert names == [f"blocks.{i}.{u}_unit" for i in range(4) for u in ("attn", "mlp")]


def test_images_behind_a_clip_do_not_touch_it_and_pass_the_temporal_blocks_by() -> None:
    net = network().double()  # float32 rounds otherwise for other numbers of rows, more or less by machine
    x, t, y = inputs(frames=5)
    x, labels = x.double(), torch.stack([y, y + 1, y + 2], dim=1)
    joint = net(x, t, labels)
    assert joint.shape == (2, 5, 6, 4, 4)
    torch.testing.assert_close(joint[:, :3], net(x[:, :3], t, y))
    image = Latte(**{**TINY, "num_frames": 1}).double()
    image.load_state_dict({k: v for k, v in net.state_dict().items() if k in image.state_dict()})
    for i in range(2):
        torch.testing.assert_close(joint[:, 3 + i], image(x[:, 3 + i], t, labels[:, 1 + i]))
    same = net(x, t, y)  # one label for the clip and its images
    torch.testing.assert_close(same[:, 3], image(x[:, 3], t, y))
    with pytest.raises(ValueError, match="labels of 1 images for 2"):
        net(x, t, labels[:, :2])


def test_frames_are_told_apart_and_attend_to_one_another() -> None:
    net = network()
    x, t, y = inputs()
    out = net(x, t, y)
    changed = x.clone()
    changed[:, 2] += 1
    assert (net(changed, t, y) - out)[:, 0].abs().max() > 1e-4
    assert not torch.allclose(net(x.flip(1), t, y).flip(1), out, atol=1e-4)
    still = network(num_frames=3)
    still.temp_embed.data.zero_()
    torch.testing.assert_close(still(x.flip(1), t, y).flip(1), still(x, t, y), atol=1e-4, rtol=1e-4)


def test_one_frame_is_an_image_network_with_the_spatial_blocks_of_a_video_network() -> None:
    image = network(num_frames=1)
    assert image.input_shape == (3, 4, 4)
    assert [name for name, _ in image.blocks.named_children()] == ["0", "2"]
    assert not hasattr(image, "temp_embed")
    x, t, y = inputs(frames=1)
    out = image(x[:, 0], t, y)
    assert out.shape == (2, 6, 4, 4)
    assert torch.equal(image(x, t, y)[:, 0], out)
    dit = DiT(4, 2, 3, 16, 2, 2, num_classes=5)
    renamed = {k.replace("blocks.2.", "blocks.1."): v for k, v in image.state_dict().items()}
    dit.load_state_dict(renamed)
    torch.testing.assert_close(dit(x[:, 0], t, y), out)
    assert set(image.state_dict()) < set(Latte(**TINY).state_dict())


@pytest.mark.parametrize(("name", "number"), [("unconditional", 1), ("class", 2), ("text", 78)])
def test_extras_by_name_and_by_the_official_number(name: str, number: int) -> None:
    by_name, by_number = (Latte(**{**TINY, "extras": extras}) for extras in (name, number))
    assert by_name.state_dict().keys() == by_number.state_dict().keys()
    assert by_name.num_classes == (5 if number == 2 else 0)
    assert (by_name.null_class is None) == (number != 2)
    assert hasattr(by_name, "text_embedding_projection") == (number == 78)


def test_the_official_text_is_added_to_the_condition() -> None:
    net = network(extras="text")
    assert net.text_embedding_projection[1].weight.shape == (16, 77 * 768)
    x, t, _ = inputs()
    texts = torch.randn(2, 77, 768, generator=torch.Generator().manual_seed(5))
    out = net(x, t, context=texts)
    assert not torch.allclose(out, net(x, t, context=texts + 1))
    expected = torch.nn.functional.silu(
        net.t_embedder(t) + net.text_embedding_projection[1](torch.nn.functional.silu(texts.flatten(1)))
    )
    torch.testing.assert_close(net.conditioned(net.t_embedder(t), None, texts), expected)
    with pytest.raises(ValueError, match="without a text"):
        net(x, t)


def test_time_conditioned_gates_see_each_row_s_timestep() -> None:
    net = network(residual=Residual("gated", time_conditioned=True)).double()
    with torch.no_grad():
        for _, unit in units(net):
            unit.alpha_time.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    x, t, y = inputs()
    x = x.double()
    both = net(x, t, y)
    for i in range(2):
        torch.testing.assert_close(net(x[i : i + 1], t[i : i + 1], y[i : i + 1]), both[i : i + 1])
    joint = inputs(frames=4)[0].double()
    torch.testing.assert_close(net(joint, t, torch.stack([y, y], dim=1))[:, :3], net(joint[:, :3], t, y))


def test_sensitivities_reach_every_unit() -> None:
    net = network()
    with probe(net) as rows:
        loss = net(*inputs()).square().mean()
    loss.backward()
    assert rows.grad is not None
    assert len(rows.grad) == 8
    assert bool((rows.grad > 0).all())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"depth": 3}, "pass 4"), ({"extras": "clip"}, "unconditional, class, text"),
        ({"num_frames": 0}, "above 0"), ({"extras": "text", "context_dim": 8}, "reads its own text"),
        ({"hidden_size": 15}, "does not divide"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Latte(**{**TINY, **arguments})


def test_wrong_inputs_are_refused() -> None:
    x, t, y = inputs()
    with pytest.raises(ValueError, match="clips of 2 frames"):
        network()(x[:, :2], t, y)
    with pytest.raises(ValueError, match="without labels"):
        network()(x, t)
    with pytest.raises(ValueError, match="is not one of Latte-S"):
        Latte.named("DiT-S/2")
