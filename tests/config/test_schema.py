"""The schema, the configuration files and the code say the same: names, types, choices and sizes."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_rdm.backbones import constraints
from neural_rdm.backbones.dit import DiT
from neural_rdm.backbones.unet import UNet
from neural_rdm.backbones.uvit import UViT
from neural_rdm.config import primary, primary_train
from neural_rdm.config.check import choices_of, config_dir, validate
from neural_rdm.config.compose import Composed, compose_config
from neural_rdm.config.environment import PACKAGES
from neural_rdm.config.reader import REQUIRED, UNREAD, signature
from neural_rdm.config.schema import of_class, rules, targets
from neural_rdm.core.arguments import is_opaque, members
from neural_rdm.core.errors import ConfigError
from neural_rdm.diffusion.process import DDPM
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.latents.first_stage import KL, VQ
from neural_rdm.metrics.networks import NETWORKS
from neural_rdm.residual import RULES, Residual, units
from neural_rdm.runs import build
from neural_rdm.training.optim import Optimizer
from tests.helpers import is_gate

TARGETS = targets(config_dir())
LIGHTNINGS = [target for target in TARGETS if not target.startswith("neural_rdm.")]
OURS = [target for target in TARGETS if target.startswith("neural_rdm.")]
#: the groups of configs/; a file anywhere else would never be found
GROUPS = {
    "backbone", "callbacks", "condition", "data", "debug", "diffusion", "exp", "first_stage", "launcher", "logger",
    "metric", "optimizer", "residual", "sampler", "strategy", "study", "sweeper", "trainer",
}  # fmt: skip
#: those of a sweep, and not of its jobs
SWEEPS = {"launcher", "sweeper"}
#: those whose files say things of all nodes, and have none of their own
WIDE = {"debug", "exp", "study"}
#: what is nothing without the folder of a pipeline: `tests/pipelines/test_finetune.py` makes some
OF_PIPELINES = {"backbone=pipeline", "condition=pipeline", "exp=diffusers_finetune"}
ALL = sorted(f"{p.parent.name}={p.stem}" for p in config_dir().glob("*/*.yaml") if p.parent.name not in SWEEPS)
#: experiments have a test of their own
CHOICES = [choice for choice in ALL if choice not in OF_PIPELINES and not choice.startswith("exp=")]
EXPERIMENTS = [name for name in choices_of("exp") if f"exp={name}" not in OF_PIPELINES]
#: what a choice needs beside it to fit the default experiment
VIDEO = ["backbone=latte", "backbone.extras=class", "sampler.cfg_scale=1"]
TEXT = ["backbone.num_classes=0", "backbone.context_dim=${condition.dim}"]
PIXELS = ["backbone.input_size=32", "backbone.in_channels=3", "data.image_size=32"]
NEEDS = {
    "data=imagenet": ["backbone.input_size=32", "first_stage=kl_f8", "backbone.in_channels=4"],
    "sampler=paper_dit": ["sampler.channels=1"],
    "strategy=hsdp": ["trainer.devices=4", "trainer.num_nodes=2"],
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
    **{f"condition={kind}": [*TEXT, "data=digits_text", "metric=digits_text"] for kind in ("clip", "t5", "minilm")},
    # their keys are not those of the default experiment's network
    **{f"backbone={name}": ["exp=digits_unet_gated"] for name in ("unet", "ldm8")},
    "backbone=ldm4_unconditional": ["exp=digits_unet_gated", "sampler.cfg_scale=1"],
    "backbone=adm": [
        "exp=digits_unet_gated",
        "sampler.cfg_scale=1",
        "backbone.num_classes=10",
        "backbone.num_context_classes=null",
        "backbone.context_dim=null",
        "backbone.use_spatial_transformer=false",
    ],
    "backbone=ldm4": ["exp=digits_unet_gated", "backbone.num_heads=null"],
    "backbone=ldm_t2i": [
        "exp=digits_unet_gated",
        "backbone.num_heads=null",
        "condition=minilm",
        "data=digits_text",
        "metric=digits_text",
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


def built(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_what_is_read_of_a_source_is_what_python_says_once_it_is_imported() -> None:
    there = [t for t in TARGETS if importlib.util.find_spec(t.partition(".")[0]) is not None]  # extras may be missing
    assert set(OURS) <= set(there)
    for target in [*there, *rules().values()]:
        read, thing = signature(target), built(target)
        parameters = inspect.signature(thing).parameters.values()
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        assert read is not None
        assert list(read.arguments) == [p.name for p in named], target
        assert read.is_open == any(p.kind is p.VAR_KEYWORD for p in parameters), target
        build = thing if not isinstance(thing, type) or dataclasses.is_dataclass(thing) else thing.__init__
        hints = typing.get_type_hints(build, include_extras=True) if target not in LIGHTNINGS else {}
        for p in named:
            argument = read.arguments[p.name]
            if target in LIGHTNINGS and argument.default is UNREAD:
                continue  # of the environment, say
            default = list(p.default) if isinstance(p.default, tuple) else p.default
            assert argument.default == (REQUIRED if default is p.empty else default), f"{target}.{p.name}"
            if hints and not any(map(is_opaque, members(hints[p.name]))):
                assert argument.kind == hints[p.name], f"{target}.{p.name}"


def test_constraints_and_constants_are_read_too() -> None:
    latte, unet, kl = (signature(t) or pytest.fail(t) for t in OURS if t.endswith((".Latte", ".UNet", ".KL")))
    assert {constraints.turns_taken, constraints.heads_divide} <= set(latte.constraints)
    assert unet.constants["of_diffusers"] is UNet.of_diffusers
    assert kl.constants["tiles"] is KL.tiles
    ours = {name: kind for name, kind in RULES.items() if kind.__module__.startswith("neural_rdm.")}
    assert rules() == {name: f"{kind.__module__}.{kind.__name__}" for name, kind in ours.items()}
    assert len(rules()) == 14
    clips = {name for name, network in NETWORKS.items() if network.takes_clips}
    assert (set(typing.get_args(primary.ClipFeatures)), set(NETWORKS) - clips) == (
        clips, set(typing.get_args(primary.ImageFeatures))
    )  # fmt: skip


def test_what_the_files_leave_out_is_filled_in_and_can_be_typed_without_a_plus() -> None:
    cfg = compose_config("train", ["backbone.norm=rms", "callbacks.ema.further=[0.9]"]).cfg
    assert (cfg.backbone.norm, cfg.backbone.mlp, cfg.residual.beta_form) == ("rms", "gelu", "additive")
    assert (cfg.callbacks.ema.further, cfg.callbacks.samples.every_n_steps) == ([0.9], 300)
    added = [
        "+callbacks.more._target_=neural_rdm.training.callbacks.sampling.SampleGrid",
        "+callbacks.more.per_class=2",
    ]
    assert composed(*added).cfg.callbacks.more.max_classes == 8
    for command in ("sample", "encode"):
        assert compose_config(command, ["sampler=ddim"] if command == "sample" else ["data=coco"]).cfg is not None


@pytest.mark.parametrize(
    ("thing", "arguments", "key", "word"),
    [
        (DiT, {"depth": 0}, "depth", "depth=0 must be above 0"),
        (DiT, {"hidden_size": 96, "num_heads": 5}, "num_heads", "nearest that does is 4"),
        (DiT, {"norm": "rsm"}, "norm", "Did you mean rms?"),
        (UViT, {"depth": 5}, "depth", "pass 4 .* or 6"),
        (Sampler, {"name": "dpm++", "eta": 0.5}, "eta", "belongs to ddim"),
        (Optimizer, {"betas": (0.9,)}, "betas", "two numbers"),
        (DDPM, {"schedule": "cosine", "beta_end": 0.5}, "schedule", "pass beta_start=null"),
        (KL, {"path": "x", "tile": 1}, "tile", "takes bool"),
        (VQ, {"path": "x", "tile": True}, "tile", "only a KL"),
        (Residual, {"granularity": "chanel"}, "granularity", "Did you mean channel?"),
    ],
)
def test_python_callers_get_the_same_refusal(thing: Any, arguments: dict[str, Any], key: str, word: str) -> None:
    assert KL("x", tile=True).tile  # `tiles` is a constant of the derived class
    with pytest.raises(ValueError, match=word) as caught:
        thing(**arguments)
    assert isinstance(caught.value, ConfigError)
    assert caught.value.key == key


def test_every_file_belongs_to_a_group_and_every_group_to_the_schema() -> None:
    files = [p.relative_to(config_dir()) for p in sorted(config_dir().rglob("*.yaml"))]
    assert {p.parts[0] for p in files if len(p.parts) > 1} == GROUPS
    assert all(len(p.parts) <= 2 or p.parts[0] == "exp" for p in files), (
        "experiments alone lie in folders of their group"
    )
    assert {p.stem for p in files if len(p.parts) == 1} == set(primary.COMMANDS)
    assert {f.name for f in dataclasses.fields(primary.Train)} >= GROUPS - WIDE - SWEEPS
    assert {f.name for f in dataclasses.fields(primary_train.Sweeping)} >= SWEEPS
    assert [p for p in config_dir().rglob("*") if p.is_file() and p.suffix != ".yaml"] == []


def test_every_number_has_a_range() -> None:
    free = {"adaln_gate_init", "shift", "logit_mean", "classes", "guidance", "times", "backbone"}
    kinds = [*primary.COMMANDS.values(), primary_train.Trainer, primary_train.Checkpoint]
    for read in [*map(of_class, kinds), *map(signature, OURS)]:
        assert read is not None
        for name, argument in read.arguments.items():
            assert name in free or not {int, float} & set(members(argument.kind)), f"{name} has no range"


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
    result = composed(f"exp={name}", *NEEDS.get(f"exp={name}", []))
    assert result.choices["exp"] == name
    cfg = result.cfg
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
    wanted = {extra: package for package, extra in PACKAGES.values()}
    if group == "logger" and name in wanted:
        pytest.importorskip(wanted[name], reason=f"the extra {name} is not installed")
    result = composed(choice, *NEEDS.get(choice, []))
    assert result.choices[group] == name
    cfg = result.cfg
    if "root" in cfg.data:
        cfg.data.root = images(cfg)
    if name.startswith("deepspeed") or group in ("study", "trainer"):
        return  # DeepSpeed needs GPUs; a trainer is not one object
    if group == "backbone":
        with torch.device("meta"):
            build.network(cfg)
    elif group == "logger":
        for key, node in cfg.logger.items():
            build.build(node, f"logger.{key}", save_dir=str(tmp_path))
    elif group in ("callbacks", "debug"):
        assert [build.build(node, key) for key, node in cfg.callbacks.items()]
    elif group == "strategy":
        build.build(cfg.strategy, "strategy", devices=4, num_nodes=2)
    else:
        assert build.build(cfg[group], group) is not None


def test_the_c_library_reads_every_file_as_the_slow_parser_does() -> None:
    import omegaconf._utils
    import yaml

    compose_config("train", [])
    quick = omegaconf._utils.get_yaml_loader()
    assert not yaml.__with_libyaml__ or issubclass(quick, yaml.cyaml.CParser)
    slow = next(kind for kind in quick.__mro__ if kind.__name__ == "OmegaConfLoader")
    files = [p.read_text(encoding="utf-8") for p in sorted(config_dir().rglob("*.yaml"))]
    for text in [*files, "a: 1e3\nb: 08\nc: 2024-01-15\nd: yes\ne: .inf\nf: '${g}'\n"]:
        assert repr(yaml.load(text, Loader=quick)) == repr(yaml.load(text, Loader=slow))
