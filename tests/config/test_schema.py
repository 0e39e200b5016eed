"""The schema, the configuration files and the code say the same: names, types, choices and sizes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from neural_rdm.cli import build
from neural_rdm.config.check import config_dir, validate
from neural_rdm.config.compose import Composed, compose_config
from neural_rdm.core import primary, schema
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.residual import RULES, units
from neural_rdm.residual.spec import options_of
from tests.helpers import is_gate

OURS = [target for target in schema.TARGETS if target.startswith("neural_rdm.")]
LIGHTNINGS = [target for target in schema.TARGETS if target not in OURS]

#: constructor arguments of our classes that code supplies, and no configuration
SUPPLIED = {
    "neural_rdm.backbones.dit.DiT": {"residual"},
    "neural_rdm.backbones.latte.Latte": {"residual"},
    "neural_rdm.backbones.unet.UNet": {"residual"},
    "neural_rdm.backbones.uvit.UViT": {"residual"},
    "neural_rdm.residual.Residual": {"options"},  # those of the rule: see below
    "neural_rdm.training.logging.CSVLogger": {"save_dir"},
    **{f"neural_rdm.training.parallel.{n}": {"devices", "num_nodes"} for n in ("single", "ddp", "fsdp2", "deepspeed")},
}
#: the groups of configs/; a file anywhere else would never be found
GROUPS = {
    "backbone", "callbacks", "condition", "data", "diffusion", "exp", "first_stage", "logger", "metric", "optimizer",
    "residual", "sampler", "strategy", "trainer",
}  # fmt: skip
CHOICES = sorted(f"{p.parent.name}={p.stem}" for p in config_dir().glob("*/*.yaml"))
EXPERIMENTS = sorted(p.stem for p in (config_dir() / "exp").glob("*.yaml"))
#: what a choice needs beside it to fit the default experiment
VIDEO = ["backbone=latte", "backbone.extras=class", "sampler.cfg_scale=1"]
TEXT = ["backbone.num_classes=0", "backbone.context_dim=${condition.dim}"]
PIXELS = ["backbone.input_size=32", "backbone.in_channels=3", "data.image_size=32"]
NEEDS = {
    "data=imagenet": ["backbone.input_size=32", "first_stage=kl_f8", "backbone.in_channels=4"],
    "sampler=paper_dit": ["sampler.channels=1"],
    **{f"first_stage={name}": ["backbone.in_channels=4"] for name in ("kl_f8", "vq_f8", "tiny")},
    "first_stage=vq_f4": ["backbone.in_channels=3"],
    "metric=images": ["metric.reference=statistics.npz"],
    "metric=videos": ["metric.reference=statistics.npz"],
    "data=image_folder": ["backbone.input_size=32", "data.image_size=32"],
    "data=coco": [*PIXELS, *TEXT, "condition=minilm"],
    "data=journeydb": [*PIXELS, *TEXT, "condition=minilm"],
    "data=webdataset": PIXELS,
    "data=digits_text": [*TEXT, "condition=minilm", "metric=digits_text"],
    "metric=digits_text": [*TEXT, "condition=minilm", "data=digits_text"],
    "data=digits_video": [*VIDEO, "backbone.input_size=12", "backbone.num_frames=8"],
    "data=sky": [*VIDEO, *PIXELS],
    "data=taichi": [*VIDEO, *PIXELS],
    "data=ucf101": [*VIDEO, *PIXELS, "backbone.num_classes=101"],
    **{f"backbone=latte{size}": ["backbone.extras=class"] for size in ("", "_s", "_b", "_l", "_xl")},
    **{f"condition={kind}": TEXT for kind in ("clip", "t5", "minilm")},
    # their keys are not those of the default experiment's network
    **{f"backbone={name}": ["exp=digits_unet_gated"] for name in ("unet", "ldm8")},
    "backbone=ldm4_unconditional": ["exp=digits_unet_gated", "sampler.cfg_scale=1"],
    "backbone=adm": [
        "exp=digits_unet_gated",
        "sampler.cfg_scale=1",
        "backbone.num_context_classes=null",
        "backbone.context_dim=null",
        "backbone.use_spatial_transformer=false",
    ],
    "backbone=ldm4": ["exp=digits_unet_gated", "backbone.num_heads=null"],
    "backbone=ldm_t2i": [
        "exp=digits_unet_gated",
        "backbone.num_heads=null",
        "condition=minilm",
        "backbone.context_dim=384",
        "backbone.num_context_classes=null",
    ],
    **{f"backbone={name}": ["exp=uvit_h_gated"] for name in ("uvit", "uvit_s", "uvit_l", "uvit_h")},
    "diffusion=flow": ["sampler=euler"],
    **{f"sampler={name}": ["diffusion=flow"] for name in ("euler", "heun")},
}
#: trainable and frozen parameters of the official networks (DiT-S/2 to XL/2 with 1000 classes), without gates
OFFICIAL = {
    "dit_s": (32_963_360, 384, 12), "dit_b": (130_512_416, 768, 12),
    "dit_l": (458_102_816, 1024, 24), "dit_xl": (675_129_632, 1152, 28),
    "latte_s": (32_585_120, 384, 12), "latte_b": (129_755_936, 768, 12), "latte_xl": (673_994_912, 1152, 28),
}  # fmt: skip
#: the same of the U-shaped ones, class embedders included
OFFICIAL_U = {
    "ldm4": 400_920_579 + 512_512, "ldm8": 394_984_196 + 512_512,
    "uvit_h": 500_832_016, "uvit_s_gated_coco": 44_692_644,
}  # fmt: skip


def composed(*overrides: str) -> Composed:
    """A checked configuration."""
    result = compose_config("train", list(overrides))
    validate(result.cfg, "train", result.sources)
    return result


def parameters_of(target: str) -> dict[str, inspect.Parameter]:
    module, _, name = target.rpartition(".")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def fields_of(target: str) -> dict[str, Any]:
    hidden = {"_target_", *(build.STORAGE if target.startswith("neural_rdm.data.") else ())}
    return {f.name: str(f.type) for f in dataclasses.fields(schema.TARGETS[target]) if f.name not in hidden}


@pytest.mark.parametrize("target", OURS)
def test_a_class_takes_exactly_the_keys_of_its_schema(target: str) -> None:
    assert set(parameters_of(target)) == set(fields_of(target)) | SUPPLIED.get(target, set())
    assert set(fields_of(target)).isdisjoint(SUPPLIED.get(target, set()))


@pytest.mark.parametrize("target", OURS)
def test_types_are_those_of_the_signature(target: str) -> None:
    parameters = parameters_of(target)
    for name, kind in fields_of(target).items():
        annotation = str(parameters[name].annotation)
        assert not kind.startswith("Optional[") or "None" in annotation, f"{name}: {kind}, {annotation}"
        plain = kind.removeprefix("Optional[").removesuffix("]")
        if plain in ("int", "float", "bool"):
            assert annotation.split(" | ")[0] == plain, f"{name}: {kind}, {annotation}"


def test_a_residual_rule_takes_exactly_the_options_of_its_schema() -> None:
    shared = {f.name for f in dataclasses.fields(schema.Residual)}
    for name in ("gated", "adaln", "skip", "resnet", "rezero"):
        fields = {f.name: f for f in dataclasses.fields(schema.RULES[name]) if f.name not in shared}
        options = options_of(RULES[name])
        assert set(fields) == set(options)
        for key, (default, choices) in options.items():
            assert tuple(fields[key].metadata.get("choices", ())) == choices
            written = OmegaConf.load(config_dir() / "residual" / f"{name}.yaml")[key]
            assert written == default


@pytest.mark.parametrize("target", LIGHTNINGS)
def test_other_classes_take_the_keys_of_their_schema(target: str) -> None:
    parameters = parameters_of(target)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        named = set(parameters) | {"resume"}  # Weights & Biases hands it on to wandb.init
    else:
        named = set(parameters)
    assert set(fields_of(target)) <= named


def test_every_file_belongs_to_a_group_and_every_group_to_the_schema() -> None:
    files = sorted(config_dir().rglob("*.yaml"))
    assert {p.parent.name for p in files if p.parent != config_dir()} == GROUPS
    assert all(p.parent == config_dir() or p.parent.parent == config_dir() for p in files)
    assert {p.stem for p in files if p.parent == config_dir()} == set(primary.COMMANDS)
    assert GROUPS - {"exp"} <= {f.name for f in dataclasses.fields(primary.Train)}
    assert [p for p in config_dir().rglob("*") if p.is_file() and p.suffix != ".yaml"] == []


def test_every_target_of_ours_in_a_file_is_in_the_schema() -> None:
    def targets(node: Any) -> set[str]:
        inner = [targets(v) for v in node.values()] if isinstance(node, dict) else []
        return set().union(*inner) | ({node["_target_"]} if isinstance(node, dict) and "_target_" in node else set())

    found = {
        target for p in config_dir().glob("*/*.yaml")
        for target in targets(OmegaConf.to_container(OmegaConf.load(p), resolve=False))
    }  # fmt: skip
    assert found == set(schema.TARGETS)


def test_every_number_has_a_range() -> None:
    free = {"adaln_gate_init", "shift", "logit_mean"}
    for kind in {*schema.TARGETS.values(), *primary.COMMANDS.values(), schema.Trainer, schema.Checkpoint}:
        for definition in dataclasses.fields(kind):
            limits = definition.metadata
            if "low" in limits and "high" in limits:
                assert limits["low"] < limits["high"]
            number = str(definition.type).removeprefix("Optional[").removesuffix("]") in ("int", "float")
            assert not number or limits or definition.name in free, f"{kind.__name__}.{definition.name} has no range"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], str]:
    """Make a folder of images with as many classes as a configuration expects, and return its path."""

    def make(cfg: Any) -> str:
        root = tmp_path_factory.mktemp("images")
        for i in range(cfg.data.get("num_classes") or 1):
            (root / f"n{i:08d}").mkdir()
        (root / "n00000000" / "a.JPEG").touch()
        return str(root)

    return make


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_what_it_says(name: str, images: Callable[[Any], str]) -> None:
    cfg = composed(f"exp={name}", *NEEDS.get(f"exp={name}", [])).cfg
    if "root" in cfg.data:
        cfg.data.root = images(cfg)
    with torch.device("meta"):
        net = build.network(cfg)
    total = sum(p.numel() for p in net.parameters())
    gates = sum(p.numel() for n, p in net.named_parameters() if is_gate(n))
    width, depth = cfg.backbone.get("hidden_size"), cfg.backbone.get("depth")
    inside = sum(p.numel() for n, p in net.named_parameters() if n.rpartition(".")[0].endswith("unit"))
    assert gates == sum(2 * unit.dim_out for _, unit in units(net)) == inside > 0
    size = name.removesuffix("_finetune").removesuffix("_gated")
    if size in OFFICIAL_U:
        assert total - gates == OFFICIAL_U[size]
    if size in OFFICIAL:
        assert (total - gates, width, depth) == OFFICIAL[size]
        million = round((total - gates) / 1e6)
        assert f"/2: {million} M" in (config_dir() / "backbone" / f"{size}.yaml").read_text(encoding="utf-8")
        batch = 40 if size.startswith("latte") else 256
        assert (cfg.data.batch_size, cfg.optimizer.lr, cfg.optimizer.schedule) == (batch, 1e-4, "constant")
        assert cfg.gamma == (0.35 if name.endswith("_finetune") else 0)

    data, sampler = build.data(cfg), build.build(cfg.sampler, "sampler")
    objective, optimizer = build.build(cfg.diffusion, "diffusion"), build.build(cfg.optimizer, "optimizer")
    assert data.batch_size == cfg.data.batch_size
    assert isinstance(sampler, Sampler)
    assert sampler.scheduler(objective.process) is not None
    assert optimizer.factor(cfg.trainer.max_steps // 2, cfg.trainer.max_steps) > 0
    trainable = {n for n, p in net.named_parameters() if p.requires_grad}
    assert {n for n, _ in net.named_parameters()} - trainable <= {"pos_embed", "temp_embed"}


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_with_the_default_experiment(
    choice: str, tmp_path: Path, images: Callable[[Any], str]
) -> None:
    group, _, name = choice.partition("=")
    result = composed(choice, *NEEDS.get(choice, []))
    assert result.choices[group] == name
    cfg = result.cfg
    if "root" in cfg.data:
        cfg.data.root = images(cfg)
    if name.startswith("deepspeed") or group in ("exp", "trainer"):
        return  # DeepSpeed needs GPUs; experiments have a test of their own; a trainer is not one object
    if group == "backbone":
        with torch.device("meta"):
            build.network(cfg)
    elif group == "logger":
        for key, node in cfg.logger.items():
            if not node._target_.endswith("WandbLogger") or importlib.util.find_spec("wandb"):
                build.build(node, f"logger.{key}", save_dir=str(tmp_path))
    elif group == "callbacks":
        assert [build.build(node, key) for key, node in cfg.callbacks.items()]
    elif group == "strategy":
        build.build(cfg.strategy, "strategy", devices=1, num_nodes=1)
    else:
        assert build.build(cfg[group], group) is not None
