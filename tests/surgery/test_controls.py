"""The controls of a comparison: a folded network starts as the gated one did, a widened one has as many parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm import DiT, Latte, UViT
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.residual import Residual, gate_names
from neural_rdm.runs import build
from neural_rdm.surgery import controls
from tests.helpers import is_gate

DIT: dict[str, Any] = {
    "input_size": 8, "patch_size": 4, "in_channels": 1, "hidden_size": 16, "depth": 3, "num_heads": 2, "num_classes": 5,
    "mlp_ratio": 4.0,
}  # fmt: skip
LATTE = {**DIT, "depth": 4, "num_frames": 2, "extras": "class"}
UVIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 4.0}


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shaken(residual: str | Residual, **arguments: Any) -> DiT:
    """A DiT in float64 with random weights, the zero ones too, whose gates are at their start."""
    torch.manual_seed(0)
    net = DiT(**{**DIT, **arguments}, residual=residual)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if not is_gate(name):
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return net.double()


def output(net: torch.nn.Module) -> Tensor:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return net(x, torch.tensor([1, 400, 999]), torch.tensor([0, 4, 5]))


@pytest.mark.parametrize(
    "residual",
    ["gated", Residual("gated", granularity="scalar"), "rezero", "layerscale", Residual("layerscale", init=0.3)],
    ids=str,
)
def test_a_folded_network_starts_as_the_gated_one(residual: str | Residual) -> None:
    gated = shaken(residual)
    net = controls.folded(shaken, Residual.of(residual))
    assert gate_names(net) == set()
    assert net.residual.rule == "resnet"
    expected = output(gated)
    assert expected.std() > 0.01
    assert torch.allclose(output(net), expected, rtol=0, atol=1e-13)
    if residual == "gated":  # whose alpha is 1 and beta 0: nothing is rounded
        assert torch.equal(output(net), expected)


@pytest.mark.parametrize("exp", ["digits_gated", "digits_unet_gated"])
def test_a_run_of_a_folded_rule_differs_from_the_gated_one_in_its_gates_alone(exp: str) -> None:
    if "unet" in exp:
        pytest.importorskip("diffusers", reason="U-Nets are diffusers'")
    typed = [f"exp={exp}", "residual=gated", "seed=3"]
    gated, net = (build.network(compose_config("train", [*typed, *more]).cfg) for more in ([], ["control=folded"]))
    own = gated.state_dict()
    assert {k for k in own if k not in gate_names(gated)} == set(net.state_dict())
    assert all(torch.equal(own[key], value) for key, value in net.state_dict().items())
    assert net.control.startswith("control=folded: ")
    assert gated.control == ""


@pytest.mark.parametrize(
    ("kind", "arguments", "rule"),
    [
        (DiT, DIT, "gated"),
        (DiT, DIT, "hc"),
        (DiT, DIT, Residual("gated", time_conditioned=True)),
        (DiT, {**DIT, "hidden_size": 36, "mlp_ratio": 3.7}, "ihc"),
        (Latte, LATTE, "mvsplit"),
        (UViT, UVIT, "rezero"),
    ],
)
def test_a_widened_network_has_the_parameters_of_the_rule_to_half_a_column(
    kind: Any, arguments: dict[str, Any], rule: str | Residual
) -> None:
    def make(residual: Residual, **changed: Any) -> Any:
        return kind(**{**arguments, **changed}, residual=residual)

    net = controls.mlp_widened(make, Residual.of(rule), arguments)
    width = arguments.get("hidden_size") or arguments["embed_dim"]
    blocks = len(list(net.blocks))
    column = blocks * (2 * width + 1)  # a column of fc1 with its bias, a row of fc2
    asked = count(make(Residual.of(rule)))
    assert abs(count(net) - asked) <= column / 2
    assert count(net) > count(make(controls.PLAIN)) or asked - count(make(controls.PLAIN)) <= column / 2
    assert f"residual={Residual.of(rule).rule} has {asked:,} (difference {count(net) - asked:+,})" in net.control


def test_every_number_of_columns_has_its_ratio() -> None:
    for width in (16, 36, 80, 384, 1152):
        assert all(int(width * controls.ratio(hidden, width)) == hidden for hidden in range(1, 5 * width))


def test_a_swiglu_goes_by_eight_columns() -> None:
    def make(residual: Residual, **changed: Any) -> DiT:
        return DiT(**{**DIT, "mlp": "swiglu", **changed}, residual=residual)

    net = controls.mlp_widened(make, Residual("ihc", n=8), DIT)
    assert abs(count(net) - count(make(Residual("ihc", n=8)))) <= 8 * 3 * (3 * 16 + 2) / 2


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("resnet", "this rule has no gates to fold"),
        ("skip", "do not fold into the weights"),
        ("adaln", "do not fold"),
        ("hc", "do not fold"),
        (Residual("gated", time_conditioned=True), "do not fold"),
        (Residual("gated", beta_form="linear"), "do not fold"),
    ],
    ids=str,
)
def test_what_does_not_fold_is_refused(rule: str | Residual, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^control=folded with residual={Residual.of(rule).rule}: .*{words}"):
        controls.folded(shaken, Residual.of(rule))


def test_what_cannot_be_widened_is_refused() -> None:
    with pytest.raises(ConfigError, match="adds no parameters"):
        controls.mlp_widened(shaken, controls.PLAIN, DIT)
    with pytest.raises(ConfigError, match="needs a backbone with mlp_ratio"):
        controls.mlp_widened(shaken, Residual("gated"), {"model_channels": 32})
