"""What a rule keeps for backward grows with its streams and with its history, and no faster."""

from __future__ import annotations

import pytest
import torch
from benchmarks.residual import kept_bytes
from benchmarks.rules import Additions

from neural_rdm.residual import Residual

TOKENS, WIDTH = 16, 512
TENSOR = TOKENS * WIDTH * 4  # bytes


def kept(residual: Residual, units: int = 24) -> int:
    additions = Additions(residual, (1, TOKENS, WIDTH), units)
    weights = [*additions.units.parameters(), *additions.stack.parameters(), additions.e]
    return kept_bytes(lambda: additions.forward(torch.tanh), weights)


@pytest.mark.parametrize("rule", ["ihc", "hc"])
def test_saved_bytes_are_linear_in_the_copies(rule: str) -> None:
    two, four, eight = (kept(Residual(rule, n=n)) for n in (2, 4, 8))
    a_copy = (four - two) / 2
    assert (eight - four) / 4 == pytest.approx(a_copy, rel=0.01)
    assert a_copy <= 25.5 * TENSOR  # one tensor a unit and copy, and one more that leaves


@pytest.mark.parametrize("rule", ["delta", "dar", "block_attnres", "denseformer"])
def test_saved_bytes_are_linear_in_a_history(rule: str) -> None:
    few, more, many = (kept(Residual(rule), units) for units in (12, 24, 48))
    # two or three numbers for each token, source and unit that looks back, and not its channels
    numbers = 3 * TOKENS * 4 * ((48**2 - 24**2) - 2 * (24**2 - 12**2))
    assert many - more == pytest.approx(2 * (more - few), abs=numbers)
    assert numbers < 6 * TENSOR
    plain = (kept(Residual("resnet"), 24) - kept(Residual("resnet"), 12)) / 12
    assert (more - few) / 12 - plain <= 1.5 * TENSOR  # at most one output a unit more than the plain rule keeps
