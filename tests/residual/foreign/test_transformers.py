"""Gates in the transformers of diffusers: six of them in every run, all of them in the full one."""

from __future__ import annotations

import re
import runpy
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from neural_rdm import fold, freeze_silent, gate
from neural_rdm.core.errors import ConfigError
from neural_rdm.dynamics.probe import probe
from neural_rdm.residual import Residual, units
from tests.helpers import is_gate

diffusers = pytest.importorskip("diffusers", reason="gating foreign models needs diffusers")

from diffusers.models.attention import FeedForward  # noqa: E402

from tests.residual.foreign import table  # noqa: E402  # it imports diffusers
from tests.residual.foreign.table import build, cast, run, same  # noqa: E402

#: parallel streams, an own gate, a sum in float32, tanh gates behind norms, convolutions in the feed-forward
SOME = ["FluxTransformer2DModel", "SD3Transformer2DModel", "WanTransformer3DModel", "Lumina2Transformer2DModel",
        "SanaTransformer2DModel", "PixArtTransformer2DModel"]  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_the_output_does_not_move_every_gate_is_live_and_units_are_in_run_order(name: str) -> None:
    net, inputs = build(name)
    before = run(net, inputs)
    half = cast(inputs, torch.bfloat16)
    before_half = run(net.bfloat16(), half)
    net, _ = build(name)
    assert gate(net) is net
    names, seen = {unit: n for n, unit in units(net)}, []
    for unit in names:
        unit.register_forward_pre_hook(lambda module, _: seen.append(names[module]))
    after = run(net, inputs)
    assert same(after, before)
    assert seen == list(names.values())
    sum(x.square().sum() for x in after).backward()  # type: ignore[union-attr]
    assert [k for k, p in net.named_parameters() if is_gate(k) and (p.grad is None or not p.grad.any())] == []
    assert same(run(net.bfloat16(), half), before_half)


def test_streams_have_names_of_their_own() -> None:
    net, _ = build("FluxTransformer2DModel")
    names = [name for name, _ in units(gate(net))]
    assert names[:4] == [f"transformer_blocks.0.{unit}_unit" for unit in ("attn", "ff", "text_attn", "text_ff_context")]
    assert names[-1] == "single_transformer_blocks.1.joint_proj_out_unit"


@pytest.mark.parametrize("rule", ["skip", "rezero", "resnet"])
def test_other_rules_start_plain_too(rule: str) -> None:
    net, inputs = build("SD3Transformer2DModel")
    before = run(net, inputs)
    assert same(run(gate(net, rule), inputs), before)


def test_what_cannot_be_had_is_refused_and_nothing_is_half_gated() -> None:
    net, inputs = build("FluxTransformer2DModel")
    keys, before = set(net.state_dict()), run(net, inputs)
    with pytest.raises(ValueError, match=r"'adaln' changes what a branch reads, and in .* only what is written"):
        gate(net, "adaln")
    net.transformer_blocks.append(StrangeBlock())
    with pytest.raises(ValueError, match=r"transformer_blocks\.2 \(StrangeBlock\) adds to its stream in a way"):
        gate(net)
    del net.transformer_blocks[2]
    assert set(net.state_dict()) == keys
    assert same(run(net, inputs), before)
    assert {type(block).__dict__.get("rewritten") for block in net.transformer_blocks} == {None}


class StrangeBlock(nn.Module):
    """Looks like a block of diffusers."""

    __module__ = "diffusers.models.strange"

    forward = FeedForward.forward


def test_checkpointed_it_computes_the_same() -> None:
    net, inputs = build("FluxTransformer2DModel")
    gate(net)
    moved(net)
    net.train()
    want = run(net, inputs)
    sum(x.square().sum() for x in want).backward()  # type: ignore[union-attr]
    gradients = {k: p.grad.clone() for k, p in net.named_parameters() if is_gate(k)}
    net.zero_grad()
    net.enable_gradient_checkpointing()
    again = run(net, inputs)
    sum(x.square().sum() for x in again).backward()  # type: ignore[union-attr]
    assert same(again, want)
    assert all(torch.equal(p.grad, gradients[k]) for k, p in net.named_parameters() if is_gate(k))


@pytest.mark.full
def test_compiled_it_computes_the_same() -> None:
    net, inputs = build("FluxTransformer2DModel")
    gate(net)
    moved(net)
    want = run(net, inputs)
    net.compile_repeated_blocks(backend="aot_eager", fullgraph=True)  # which finds the blocks by the names of classes
    found = run(net, inputs)
    torch.testing.assert_close(found, want)
    found[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for k, p in net.named_parameters() if is_gate(k))


def test_the_probe_measures_entry_and_exit_of_every_unit() -> None:
    net, inputs = build("FluxTransformer2DModel")
    gate(net)
    net.double()
    inputs = cast(inputs, torch.float64)
    moved(net)
    with probe(net, branches=True) as rows:
        run(net, inputs)[0].square().sum().backward()
    entries, exits = [], []

    def note(unit: nn.Module, arguments: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        arguments[0].retain_grad()
        out.retain_grad()
        entries.append(arguments[0])
        exits.append(out)

    for _, unit in units(net):
        unit.register_forward_hook(note)
    run(net, inputs)[0].square().sum().backward()
    want = torch.stack(
        [torch.stack([z.grad.square().sum() for z in pair]) for pair in zip(entries, exits, strict=True)]
    )
    torch.testing.assert_close(rows.grad[:, :2], want, rtol=1e-9, atol=0)
    # alpha and beta act behind the branch: the direct way has the exit's gradient, and the rest came by the branch
    rest = torch.stack([(z.grad - out.grad).square().sum() for z, out in zip(entries, exits, strict=True)])
    torch.testing.assert_close(rows.grad[:, 2:], torch.stack([rest, want[:, 1]], dim=1), rtol=1e-9, atol=0)


def test_gates_fold_into_diffusers_own_class() -> None:
    net, inputs = build("SD3Transformer2DModel")
    gate(net, Residual("rezero"))
    moved(net)
    plain = fold(net)
    assert type(plain) is diffusers.SD3Transformer2DModel
    torch.testing.assert_close(run(plain, inputs), run(net, inputs), rtol=1e-4, atol=1e-4)
    net, _ = build("CogVideoXTransformer3DModel")
    gate(net, "rezero")
    moved(net)
    with pytest.raises(ConfigError, match=r"shares the layer transformer_blocks\.0\.attn1\.to_out\.0 with .*differ"):
        fold(net)


def test_a_factor_inside_of_a_branch_lets_alpha_into_its_layer_and_not_beta() -> None:
    net, inputs = build("RFD4ProteinaTransformer")  # whose branches multiply the output of their last layer
    gate(net)
    with torch.no_grad():
        for _, unit in units(net):
            unit.alpha.fill_(0.7)
    torch.testing.assert_close(run(fold(net), inputs), run(net, inputs), rtol=1e-4, atol=1e-4)
    for name, unit in units(net):
        with torch.no_grad():
            unit.beta.fill_(0.1)
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)} cannot fold: its beta, which is not 0"):
            fold(net)
        with torch.no_grad():
            unit.beta.zero_()


@pytest.fixture
def one_process() -> Iterator[None]:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        port = probing.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_ddp_runs_once_the_silent_gates_are_frozen() -> None:
    net, inputs = build("CogVideoXTransformer3DModel")
    gate(net)
    net.requires_grad_(False)
    for name, p in net.named_parameters():
        p.requires_grad_(is_gate(name))
    with pytest.raises(ValueError, match="run one backward pass first"):
        freeze_silent(net)
    run(net, inputs)[0].square().sum().backward()
    silent = freeze_silent(net)
    assert silent == [f"transformer_blocks.1.text_ff_unit.{gate}" for gate in ("alpha", "beta")]
    parallel = nn.parallel.DistributedDataParallel(net)
    for _ in range(2):  # the second step is the one that misses a gradient
        run(parallel, inputs)[0].square().sum().backward()


@pytest.mark.usefixtures("one_process")
def test_fsdp2_computes_the_same() -> None:
    from torch.distributed.fsdp import fully_shard

    net, inputs = build("FluxTransformer2DModel")
    gate(net)
    moved(net)
    want = run(net, inputs)
    for block in [*net.transformer_blocks, *net.single_transformer_blocks]:
        fully_shard(block)
    fully_shard(net)
    found = run(net, inputs)
    found[0].square().sum().backward()
    torch.testing.assert_close(found, want)
    assert all(p.grad is not None for k, p in net.named_parameters() if is_gate(k))


def moved(net: nn.Module) -> None:
    """Give every gate another value."""
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_gate(name):
                p.add_(0.3 * torch.randn(p.shape, dtype=p.dtype))


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", table.PAGE.read_text(encoding="utf-8"), re.S)
    assert example is not None
    (tmp_path / "example.py").write_text(example[1], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert (tmp_path / "gates.safetensors").stat().st_size < 20_000
    name = "transformer_blocks.0.attn_unit.alpha"
    trained, half = (dict(names[net].named_parameters())[name] for net in ("transformer", "again"))
    torch.testing.assert_close(half, 0.5 * (1 + trained))
    assert not torch.equal(half, torch.ones_like(half))


def test_the_thermometer_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = re.findall(r"```python\n(.*?)```", table.PAGE.read_text(encoding="utf-8"), re.S)
    (example,) = [text for text in examples if "Thermometer(" in text]
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path("example.py")
    assert len(names["reading"].ranked()) == 6
    assert (tmp_path / "thermometer" / "depth.png").is_file()


@pytest.mark.parametrize("name", ["Kandinsky6Transformer3DModel", "Kandinsky6SRTransformer3DModel"])
def test_additions_in_a_helper_function_are_refused(name: str) -> None:
    assert "adds to its stream in a way that is not understood" in table.row(name)[0]


@pytest.mark.full
def test_the_table_of_the_page_is_what_is_measured() -> None:
    page = table.PAGE.read_text(encoding="utf-8")
    version = f"diffusers {diffusers.__version__}"
    if version not in page:
        pytest.skip(f"docs/diffusers.md has the table of another version than the installed {version}")
    found = table.table()
    assert found == page.split(table.BEGIN)[1].split(table.END)[0]
    assert sum("| yes |" in line for line in found.splitlines()) >= 57
