"""What each unit does to the stream, against the same quantities computed from the tensors themselves."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neural_rdm.dynamics.probe import probe
from neural_rdm.dynamics.statistics import Statistics, UnitRecord
from neural_rdm.residual import Residual, units
from neural_rdm.residual.taps import WATCHED
from tests.dynamics.test_identities import CASES, NETWORKS, RESIDUALS, Passage, passages, randomised
from tests.dynamics.test_probe import inputs, loss, random_dit
from tests.helpers import FIVE


def measured(net: nn.Module, *arguments: Tensor | None, bins: int = 4) -> list[UnitRecord]:
    with Statistics(net, bins=bins) as watching:
        watching.at(arguments[1])
        loss(net(*arguments)).backward()
    return watching.records()


def table(records: list[UnitRecord]) -> Tensor:
    rows = [[getattr(r, name) for name in WATCHED] for r in records]
    return torch.tensor([[math.nan if v is None else v for v in row] for row in rows], dtype=torch.float64)


def expected(passage: Passage, sample: int, samples: int) -> dict[str, float]:
    """The plain way, of one sample, whose rows (frames, places) stand together."""
    axis, shortcut = passage.unit.channel_axis, passage.shortcut
    before = (passage.given if shortcut is None else shortcut(passage.given)).detach()
    rows = range(sample * len(before) // samples, (sample + 1) * len(before) // samples)
    found: list[dict[str, float]] = []
    for row in rows:
        z, out, s = (x[row].detach().movedim(axis if axis == -1 else 0, -1).reshape(-1, x.shape[axis]) for x in
                     (before, passage.out, passage.exit))  # fmt: skip
        write, mean = out - z, out.mean(dim=0, keepdim=True)
        cosine = partial(nn.functional.cosine_similarity, dim=0)
        found.append(
            {
                "rms": z.square().mean().sqrt().item(),
                "growth": (out.norm() / z.norm()).item(),
                "write_ratio": (write.norm() / z.norm()).item(),
                "write_cos": cosine(write.flatten(), z.flatten()).item(),
                "redundancy": 1 - cosine(z.flatten(), out.flatten()).item(),
                "mean_share": (mean.expand_as(out).norm() / (out - mean).norm()).item() if len(out) > 1 else math.nan,
                "importance": samples * (s * write).sum().item() * len(rows),  # summed over the rows, not averaged
            }
        )
    return {name: sum(f[name] for f in found) / len(found) for name in WATCHED}


@pytest.mark.parametrize(("network", "rule"), CASES)
def test_every_quantity_of_every_unit_and_bin(network: str, rule: str) -> None:
    build, arguments, _ = NETWORKS[network]
    net = build(RESIDUALS[rule], torch.float64) if build is random_dit else randomised(build, RESIDUALS[rule])
    found, samples = passages(net, arguments), len(arguments[0])
    records = measured(net, *arguments, bins=samples)  # the timesteps are far apart: one sample a bin
    order = (arguments[1] * samples // 1000).argsort().tolist()
    assert [(r.unit, r.name, r.samples) for r in records] == [
        (i, p.name, 1) for i, p in enumerate(found) for _ in range(samples)
    ]
    plain = [expected(passage, sample, samples) for passage in found for sample in order]
    wanted = torch.tensor([[row[name] for name in WATCHED] for row in plain], dtype=torch.float64)
    torch.testing.assert_close(table(records), wanted, rtol=1e-9, atol=1e-11, equal_nan=True)


@pytest.mark.parametrize("rule", FIVE)
def test_outputs_gradients_and_the_probe_are_what_they_are_without(rule: str) -> None:
    net = random_dit(rule)
    with probe(net, branches=True) as alone:
        plain = net(*inputs())
        loss(plain).backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    with probe(net, branches=True) as rows, Statistics(net) as watching:
        watching.at(inputs()[1])
        out = net(*inputs())
        loss(out).backward()
    assert torch.equal(out, plain)
    assert torch.equal(rows.grad, alone.grad)
    after = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients, after, strict=True))
    assert all(unit.watched is None for _, unit in units(net))


def test_importance_is_what_the_gates_derivatives_say() -> None:
    """With w = alpha F + beta: <s_{i+1}, w> = alpha . dL/dalpha + beta . dL/dbeta (Eq. 12), over all samples."""
    net = random_dit("gated", torch.float64)
    records = measured(net, *inputs(torch.float64), bins=1)
    for record, (_, unit) in zip(records, units(net), strict=True):
        assert record.samples == 3
        total = (unit.alpha * unit.alpha.grad).sum() + (unit.beta * unit.beta.grad).sum()
        assert record.importance == pytest.approx(total.item(), rel=1e-10)


def test_an_additive_beta_writes_only_into_the_token_mean() -> None:
    def last(beta: float) -> tuple[float, float, float]:
        net = random_dit("gated", torch.float64)
        with torch.no_grad():
            *_, (_, unit) = units(net)
            unit.beta.fill_(beta)
        record = measured(net, *inputs(torch.float64), bins=1000)[-1]
        norm = record.rms * record.growth
        centred = norm / math.sqrt(1 + record.mean_share**2)
        return record.mean_share, centred, record.mean_share * centred

    (small, centred, _), (large, again, mean) = last(0.0), last(30.0)
    assert large > 3 * small
    assert again == pytest.approx(centred, rel=1e-10)
    assert mean == pytest.approx(30, rel=0.2)


def test_a_unit_that_writes_nothing_has_zeros_and_no_nan() -> None:
    net = random_dit("gated")
    with torch.no_grad():
        for _, unit in units(net):
            unit.alpha.zero_()
            unit.beta.zero_()
    for record in measured(net, *inputs()):
        assert (record.write_ratio, record.write_cos, record.importance, record.growth) == (0, 0, 0, 1)
        assert record.redundancy == pytest.approx(0, abs=1e-6)
        assert record.rms > 0


def test_one_token_has_no_share_of_the_mean() -> None:
    torch.manual_seed(0)
    unit, z = Residual("gated").unit(8), torch.randn(2, 1, 8)
    with Statistics(nn.Sequential(unit)) as watching:
        watching.at(torch.tensor([1, 2]))
        unit(z, torch.tanh).sum().backward()
    (record,) = watching.records()
    assert record.mean_share is None
    assert record.samples == 2


def test_the_same_when_checkpointed_compiled_and_accumulated() -> None:
    x, t, y = inputs()
    net = random_dit()
    plain = table(measured(net, x, t, y))
    with Statistics(net) as watching:
        for i in range(3):
            watching.at(t[i : i + 1])
            scale = torch.linspace(-1, 1, 3 * 4 * 64).view(3, 4, 8, 8)[i]  # the losses of `loss`, sample by sample
            out = net(x[i : i + 1], t[i : i + 1], y[i : i + 1])
            ((out * scale).sum() + out.square().mean() / 3).backward()
    torch.testing.assert_close(table(watching.records()), plain, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    compiled = torch.compile(random_dit(), backend="aot_eager", fullgraph=True)
    with Statistics(compiled) as watching:
        watching.at(t)
        loss(compiled(x, t, y)).backward()
    torch.testing.assert_close(table(watching.records()), plain, rtol=1e-4, atol=1e-4)
    for block in net.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    assert torch.equal(table(measured(net, x, t, y)), plain)


def test_bins_are_half_open_and_the_last_holds_the_end() -> None:
    net = random_dit()
    with Statistics(net, num_timesteps=1000, bins=4) as watching:
        watching.at(torch.tensor([0.0, 249.9, 250.0, 1000.0]))
    assert watching.counts.tolist() == [2, 1, 0, 1]
    assert watching.edges == [0, 250, 500, 750, 1000]
    with pytest.raises(ValueError, match="bins=0"):
        Statistics(net, bins=0)


def test_compiled_under_autocast_the_sums_are_not_rounded() -> None:
    x, t, y = inputs()

    def under_autocast(net: nn.Module) -> Tensor:
        with Statistics(net, bins=1) as watching, torch.autocast("cpu", torch.bfloat16):
            watching.at(t)
            loss(net(x, t, y).float()).backward()
        return table(watching.records())

    eager = under_autocast(random_dit())
    torch._dynamo.reset()
    compiled = under_autocast(torch.compile(random_dit(), backend="aot_eager", fullgraph=True))
    torch.testing.assert_close(compiled[:, :2], eager[:, :2], rtol=2e-3, atol=0)
    sums = (compiled * 3)[:, 1]
    assert not torch.equal(sums, sums.bfloat16().double())


def test_one_bad_sample_spoils_its_own_bin_alone() -> None:
    x, t, y = inputs()
    x[2] = torch.nan
    records = measured(random_dit(), x, t, y, bins=3)
    bad = [r for r in records if r.t_low > 600]
    assert all(math.isnan(r.rms) for r in bad)
    assert all(math.isfinite(r.rms) and math.isfinite(r.redundancy) for r in records if r not in bad)


def test_a_small_write_turns_the_stream_by_what_it_should() -> None:
    from neural_rdm.residual.taps import _turn

    z = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0))
    w = 1e-4 * torch.randn(64, 5000, generator=torch.Generator().manual_seed(1))
    sums = [(a * b).sum(1) for a, b in ((z, z), (w, w), (z, w), (z + w, z + w))]
    exact = 1 - nn.functional.cosine_similarity(z.double(), z.double() + w.double(), dim=1)
    torch.testing.assert_close(_turn(*sums).double(), exact, rtol=1e-4, atol=0)
    opposite = _turn(*(torch.tensor([v]) for v in (1.0, 4.0, -2.0, 1.0)))  # w = -2 z
    assert opposite.item() == pytest.approx(2)
