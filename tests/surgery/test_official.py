"""Official weights in and out: golden files, round trips, one clear message for whatever does not fit."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from neural_rdm import DiT, Latte, load_official
from neural_rdm.core.errors import CheckpointError, ConfigError
from neural_rdm.core.weights import read_weights
from neural_rdm.residual import units
from neural_rdm.surgery.export import constructor, to_diffusers, to_official
from tests.helpers import FIVE, covering, shared

TINY: dict[str, Any] = {
    "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "depth": 2, "num_heads": 2, "num_classes": 5
}  # fmt: skip


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Constructor arguments, state dict, and inputs with the output of an official network."""
    with safe_open(shared(f"golden/{name}.safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        config = json.loads(file.metadata()["config"])
    config.pop("attention_mode", None)
    state = {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
    return config, state, {k: v for k, v in tensors.items() if not k.startswith("state_dict.")}


def official(network: type[DiT] = DiT, **arguments: Any) -> dict[str, Tensor]:
    """The state dict of a small plain network with random values."""
    torch.manual_seed(0)
    net = network(**{**TINY, **arguments}, residual="resnet")
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.copy_(0.2 * torch.randn(p.shape))
    return {k: v.clone() for k, v in net.state_dict().items()}


def inputs(net: DiT) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    y = torch.tensor([0, net.num_classes]) if net.num_classes else None
    return torch.randn(2, *net.input_shape, generator=generator), torch.tensor([1, 500]), y


@pytest.mark.parametrize(
    ("name", "rule"), covering(["dit", "latte_extras1", "latte_extras2"], FIVE, whole=[("dit", ...)])
)
def test_golden_networks_under_every_rule(name: str, rule: str) -> None:
    config, state, tensors = golden(name)
    network = DiT if name == "dit" else Latte
    net, plain = network(**config, residual=rule), network(**config, residual="resnet")
    for one in (net, plain):
        assert load_official(one, state) is one
    shown = (tensors["input.x"], tensors["input.t"], tensors.get("input.y") if net.num_classes else None)
    out, expected = net(*shown), tensors["output"]
    assert ((out - expected).abs().max() / expected.std()).item() < 1e-5
    assert torch.equal(out, plain(*shown))
    for _, unit in units(net):
        assert not unit.has_alpha or bool((unit.alpha == 1).all())
        assert not unit.has_beta or not unit.beta.any()
    back = to_official(net)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([DiT, Latte]), st.sampled_from(sorted(FIVE)), st.sampled_from([1, 2, 4]), st.integers(1, 3),
    st.booleans(), st.integers(0, 4),
)  # fmt: skip
def test_round_trip_of_any_size(
    network: type[DiT], rule: str, patch: int, pairs: int, learn_sigma: bool, classes: int
) -> None:
    arguments: dict[str, Any] = {
        "patch_size": patch, "depth": 2 * pairs, "learn_sigma": learn_sigma, "num_classes": classes
    }  # fmt: skip
    if network is Latte:
        arguments |= {"num_frames": 3, "extras": "class" if classes else "unconditional"}
    state = official(network, **arguments)
    net = load_official(network(**{**TINY, **arguments}, residual=rule), state)
    back = to_official(net)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize("num_classes", [5, 1000])
def test_diffusers_computes_the_same_and_comes_back(tmp_path: Path, num_classes: int) -> None:
    from diffusers import DiTTransformer2DModel

    from neural_rdm.surgery.diffusers_dit import OfficialDiTTransformer2DModel

    net = load_official(DiT(**{**TINY, "num_classes": num_classes}), official(num_classes=num_classes))
    x, t, y = inputs(net)
    expected = net(x, t, y)
    exported = to_diffusers(net)
    exported.save_pretrained(tmp_path)
    for one in (exported, OfficialDiTTransformer2DModel.from_pretrained(tmp_path)):
        out = one(x, timestep=t, class_labels=y).sample
        assert ((out - expected).abs().max() / expected.std()).item() < 1e-5
    # Stock diffusers divides the timestep's exponents otherwise: when this fails, the subclass has become superfluous.
    stock = DiTTransformer2DModel.from_pretrained(tmp_path)(x, timestep=t, class_labels=y).sample
    assert ((stock - expected).abs().max() / expected.std()).item() > 1e-3
    again = load_official(DiT(**{**TINY, "num_classes": num_classes}, residual="rezero"), tmp_path)
    assert torch.equal(again(x, t, y), expected)


def test_alpha_folds_and_what_cannot_is_named() -> None:
    net = load_official(DiT(**TINY), official())
    with torch.no_grad():
        for _, unit in units(net):
            unit.alpha.normal_()
    plain = load_official(DiT(**TINY, residual="resnet"), to_official(net))
    torch.testing.assert_close(plain(*inputs(net)), net(*inputs(net)), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        net.blocks[1].mlp_unit.beta[3] = -0.5
    with pytest.raises(ConfigError, match=r"blocks\.1\.mlp_unit cannot fold: its beta.*largest 0\.5.*adaLN gate"):
        to_official(net)
    skip = load_official(DiT(**TINY, residual="skip"), official())
    skip.blocks[0].attn_unit.alpha.data[0] = 2
    with pytest.raises(
        ConfigError, match=r"blocks\.0\.attn_unit cannot fold.*alpha, which is not 1.*scales the stream"
    ):
        to_official(skip)
    with pytest.raises(ConfigError, match="class-conditional DiT"):
        to_diffusers(Latte(**TINY))
    with pytest.raises(ConfigError, match="default options"):
        to_official(DiT(**TINY, qk_norm=True))
    rebuilt = DiT(**{k: v for k, v in constructor(net).items() if k != "network"}, residual="resnet")
    assert rebuilt.state_dict().keys() == official().keys()


@pytest.mark.parametrize("wrap", ["bare", "training", "parallel", "safetensors", "ours"])
def test_every_layout_gives_the_averaged_weights(tmp_path: Path, wrap: str) -> None:
    state = official()
    raw = {k: v + 1 for k, v in state.items()}
    path = tmp_path / "weights.pt"
    if wrap == "bare":
        torch.save(state, path)
    elif wrap == "training":  # as the official training script writes it
        content = {"model": raw, "ema": state, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-S/2")}
        torch.save(content, path)
    elif wrap == "parallel":
        torch.save({"model": {f"module._orig_mod.{k}": v for k, v in state.items()}}, path)
    elif wrap == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        trained = {k: v for k, v in state.items() if k != "pos_embed"}
        content = {"state_dict": {f"net.{k}": v for k, v in raw.items()}, "ema": {"updates": 3, "weights": trained}}
        content["state_dict"]["net.pos_embed"] = state["pos_embed"]
        torch.save(content, path)
    read = read_weights(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[k], state[k]) for k in state)


def test_wrappers_in_a_state_dict_and_in_a_folder_of_diffusers(tmp_path: Path) -> None:
    state = official()
    net, plain = DiT(**TINY), load_official(DiT(**TINY), state)
    compiled = {f"_orig_mod.module.{k.replace('blocks.0.', 'blocks.0._orig_mod.')}": v for k, v in state.items()}
    torch.testing.assert_close(load_official(net, compiled)(*inputs(net)), plain(*inputs(net)), rtol=0, atol=0)
    stock = to_diffusers(DiT(**TINY, residual="resnet"))
    (tmp_path / "config.json").write_text(json.dumps(dict(stock.config)))
    wrapped = {f"module._orig_mod.{k}": v.contiguous() for k, v in stock.state_dict().items()}
    save_file({k: v.clone() for k, v in wrapped.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert torch.equal(
        load_official(net, tmp_path).get_parameter("x_embedder.proj.weight"),
        wrapped["module._orig_mod.pos_embed.proj.weight"],
    )


def test_gates_of_our_own_files_are_kept() -> None:
    source = load_official(DiT(**TINY), official())
    source.blocks[0].attn_unit.alpha.data.fill_(0.3)
    net = load_official(DiT(**TINY), source.state_dict())
    assert torch.equal(net(*inputs(net)), source(*inputs(net)))
    with pytest.raises(CheckpointError, match="gates of another residual rule"):
        load_official(DiT(**TINY, residual="rezero"), source.state_dict())


@pytest.mark.parametrize("rule", FIVE)
def test_a_new_text_changes_nothing_at_first_and_can_learn(rule: str) -> None:
    state = official(num_classes=0)
    plain = load_official(DiT(**{**TINY, "num_classes": 0}, residual=rule), state)
    net = load_official(DiT(**{**TINY, "num_classes": 0}, context_dim=6, residual=rule), state)
    x, t, _ = inputs(net)
    context = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(2))
    out = net(x, t, context=context)
    assert torch.equal(out, plain(x, t))
    out.square().mean().backward()
    for block in net.blocks:
        moved = block.cross_unit.alpha if rule == "rezero" else block.cross_attn.proj.weight
        assert moved.grad.abs().max() > 0
        assert not block.attn_unit.has_alpha or bool((block.attn_unit.alpha == 1).all())


def test_reinit_fits_tables_and_leaves_parts_fresh() -> None:
    state = official()
    net = DiT(**{**TINY, "num_classes": 7, "input_size": 16})
    fresh = net.y_embedder.embedding_table.weight.detach().clone()
    load_official(net, state, reinit=["y_embedder", "pos_embed"])
    assert torch.equal(net.y_embedder.embedding_table.weight, fresh)
    assert torch.equal(net.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    coarse = state["pos_embed"].transpose(1, 2).unflatten(2, (4, 4))
    fine = net.pos_embed.transpose(1, 2).unflatten(2, (8, 8))
    assert fine.shape[-1] == 8
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(fine, 2), coarse, atol=0.25, rtol=0)
    clips = official(Latte, num_frames=4)
    longer = load_official(Latte(**TINY, num_frames=8), clips, reinit=["temp_embed"])
    assert longer.temp_embed.shape == (1, 8, 16)
    pairs = longer.temp_embed.unflatten(1, (4, 2)).mean(dim=2)
    torch.testing.assert_close(pairs[:, 1:-1], clips["temp_embed"][:, 1:-1], atol=0.2, rtol=0)
    same = load_official(DiT(**TINY), state, reinit=["pos_embed"])
    assert torch.equal(same.pos_embed, state["pos_embed"])
    unlabelled = load_official(DiT(**{**TINY, "num_classes": 0}), state, reinit=["y_embedder"])
    assert not hasattr(unlabelled, "y_embedder")


def test_an_image_network_takes_the_spatial_blocks_of_a_video_checkpoint() -> None:
    clips = official(Latte, depth=4, num_frames=3)
    net = load_official(Latte(**{**TINY, "depth": 4}, num_frames=1), clips)
    assert torch.equal(net.blocks.get_submodule("2").attn.qkv.weight, clips["blocks.2.attn.qkv.weight"])
    assert net(*inputs(net)).shape == (2, 8, 8, 8)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "classes": ({"num_classes": 7}, r"6 rows against 8.*reinit=\[y_embedder\]"),
    "resolution": ({"input_size": 16}, r"another resolution.*reinit=\[pos_embed\]"),
    "patch": ({"patch_size": 4}, r"patches are 2 x 2 of 4 channels, the network's 4 x 4"),
    "width": ({"hidden_size": 32}, "hidden_size is 16, the network's 32"),
    "shallower": ({"depth": 1}, r"2 blocks, the network 1; pass backbone.depth=2"),
    "deeper": ({"depth": 4}, r"2 blocks, the network 4.*deepen"),
    "sigma": ({"learn_sigma": False}, "learn_sigma"),
    "labels": ({"num_classes": 0}, r"without labels: pass pretrained.reinit=\[y_embedder\]"),
    "qk_norm": ({"qk_norm": True}, "leave qk_norm, mlp and adaln at their defaults"),
    "registers": ({"register_tokens": 2}, "name them in pretrained.reinit"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_does_not_fit_is_told_in_one_message_and_nothing_is_touched(case: str) -> None:
    arguments, hint = WRONG[case]
    net = DiT(**{**TINY, **arguments})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"(?s)does not fit this network:.*{hint}"):
        load_official(net, official())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_other_networks_are_recognised() -> None:
    with pytest.raises(CheckpointError, match=r"diffusers' LatteTransformer3DModel.*another architecture"):
        load_official(Latte(**TINY), {"temporal_transformer_blocks.0.ff.net.2.bias": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="U-ViT, and not of a DiT"):
        load_official(DiT(**TINY), {"in_blocks.0.norm1.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"file of images.*Latte's odd blocks are temporal"):
        load_official(Latte(**TINY, extras=2), official())
    with pytest.raises(CheckpointError, match="there is no 'y_embeder' in this network"):
        load_official(DiT(**TINY), official(), reinit=["y_embeder"])


def test_two_broken_checkpoints_each_give_one_clear_message(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({"ema": official(), "args": argparse.Namespace()}, whole)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with pytest.raises(CheckpointError, match=r"cannot read .*cut\.pt: it is an incomplete or damaged file"):
        load_official(DiT(**TINY), cut)
    lacking = {k: v for k, v in official().items() if not k.startswith("blocks.1.mlp.fc1")}
    lacking["blocks.1.attn.rel_pos"] = torch.zeros(3)
    lacking["final_layer.linear.bias"] = torch.zeros(7)
    torch.save(lacking, tmp_path / "lacking.pt")
    with pytest.raises(CheckpointError) as error:
        load_official(DiT(**TINY), tmp_path / "lacking.pt")
    message = str(error.value)
    for part in ("blocks.1.mlp.fc1.bias", "blocks.1.attn.rel_pos", "final_layer.linear.bias (file [7], network [32])"):
        assert part in message


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_truncated_file_is_one_message(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("cut")
    torch.save({"a": torch.arange(300.0), "b": torch.ones(3)}, folder / "whole.pt")
    content = (folder / "whole.pt").read_bytes()
    (folder / "cut.pt").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(CheckpointError, match=r"cannot read"):
        read_weights(folder / "cut.pt")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
    ],
)
def test_what_is_not_weights_is_told(tmp_path: Path, content: bytes, word: str) -> None:
    for name in ("w.pt", "w.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=word):
            read_weights(tmp_path / name)


class Attack:
    """What an untrusted pickle can hold."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    torch.save({"model": {"a": torch.zeros(1)}, "args": Attack(touched)}, tmp_path / "attack.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Attack(touched)))
    for name in ("attack.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="cannot read"):
            read_weights(tmp_path / name)
    assert not touched.exists()


def test_a_folder_that_holds_no_weights_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match=r"holds notes\.txt, and none of"):
        read_weights(tmp_path)
    with pytest.raises(CheckpointError, match="no such file or folder"):
        read_weights(tmp_path / "absent.pt")
