"""A tap changes nothing and measures the squared norm of the gradient that passes through it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_rdm.residual import Residual, tap
from tests.helpers import FIVE


def gradient(x: torch.Tensor) -> torch.Tensor:
    assert x.grad is not None
    return x.grad


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=st.lists(st.integers(1, 4), max_size=4), seed=st.integers(0, 2**16))
def test_a_tap_is_the_identity_forward_and_backward(shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    z, upstream = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    row = torch.zeros((), dtype=torch.float64, requires_grad=True)
    out = tap(z, row)
    assert torch.equal(out, z)
    out.backward(upstream)
    assert torch.equal(gradient(z), upstream)
    torch.testing.assert_close(gradient(row), upstream.square().sum(), rtol=1e-12, atol=0)


def test_backward_passes_add_up_in_the_row() -> None:
    row, total = torch.zeros((), requires_grad=True), 0.0
    for _ in range(3):
        upstream = torch.randn(5, 4)
        tap(torch.randn(5, 4, requires_grad=True), row).backward(upstream)
        total += upstream.square().sum().item()
    assert gradient(row).item() == pytest.approx(total, rel=1e-6)


def test_norms_of_bfloat16_gradients_are_accumulated_in_float32() -> None:
    upstream = torch.full((4096,), 0.1, dtype=torch.bfloat16)
    row = torch.zeros((), requires_grad=True)
    tap(torch.zeros(4096, dtype=torch.bfloat16, requires_grad=True), row).backward(upstream)
    assert gradient(row).dtype == torch.float32
    assert gradient(row).item() == pytest.approx(
        upstream.float().square().sum().item(), rel=1e-5
    )  # bf16 sums are off by 1e-2


def test_the_stream_needs_no_gradient_of_its_own() -> None:
    row = torch.zeros((), requires_grad=True)
    tap(torch.randn(3), row).backward(torch.tensor([1.0, 2.0, 2.0]))
    assert gradient(row).item() == pytest.approx(9.0)


@pytest.mark.parametrize("rule", FIVE)
def test_a_unit_with_a_probe_taps_its_entry_and_its_exit(rule: str) -> None:
    torch.manual_seed(0)
    unit, branch = Residual(rule).unit(4), torch.nn.Linear(4, 4)
    z, upstream = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    plain = unit(z, branch)
    unit.probe = torch.zeros(2, requires_grad=True)
    measured = unit(z, branch)
    assert torch.equal(measured, plain)
    measured.backward(upstream)
    expected = torch.stack([gradient(z).square().sum(), upstream.square().sum()])
    torch.testing.assert_close(gradient(unit.probe), expected)


CASES = [*((rule, {}) for rule in FIVE), *(("gated", {"beta_form": form}) for form in ("linear", "none"))]


@pytest.mark.parametrize("shortcut", [False, True], ids=["", "shortcut"])
@pytest.mark.parametrize(("rule", "form"), CASES)
def test_four_rows_also_measure_both_ways_from_the_exit_to_the_entry(rule: str, form: dict, shortcut: bool) -> None:
    torch.manual_seed(0)
    dim_out = 6 if shortcut else 4
    unit, branch = Residual(rule, **form).unit(4, dim_out).double(), torch.nn.Linear(4, dim_out).double()
    way = torch.nn.Linear(4, 6).double() if shortcut else None
    for parameter in unit.parameters():
        torch.nn.init.normal_(parameter)
    z, upstream = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, dim_out, dtype=torch.float64)
    by_branch, by_stream = z.clone().requires_grad_(), z.clone().requires_grad_()
    unit.write(by_stream if way is None else way(by_stream), branch(unit.read(by_branch))).backward(upstream)
    g_br, leg = gradient(by_branch), gradient(by_stream)
    unit.probe = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    unit(z.requires_grad_(), branch, shortcut=way).backward(upstream)
    torch.testing.assert_close(gradient(z), g_br + leg)
    expected = torch.stack([part.square().sum() for part in (g_br + leg, upstream, g_br, leg)])
    torch.testing.assert_close(gradient(unit.probe), expected, rtol=1e-12, atol=0)
