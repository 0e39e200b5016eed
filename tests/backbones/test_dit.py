"""DiT against the official network (golden vectors, parameter counts, keys) and under each of the five rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from neural_rdm.backbones.dit import DIT_SIZES, DiT
from neural_rdm.residual import RULES, Residual
from tests.helpers import FIVE, is_gate, shared

TINY: dict[str, Any] = {
    "input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 5
}  # fmt: skip

#: total and trainable parameters of the official models at 32 x 32 x 4 with 1000 classes and learn_sigma
OFFICIAL_COUNTS = {
    "DiT-S/2": (32_963_360, 32_865_056), "DiT-S/4": (32_945_024, 32_920_448), "DiT-S/8": (33_148_160, 33_142_016),
    "DiT-B/2": (130_512_416, 130_315_808), "DiT-B/4": (130_475_648, 130_426_496), "DiT-B/8": (130_881_536, 130_869_248),
    "DiT-L/2": (458_102_816, 457_840_672), "DiT-L/4": (458_053_760, 457_988_224), "DiT-L/8": (458_594_816, 458_578_432),
    "DiT-XL/2": (675_129_632, 674_834_720), "DiT-XL/4": (675_074_432, 675_000_704),
    "DiT-XL/8": (675_683_072, 675_664_640),
}  # fmt: skip
TENSORS = {"S": 132, "B": 132, "L": 252, "XL": 292}


def batch(count: int = 3, channels: int = 3, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, channels, side, side, generator=generator)
    return x, torch.linspace(0, 999, count).long(), torch.arange(count) % 6


def official() -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """The golden file: config, state dict and the rest."""
    with safe_open(shared("golden/dit.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    return config, state, tensors


def count(net: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trainable)


def randomise(net: DiT, seed: int = 0) -> None:
    """Random values for everything but the gates, the zero-initialised parts too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not is_gate(name):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("rule", FIVE)
def test_official_output_under_every_rule(rule: str) -> None:
    config, state, tensors = official()
    net = DiT(**config, residual=rule)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(map(is_gate, missing))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if rule == "rezero" and name.endswith("alpha"):
                parameter.fill_(1.0)
        out = net(tensors["input.x"], tensors["input.t"], tensors["input.y"])
    expected = tensors["output"]
    assert ((out - expected).abs().max() / expected.std()).item() < 1e-5


def test_the_order_of_the_position_table_in_the_network_is_the_official_one() -> None:
    config, state, _ = official()
    net = DiT(**config)
    assert net.pos_embed.shape == state["pos_embed"].shape
    assert not net.pos_embed.requires_grad
    # Cell 1 is one step to the right: only the first half of the channels, the column's, differs from cell 0.
    first, right, below = net.pos_embed[0, 0], net.pos_embed[0, 1], net.pos_embed[0, 4]
    half = config["hidden_size"] // 2
    assert torch.equal(first[half:], right[half:])
    assert torch.equal(first[:half], below[:half])
    assert not torch.equal(first[:half], right[:half])


@pytest.mark.parametrize("rule", FIVE)
def test_keys_are_the_official_ones_and_the_gates(rule: str) -> None:
    config, state, _ = official()
    keys = set(DiT(**config, residual=rule).state_dict())
    gates = {"resnet": (), "rezero": ("alpha",)}.get(rule, ("alpha", "beta"))
    units = [f"blocks.{i}.{u}_unit" for i in range(config["depth"]) for u in ("attn", "mlp")]
    assert keys == set(state) | {f"{unit}.{gate}" for unit in units for gate in gates}


@pytest.mark.parametrize("rule", FIVE)
def test_the_output_is_exactly_zero_at_the_start(rule: str) -> None:
    options = {} if rule == "resnet" else {"granularity": "scalar", "time_conditioned": True}
    for residual in (rule, Residual(rule, **options)):
        out = DiT(**TINY, residual=residual)(*batch())
        assert out.shape == (3, 6, 8, 8)
        assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("form", [{}, {"granularity": "scalar"}, {"time_conditioned": True}, {"beta_form": "linear"}])
@pytest.mark.parametrize("rule", ["gated", "adaln", "skip"])
def test_plain_starts_are_bit_equal_to_resnet(rule: str, form: dict[str, Any]) -> None:
    form = form if rule == "gated" or "beta_form" not in form else {}
    net, plain = DiT(**TINY, residual=Residual(rule, **form)), DiT(**TINY, residual="resnet")
    for one in (net, plain):
        randomise(one)
    out = net(*batch())
    assert out.std() > 0.01
    assert torch.equal(out, plain(*batch()))


@pytest.mark.parametrize("name", list(OFFICIAL_COUNTS))
def test_parameter_counts_of_the_published_sizes(name: str) -> None:
    with torch.device("meta"):
        net = DiT.named(name, residual="resnet")
    assert (count(net), count(net, trainable=True)) == OFFICIAL_COUNTS[name]
    assert len(net.state_dict()) == TENSORS[name.removeprefix("DiT-").partition("/")[0]]


def test_parameter_count_at_512_pixels() -> None:
    with torch.device("meta"):
        net = DiT.named("DiT-XL/2", input_size=64, residual="resnet")
    assert (count(net), count(net, trainable=True)) == (676_014_368, 674_834_720)


@pytest.mark.parametrize("rule", FIVE)
def test_the_gates_add_exactly_their_formula(rule: str) -> None:
    per_unit = {"resnet": 0, "rezero": 1}.get(rule, 2)
    for name in ("DiT-S/8", "DiT-XL/2"):
        size = DIT_SIZES[name.removeprefix("DiT-").partition("/")[0]]
        width, units = size["hidden_size"], 2 * size["depth"]
        for granularity, gate in (("channel", width), ("scalar", 1)):
            for timed, conditioning in ((False, 0), (True, gate * width)):
                with torch.device("meta"):
                    options = {"granularity": granularity, "time_conditioned": timed} if rule != "resnet" else {}
                    net = DiT.named(name, residual=Residual(rule, **options))
                assert count(net) - OFFICIAL_COUNTS[name][0] == units * per_unit * (gate + conditioning)
                assert count(net, trainable=True) - OFFICIAL_COUNTS[name][1] == units * per_unit * (gate + conditioning)


@pytest.mark.parametrize("timed", [False, True], ids=["static", "timed"])
@pytest.mark.parametrize("rule", FIVE)
def test_every_parameter_learns_after_two_steps(rule: str, timed: bool) -> None:
    torch.manual_seed(0)
    net = DiT(**TINY, residual=Residual(rule, **({"time_conditioned": timed} if rule != "resnet" else {})))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        (net(*batch(6)) - torch.linspace(-1, 1, 8)).square().mean().backward()
        if step < 2:
            optimizer.step()
    dead = [n for n, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().max() > 0)]
    assert dead == []


@pytest.mark.parametrize("depth", [1, 50])
def test_any_depth(depth: int) -> None:
    net = DiT(**{**TINY, "depth": depth})
    randomise(net)
    out = net(*batch())
    assert bool(out.isfinite().all())
    assert len(net.blocks) == depth


def test_published_sizes_by_name() -> None:
    with torch.device("meta"):
        net = DiT.named("DiT-B/4", in_channels=3, residual="skip")
    assert (net.hidden_size, len(net.blocks), net.patch_size, net.in_channels) == (768, 12, 4, 3)
    assert type(net.blocks[0].attn_unit) is RULES["skip"]
    for wrong in ("DiT-M/2", "DiT-S/3", "DiT-S", "S2", ""):
        with pytest.raises(ValueError, match="is not one of DiT-S/2, DiT-S/4"):
            DiT.named(wrong)


def test_unconditional_and_without_a_null_class() -> None:
    unconditional = DiT(**{**TINY, "num_classes": 0})
    x, t, y = batch()
    assert unconditional.null_class is None
    assert not any(k.startswith("y_embedder") for k in unconditional.state_dict())
    assert unconditional(x, t).shape == (3, 6, 8, 8)
    with pytest.raises(ValueError, match=r"num_classes=0.*with labels"):
        unconditional(x, t, y)
    with pytest.raises(ValueError, match=r"num_classes=5.*without labels"):
        DiT(**TINY)(x, t)
    assert DiT(**TINY).null_class == 5
    undropped = DiT(**TINY, class_dropout_prob=0.0)
    assert undropped.null_class is None
    assert undropped.y_embedder.embedding_table.weight.shape[0] == 5


def test_norms_are_the_official_ones() -> None:
    norms = [m for m in DiT(**TINY).modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) == 2 * TINY["depth"] + 1
    assert {(n.eps, n.elementwise_affine) for n in norms} == {(1e-6, False)}


def test_learn_sigma_decides_the_channels() -> None:
    assert DiT(**TINY, learn_sigma=False)(*batch()).shape == (3, 3, 8, 8)


def test_the_condition_matters_and_the_samples_do_not_mix() -> None:
    net = DiT(**TINY)
    randomise(net)
    x, t, y = batch()
    out = net(x, t, y)
    assert not torch.allclose(net(x, t.flip(0), y)[0], out[0])
    assert not torch.allclose(net(x, t, y + 1)[0], out[0])
    torch.testing.assert_close(net(x[1:2], t[1:2], y[1:2]), out[1:2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "num_heads: 3 does not divide hidden_size=16"),
        ({"hidden_size": 18}, "hidden_size: 18 .* of 4"),
        ({"patch_size": 3}, "patch_size: 3 does not divide input_size=8"),
        ({"residual": "gate"}, "'gate' is not one of gated"),
        ({"residual": "rezero", "adaln_gate_init": 0.0}, "adaln_gate_init=0"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(**{**TINY, **change})


def test_adaln_gates_start_where_they_are_told() -> None:
    for residual, init, expected in (("gated", None, 0.0), ("gated", 0.5, 0.5), ("rezero", None, 1.0)):
        bias = DiT(**TINY, residual=residual, adaln_gate_init=init).blocks[0].adaLN_modulation[1].bias.view(6, -1)
        assert torch.equal(bias[[2, 5]], torch.full((2, 16), expected))
        assert torch.equal(bias[[0, 1, 3, 4]], torch.zeros(4, 16))
