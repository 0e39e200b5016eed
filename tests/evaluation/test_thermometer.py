"""The thermometer of a network's units: batches add up, and what is left out is what the lens leaves out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from neural_rdm import DiT
from neural_rdm.dynamics.lens import left_out
from neural_rdm.evaluation import thermometer
from neural_rdm.evaluation.thermometer import Thermometer


def ours() -> DiT:
    torch.manual_seed(0)
    net = DiT(input_size=4, patch_size=2, in_channels=2, hidden_size=16, depth=2, num_heads=2, num_classes=3)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    return net


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_batches_of_any_size_say_what_one_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thermometer, "attempt", lambda draw: [])  # tests/test_inspect.py draws
    net, x = ours(), torch.randn(6, 2, 4, 4)
    t, y = torch.tensor([10, 300, 500, 600, 800, 990]), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(part: slice) -> Tensor:
        return net(x[part], t[part], y[part])[:, :2].square().mean()

    def read(parts: list[slice]) -> Thermometer:
        reading = Thermometer(net, 1000, bins=2)
        for part in parts:
            with reading.batch(t[part]):
                loss(part).backward()
        return reading

    one, several = read([slice(0, 6)]), read([slice(0, 4), slice(4, 6)])
    for a, b in zip(one.records, several.records, strict=True):
        assert (a.unit, a.samples) == (b.unit, b.samples)
        assert a.importance == pytest.approx(b.importance, rel=1e-4)
        assert a.write_ratio == pytest.approx(b.write_ratio, rel=1e-4)
    # a first-order importance is the derivative of the whole loss along what the unit wrote
    total = sum(r.importance * r.samples for r in one.records if r.unit == 3) / 6
    unit = dict(net.named_modules())[one.names[3]]
    alpha, beta = unit.alpha, unit.beta
    net.zero_grad()
    loss(slice(0, 6)).backward()
    assert total == pytest.approx(((alpha * alpha.grad).sum() + (beta * beta.grad).sum()).item(), rel=1e-3)

    half = slice(0, 3)
    several.look(500, lambda: loss(half))
    with torch.no_grad():
        whole = loss(half).item()
        with left_out(net, [2]):
            without = loss(half).item()
    paths = several.write(tmp_path)
    assert {p.name for p in paths} == {
        "sensitivity.csv", "units.csv", "depth.csv", "left_out.csv", "importance.csv", "importance.md",
    }  # fmt: skip
    assert float(rows(tmp_path / "left_out.csv")[2]["left_out"]) == pytest.approx(without - whole, abs=1e-6)
    assert [float(r["error"]) for r in rows(tmp_path / "depth.csv")][-1] == pytest.approx(whole)
    ranked = rows(tmp_path / "importance.csv")
    assert [float(r["left_out"]) for r in ranked] == sorted(float(r["left_out"]) for r in ranked)
    assert [r["step"] for r in rows(tmp_path / "sensitivity.csv")] == ["1"] * 4 + ["2"] * 4


def test_what_was_not_measured_is_not_written(tmp_path: Path) -> None:
    reading = Thermometer(ours())
    with pytest.raises(ValueError, match="nothing was measured"):
        reading.write(tmp_path)
    with pytest.raises(ValueError, match="no backward pass was made"), reading.batch(torch.tensor([3])):
        pass
    with pytest.raises(ValueError, match="has no residual units; gate"):
        Thermometer(nn.Linear(2, 2))
