"""Gates as an adapter file: written, loaded at any strength, merged; a wrong base is refused."""

from __future__ import annotations

import copy
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from neural_rdm import DiT, gate, load_gates, merge_gates, save_gates
from neural_rdm.core.errors import CheckpointError, ConfigError, WriteError
from neural_rdm.core.weights import digest_of
from neural_rdm.residual import Residual
from tests import processes
from tests.helpers import ROOT, is_gate

Inputs = tuple[torch.Tensor, ...]


def ours(**more: object) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    net = DiT(input_size=4, patch_size=2, in_channels=4, hidden_size=16, depth=2, num_heads=2, num_classes=3, **more)
    for p in net.parameters():
        if not is_gate("." + next(k for k, q in net.named_parameters() if q is p)):
            nn.init.normal_(p, std=0.2)
    return net, (torch.randn(2, 4, 4, 4), torch.tensor([3, 500]), torch.tensor([0, 2]))


def theirs() -> tuple[nn.Module, Inputs]:
    diffusers = pytest.importorskip("diffusers", reason="gating foreign models needs diffusers")
    torch.manual_seed(0)
    net = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12, freq_dim=16,
        ffn_dim=24, num_layers=2,
    )  # fmt: skip
    return net, (torch.randn(2, 4, 1, 4, 4), torch.tensor([3, 500]), torch.randn(2, 6, 12))


def run(net: nn.Module, inputs: Inputs) -> torch.Tensor:
    with torch.no_grad():
        out = net.eval()(*inputs)
    return out if isinstance(out, torch.Tensor) else out.sample


def moved(net: nn.Module) -> None:
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_gate(name):
                p.add_(0.3 * torch.randn(p.shape))


@pytest.mark.parametrize("kind", ["ours", "theirs"])
def test_gates_go_through_a_file_at_any_strength(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "gates.safetensors"
    if kind == "ours":
        (net, inputs), (plain, _) = ours(residual="gated"), ours(residual="resnet")
        state = {k: v for k, v in net.state_dict().items() if not is_gate(k)}
        plain.load_state_dict(state, strict=False)
    else:
        net, inputs = theirs()
        plain = copy.deepcopy(net)
        gate(net, Residual("gated", granularity="scalar"), units=["*.1.*"])
    base = run(plain, inputs)
    moved(net)
    want = run(net, inputs)
    assert not torch.equal(want, base)
    save_gates(net, file)
    assert file.stat().st_size < 20_000
    half = load_gates(copy.deepcopy(plain), file, scale=0.5)
    gates, whole = dict(half.named_parameters()), dict(net.named_parameters())
    name = next(k for k in gates if k.endswith(".alpha") and not torch.equal(gates[k], torch.ones_like(gates[k])))
    torch.testing.assert_close(gates[name], 0.5 * (1 + whole[name]))
    assert torch.equal(run(load_gates(copy.deepcopy(plain), file, scale=0), inputs), base)
    again = load_gates(plain, file)
    assert again is plain
    assert torch.equal(run(again, inputs), want)
    assert torch.equal(run(load_gates(again, file), inputs), want)


def test_a_wrong_base_is_refused_in_one_sentence_and_stays_as_it_was(tmp_path: Path) -> None:
    net, inputs = theirs()
    other = copy.deepcopy(net)
    save_gates(gate(net), tmp_path / "gates.safetensors")
    with torch.no_grad():
        other.patch_embedding.weight.mul_(2)
    before, keys = run(other, inputs), set(other.state_dict())
    with pytest.raises(CheckpointError, match=r"gates of a WanTransformer3DModel with other weights than this one's$"):
        load_gates(other, tmp_path / "gates.safetensors")
    assert set(other.state_dict()) == keys
    assert torch.equal(run(other, inputs), before)
    with pytest.raises(CheckpointError, match=r"holds gates of a WanTransformer3DModel, and this is a DiT$"):
        load_gates(ours()[0], tmp_path / "gates.safetensors")
    rezero, _ = theirs()
    with pytest.raises(
        CheckpointError, match=re.escape("Residual('gated'), and this network has those of Residual('re")
    ):
        load_gates(gate(rezero, "rezero"), tmp_path / "gates.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"\x80\x04nothing")
    with pytest.raises(CheckpointError, match="cannot be read as a file of gates"):
        load_gates(other, tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="has no gates to save"):
        save_gates(other, tmp_path / "none.safetensors")


def test_a_pipeline_a_scale_that_is_no_number_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    file, (net, inputs) = tmp_path / "gates.safetensors", theirs()
    plain, before = copy.deepcopy(net), run(net, inputs)
    save_gates(gate(net), file)
    for call in (gate, merge_gates, lambda pipe: save_gates(pipe, file), lambda pipe: load_gates(pipe, file)):
        with pytest.raises(ValueError, match=r"is no network; of a pipeline pass pipe\.transformer or pipe\.unet"):
            call(object())
    for scale in (float("nan"), float("inf"), "0.5"):
        with pytest.raises(ValueError, match="a scale of gates is a finite number, and not"):
            load_gates(plain, file, scale)
        with pytest.raises(ValueError, match="a scale of gates is a finite number, and not"):
            load_gates(plain, {file: scale})
    for files in (3, None, [file, 3], [file, file]):
        with pytest.raises(ValueError, match="gates are loaded from files, each once, and not from"):
            load_gates(plain, files)
    assert torch.equal(run(load_gates(copy.deepcopy(plain), [str(file)]), inputs), before)
    (tmp_path / "a file").touch()
    with pytest.raises(WriteError, match="cannot write"):
        save_gates(net, tmp_path / "a file" / "gates.safetensors")
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, metadata=header)
    with pytest.raises(CheckpointError, match="is damaged: its gates are not as they were written"):
        load_gates(plain, file)
    header["sha25v"] = header.pop("sha256")  # a flipped bit in the name would take the hash away
    changed = "is no file of gates: its header was changed"
    save_file(load_file(file), file, metadata=header)
    with pytest.raises(CheckpointError, match=changed):
        load_gates(plain, file)
    state = load_file(file)
    name = min(state)
    for head, gates, said in (
        ({k: v for k, v in header.items() if k != "fingerprint"}, state, changed),
        ({**header, "residual": "{"}, state, changed),
        ({**header, "units": "3"}, state, changed),
        (header, {**state, name: torch.ones(1)}, "holds other gates than this network has"),
        (header, {**state, name: state[name] * torch.nan}, f"not finite, the first in {name}"),
    ):
        save_file(gates, file, metadata={**head, "sha256": digest_of(gates)})
        with pytest.raises(CheckpointError, match=said):
            load_gates(plain, file)
    assert torch.equal(run(plain, inputs), before)


def test_units_are_named_by_one_pattern_or_several_and_not_by_none() -> None:
    net, _ = theirs()
    with pytest.raises(ValueError, match="units names no unit"):
        gate(copy.deepcopy(net), units=[])
    gate(net, units="*attn1_unit")
    assert {name for name, p in net.named_parameters() if is_gate(name)} == {
        f"blocks.{i}.attn1_unit.{kind}" for i in range(2) for kind in ("alpha", "beta")
    }


def test_what_does_not_fit_a_plain_network_leaves_it_as_it_was(tmp_path: Path) -> None:
    file, (plain, inputs) = tmp_path / "gates.safetensors", ours(residual="resnet")
    base, residual = run(plain, inputs), plain.residual

    def saved(rule: str) -> nn.Module:
        net, _ = ours(residual=rule)
        net.load_state_dict({**net.state_dict(), **plain.state_dict()})
        moved(net)
        save_gates(net, file)
        return net

    saved("hc")
    with pytest.raises(CheckpointError, match="stream is several tensors: load them into a network that was built"):
        load_gates(plain, file)
    net = saved("sandwich")
    with pytest.raises(ValueError, match="no value of its parameters is plain"):
        load_gates(plain, file, scale=0.5)
    assert plain.residual == residual
    assert torch.equal(run(plain, inputs), base)
    torch.testing.assert_close(run(load_gates(plain, file), inputs), run(net, inputs))


def test_a_base_in_bfloat16_is_the_same_base(tmp_path: Path) -> None:
    net, _ = theirs()
    low = copy.deepcopy(net).bfloat16()
    gate(net)
    moved(net)
    save_gates(net, tmp_path / "gates.safetensors")
    load_gates(low, tmp_path / "gates.safetensors")
    name = "blocks.0.attn1_unit.alpha"
    assert torch.equal(low.state_dict()[name], net.state_dict()[name].bfloat16())


def test_gates_are_merged_into_a_live_network() -> None:
    net, inputs = theirs()
    kind = type(net)
    gate(net, "rezero")
    moved(net)
    want = run(net, inputs)
    merged = merge_gates(net)
    assert merged is net
    assert type(net) is kind
    torch.testing.assert_close(run(net, inputs), want, rtol=1e-4, atol=1e-5)
    assert not any(is_gate(k) for k in net.state_dict())
    gate(net)
    moved(net)
    before = run(net, inputs)
    with pytest.raises(ConfigError, match="adaLN gate"):
        merge_gates(net)
    assert torch.equal(run(net, inputs), before)


def test_several_adapters_add_up(tmp_path: Path) -> None:
    plain, inputs = theirs()
    files, nets = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"], []
    for file in files:
        net = gate(copy.deepcopy(plain), Residual("gated"))
        moved(net)
        save_gates(net, file)
        nets.append(dict(net.named_parameters()))
    both = load_gates(copy.deepcopy(plain), {str(files[0]): 0.5, str(files[1]): 2.0})
    for name, p in both.named_parameters():
        if is_gate(name):
            start = float(name.endswith("alpha"))
            want = start + 0.5 * (nets[0][name] - start) + 2.0 * (nets[1][name] - start)
            torch.testing.assert_close(p, want)
    base = run(copy.deepcopy(plain), inputs)
    assert torch.equal(run(load_gates(both, {str(f): 1.0 for f in files}, scale=0), inputs), base)
    save_gates(gate(copy.deepcopy(plain), "rezero"), files[1])
    with pytest.raises(CheckpointError, match=r"b\.safetensors holds gates of Residual\('rezero'\), and .*a\.safetens"):
        load_gates(plain, {str(f): 1.0 for f in files})
    with pytest.raises(ValueError, match="no file of gates"):
        load_gates(plain, {})
    assert torch.equal(run(plain, inputs), base)


@pytest.mark.parametrize("first", ["gates", "lora"])
def test_lora_of_peft_stands_beside_gates(first: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is no dependency of this project")
    plain, inputs = theirs()
    net = copy.deepcopy(plain)
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")
    if first == "gates":
        gate(net)
    net.add_adapter(lora, "lora")
    if first == "lora":
        gate(net)
    assert torch.equal(run(net, inputs), run(plain, inputs))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if is_gate(name) or ".lora_" in name:
                p.add_(0.1 * torch.randn_like(p))
    save_gates(net, tmp_path / "gates.safetensors")
    net.save_lora_adapter(tmp_path, adapter_name="lora")
    where = {"weight_name": "pytorch_lora_weights.safetensors", "adapter_name": "lora", "prefix": None}
    if first == "gates":
        load_gates(plain, tmp_path / "gates.safetensors")
    plain.load_lora_adapter(tmp_path, **where)
    if first == "lora":
        load_gates(plain, tmp_path / "gates.safetensors")
    assert torch.equal(run(plain, inputs), run(net, inputs))


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading_takes_gates_along(kind: str) -> None:
    pytest.importorskip("accelerate", reason="diffusers offloads with accelerate, no dependency of this project")
    net, inputs = theirs()
    gate(net)
    moved(net)
    want = run(net, inputs)
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    cpu = torch.device("cpu")
    net.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)
    assert torch.equal(run(net, inputs), want)


def test_gates_move_between_two_processes(tmp_path: Path) -> None:
    net, inputs = theirs()
    gate(net)
    moved(net)
    save_gates(net, tmp_path / "gates.safetensors")
    torch.save(run(net, inputs), tmp_path / "want.pt")
    code = (
        "import sys, torch; from neural_rdm import load_gates; from tests.surgery.test_gates import run, theirs; "
        "net, inputs = theirs(); load_gates(net, sys.argv[1]); "
        "assert torch.equal(run(net, inputs), torch.load(sys.argv[2], weights_only=True))"
    )
    line = [sys.executable, "-c", code, str(tmp_path / "gates.safetensors"), str(tmp_path / "want.pt")]
    processes.run(line, cwd=ROOT, check=True, timeout=300)
