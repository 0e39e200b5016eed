"""The depth-mixing matrix against what each rule's formula says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm import DiT, Latte
from neural_rdm.dynamics.mixing import depth_mixing
from neural_rdm.residual import Residual, units
from tests.residual.test_conformance import NETWORKS, inputs, moved, network

UNITS = 4


def matrix(net: DiT) -> Tensor:
    return depth_mixing(net, lambda: net(**inputs(net)))


def test_the_plain_rule_carries_everything_and_the_networks_output_stays() -> None:
    net = network("dit", "resnet")
    before = net(**inputs(net))
    torch.testing.assert_close(matrix(net), torch.ones(UNITS + 1, UNITS + 1, dtype=torch.float64).tril())
    assert torch.equal(net(**inputs(net)), before)
    assert not any("forward" in vars(unit) for _, unit in units(net))


def test_gates_on_the_branch_are_its_columns_and_gates_on_the_stream_multiply_up() -> None:
    gated, skip = moved(network("dit", "gated")), moved(network("dit", "skip"))
    alphas = [unit.alpha.mean().item() for _, unit in units(gated)]
    expected = torch.tensor([1.0, *alphas], dtype=torch.float64).expand(UNITS + 1, -1).tril()
    torch.testing.assert_close(matrix(gated), expected)
    with torch.no_grad():
        for i, (_, unit) in enumerate(units(skip)):
            unit.alpha.fill_(1 + i / 10)
    found = matrix(skip)
    assert found[UNITS, 0].item() == pytest.approx(1.0 * 1.1 * 1.2 * 1.3)
    assert found[UNITS, 2].item() == pytest.approx(1.2 * 1.3)
    assert found[1, 1].item() == pytest.approx(1.0)


def test_attention_over_depth_starts_with_equal_shares_that_stay_shares() -> None:
    net = network("dit", "dar")
    shares = torch.tensor(
        [[1 / (i + 1)] * (i + 1) + [0.0] * (UNITS - i) for i in range(UNITS + 1)], dtype=torch.float64
    )
    torch.testing.assert_close(matrix(net), shares)
    torch.testing.assert_close(matrix(moved(net)).sum(dim=1), torch.ones(UNITS + 1, dtype=torch.float64))


def test_sums_of_groups_share_one_weight() -> None:
    found = matrix(network("dit", Residual("block_attnres", group=2)))
    assert found[UNITS].tolist() == pytest.approx([1 / 3] * 5)  # z0, and two sums of two
    assert found[3].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 3, 0])
    assert found[2].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 0, 0])


@pytest.mark.parametrize(
    ("rule", "options"), [("ihc", {"n": 3}), ("hc", {"n": 3}), ("denseformer", {}), ("rezero", {}), ("layerscale", {})]
)
def test_it_is_what_a_change_of_one_output_does_to_a_later_read(rule: str, options: dict[str, Any]) -> None:
    """By a finite difference: the rules that are linear in what was written, so that any step will do."""
    net = moved(network("dit", Residual(rule, **options)))
    found, given, read = matrix(net), inputs(net), {}
    outputs: list[Tensor] = []

    def run(added_to: int | None) -> list[Tensor]:
        reads: list[Tensor] = []

        def replaced(unit: Any, index: int) -> Any:
            def forward(z: Any, branch: Any, g: Any = None, e: Any = None, shortcut: Any = None) -> Any:
                reads.append(unit.read(z, e))
                if len(outputs) == index:  # the first run records what is written
                    outputs.append(g[:, None] * branch(reads[-1]) if g is not None else branch(reads[-1]))
                return unit.write(z, outputs[index] + (1.0 if added_to == index else 0.0), None, e)

            return forward

        for index, (_, unit) in enumerate(units(net)):
            unit.forward = replaced(unit, index)
        with torch.no_grad():
            net(**given)
        return reads

    base = run(None)
    for source in range(UNITS):
        read[source] = [(a - b).mean().item() for a, b in zip(run(source), base, strict=True)]
        assert found[:UNITS, source + 1].tolist() == pytest.approx(read[source], abs=1e-10)


def test_clips_have_one_and_networks_that_mix_channels_between_units_none() -> None:
    latte = network("latte", "denseformer")
    assert isinstance(latte, Latte)
    found = depth_mixing(latte, lambda: latte(**inputs(latte)))
    torch.testing.assert_close(found, torch.ones_like(found).tril())
    for kind in ("uvit", "unet"):
        net = NETWORKS[kind](residual="gated")
        with pytest.raises(ValueError, match=r"a U(ViT|Net) has no depth-mixing matrix"):
            depth_mixing(net, lambda: None)
