"""Trained weights under the options that go beside a rule: what comes through, what is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from neural_rdm import fold, grow, load_official
from neural_rdm.backbones.options import added
from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.surgery.export import to_official
from neural_rdm.surgery.outputs import outputs
from tests.backbones.test_options import EVERY, SKIPS, network, options

STARTS_PLAIN = {"value_residual": True, **SKIPS}


@pytest.mark.parametrize(("kind", "rule"), [("dit", "hc"), ("dit", "delta"), ("latte", "gated"), ("uvit", "gated")])
def test_official_weights_come_through_values_and_long_skips_unchanged(
    kind: str, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = {name: value for name, value in options(kind, rule).items() if name in STARTS_PLAIN}
    weights = network(kind, "resnet").state_dict()
    net, plain = (load_official(network(kind, rule, at_start=True, **o), weights) for o in (chosen, {}))
    assert torch.equal(outputs(net), outputs(plain))
    assert capsys.readouterr().out == ""


def test_weights_of_its_own_come_back_and_are_never_dropped() -> None:
    source = network("dit", **STARTS_PLAIN)
    again = load_official(network("dit", at_start=True, **STARTS_PLAIN), source.state_dict())
    assert torch.equal(outputs(again), outputs(source))
    with pytest.raises(
        CheckpointError, match=r"(?s)unexpected.*backbone\.long_skip: set.*backbone\.value_residual: set"
    ):
        load_official(network("dit"), source.state_dict())
    with pytest.raises(CheckpointError, match=r"missing \(7\): blocks\.1\.attn\.value_lambda"):
        load_official(source, network("dit", "resnet").state_dict())  # what it has learned is not the plain network
    with pytest.raises(CheckpointError, match=r"backbone\.value_residual: set it as the file's run did"):
        load_official(network("uvit"), network("uvit", value_residual=True).state_dict())


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_scaled_norms_say_how_far_the_output_moves(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, net = network(kind, "resnet"), network(kind, "gated", lns=True)
    load_official(net, plain.state_dict())
    share = float((outputs(net) - outputs(plain)).norm() / outputs(plain).norm())
    assert share > 0.01
    said = f"under backbone.lns=true the output of two random samples moves by {share:.1e} of its size"
    assert said in capsys.readouterr().out
    load_official(network("dit", "dar", lns=True), network("dit", "resnet").state_dict())
    assert "under residual=dar and backbone.lns=true the output" in capsys.readouterr().out


@pytest.mark.parametrize(("kind", "rule"), [("dit", "rezero"), ("latte", "rezero"), ("uvit", "gated")])
def test_gates_fold_beside_all_options(kind: str, rule: str) -> None:
    net = network(kind, rule, **options(kind))
    plain = fold(net)
    assert added(plain) == added(net)
    torch.testing.assert_close(outputs(plain), outputs(net), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("option", "work"),
    [(option, work) for option in ("value_residual", "long_skip", "lns") for work in (to_official, grow)],
)
def test_no_official_network_has_them_and_new_blocks_do_not_fit(option: str, work: Callable[..., Any]) -> None:
    def refused(net: nn.Module, message: str) -> None:
        with pytest.raises((ConfigError, ValueError), match=message):
            work(net, *([6] if work is grow else []))

    net = network("dit", "rezero", **{option: EVERY[option]})
    refused(net, f"DiT cannot be (grown: {option}: |converted .*: the official network has no {option}$)")
    if option != "long_skip":
        refused(network("uvit", "rezero", **{option: EVERY[option]}), f"UViT cannot be .* {option}")


def test_stochastic_depth_leaves_and_grows_as_if_it_were_not_there() -> None:
    net, plain = network("dit", "rezero", stochastic_depth=0.5), network("dit", "rezero")
    assert all(torch.equal(value, to_official(plain)[name]) for name, value in to_official(net).items())
    deep = grow(net, 6)
    torch.testing.assert_close(outputs(deep), outputs(net), rtol=1e-10, atol=1e-12)
    assert deep.train()(x=torch.randn(2, 2, 4, 4).double(), t=torch.tensor([3, 4]), y=torch.tensor([0, 1])
                        ).isfinite().all()  # fmt: skip
