"""Parameters and FLOPs of a run's network, against sums by hand."""

from __future__ import annotations

import pytest

from neural_rdm.config.check import as_plain
from neural_rdm.config.compose import compose_config
from neural_rdm.runs.counting import counted


def test_flops_of_a_small_dit_are_those_of_its_matrix_products() -> None:
    size = ["backbone.hidden_size=32", "backbone.depth=2", "backbone.num_heads=2", "residual=gated"]
    config = compose_config("train", ["exp=digits_gated", *size]).cfg
    width, tokens = 32, 4
    linear = [  # inputs, outputs, how often, whether a gradient reaches the input
        (16, width, tokens, False), (256, width, 1, False), (width, width, 1, True),
        *[(width, 6 * width, 1, True), (width, 3 * width, tokens, True), (width, width, tokens, True)] * 2,
        *[(width, 4 * width, tokens, True), (4 * width, width, tokens, True)] * 2,
        (width, 2 * width, 1, True), (width, 2 * 16, tokens, True),
    ]  # fmt: skip
    flops = sum(2 * a * b * count * (3 if inward else 2) for a, b, count, inward in linear)
    flops += 2 * 3 * 2 * (2 * tokens * tokens * width)  # the two products of each attention, forward and backward
    found = counted(as_plain(config))
    assert found["flops"] == pytest.approx(flops)
    assert found["parameters"] is not None
    assert found["parameters"] > 40_000


def test_what_cannot_be_counted_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert counted({"backbone": {"_target_": "no.Such"}, "residual": {"rule": "gated"}, "seed": 0}) == {
        "parameters": None, "flops": None,
    }  # fmt: skip
    assert "not counted: " in capsys.readouterr().out
