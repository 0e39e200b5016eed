"""Composed configurations are refused with the key, what is allowed, the nearest name and the place of the value."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.check import as_plain, config_dir, flat_keys, validate
from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.sources import Sources
from neural_rdm.core.arguments import nearest
from neural_rdm.core.errors import ConfigError
from tests.helpers import covering

DIT = {
    "_target_": "neural_rdm.backbones.dit.DiT", "input_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 16,
    "depth": 2, "num_heads": 2, "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 10, "learn_sigma": True,
    "adaln_gate_init": None,
    "context_dim": None,
    "adaln": "block",
    "qk_norm": False,
    "norm": "layer",
    "mlp": "gelu",
    "positions": "sincos",
    "register_tokens": 0,
    "attention": "auto",
}  # fmt: skip


def check(*overrides: str, folders: tuple[Path, ...] = ()) -> DictConfig:
    """Compose and check the default configuration with these overrides."""
    composed = compose_config("train", list(overrides), [str(f) for f in folders])
    validate(composed.cfg, "train", composed.sources)
    return composed.cfg


def refusal(*overrides: str, folders: tuple[Path, ...] = ()) -> str:
    """The message that refuses it."""
    with pytest.raises(ConfigError) as caught:
        check(*overrides, folders=folders)
    return str(caught.value)


def extra(folder: Path, choice: str, text: str) -> Path:
    """`folder` as a configuration folder of one's own, with the file of one more choice ("group/name")."""
    file = folder / f"{choice}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("word", "choices", "hint"),
    [("betaz", ["lr", "betas"], " Did you mean betas?"), ("xyz", ["lr", "betas"], ""), ("a", [], "")],
)
def test_nearest(word: str, choices: list[str], hint: str) -> None:
    assert nearest(word, choices) == hint


def test_flat_keys_pass_over_what_has_no_value() -> None:
    cfg = OmegaConf.create({"a": {"b": 1, "c": {"d": None}}, "e": "${a.b}", "f": "???", "g": [1, 2]})
    assert list(flat_keys(cfg)) == ["a", "a.b", "a.c", "a.c.d", "e", "f", "g"]
    assert as_plain(OmegaConf.create({"a": [1, {"b": 2}], "c": "${a.1.b}"})) == {"a": [1, {"b": 2}], "c": 2}


def test_sources_say_where_a_value_stands(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.yaml", "optimizer/two.yaml", "logger/other.yaml"))
    for file, text in (
        (one, "# @package _global_\noptimizer:\n  lr: 1\n\n  # betas: commented out\n  eps: 0\nhydra:\n  lrs: 1\n"),
        (two, "'lr' : 2\nlrs: 3\n"),
        (other, "lr: 1\noptimizer:\n  lr: 2\n"),  # keys of a logger
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    sources = Sources((one, two, other, tmp_path / "gone.yaml"), frozenset({"optimizer.lr", "optimizer.betas"}))
    assert sources.where("optimizer.lr") == f" (command line; {one}; {two})"
    assert sources.where("optimizer.betas[1]") == " (command line)"
    assert sources.where("optimizer.eps") == f" ({one})"
    assert sources.where("optimizer.lrs") == f" ({two})"
    assert sources.where("other.lrs") == ""


def test_a_valid_configuration_passes_and_is_resolved() -> None:
    cfg = check("data=synthetic", "backbone.num_classes=7")
    assert cfg.data.num_classes == 7
    assert not OmegaConf.is_interpolation(cfg.data, "num_classes")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.depth=0"], ["backbone.depth=0", "above 0"]),
        (["backbone.class_dropout_prob=1.5"], ["backbone.class_dropout_prob=1.5", "between 0 and 1"]),
        (["optimizer.lr=nan"], ["optimizer.lr=nan", "finite"]),
        (["seed=-1"], ["seed=-1", "between 0"]),
        (["trainer.max_steps=null"], ["trainer.max_steps", "None", "int"]),
        (["backbone.depth=2.5"], ["backbone.depth", "2.5", "wrong type", "int"]),
        (["optimizer.betas=0.9"], ["optimizer.betas", "list[float]"]),
        (["optimizer.betas=[a,b]"], ["optimizer.betas[0]", "'a'", "(command line", "adamw.yaml"]),
        (["optimizer.clip=abc"], ["optimizer.clip", "'abc'", "float or null"]),
        (["checkpoint.keep=abc"], ["checkpoint.keep", "'abc'", "train.yaml"]),
        (["residual.rule=gate"], ["residual.rule=gate", "gated, adaln, skip, resnet, rezero", "Did you mean gated?"]),
        (["residual=skip", "residual.beta_form=linear"], ["residual.beta_form", "granularity", "time_conditioned"]),
        (["backbone.hidden_size=96", "backbone.num_heads=5"], ["backbone.num_heads", "hidden_size=96", "is 4"]),
        (["backbone.hidden_size=90", "backbone.num_heads=3"], ["backbone.hidden_size", "multiple of 4", "92"]),
        (["backbone.input_size=8", "backbone.patch_size=3"], ["backbone.patch_size", "input_size=8"]),
        (["backbone._target_=neural_rdm.backbones.dit.Dit"], ["backbone._target_", "Did you mean", "dit.DiT?"]),
        (["callbacks.ema=3"], ["callbacks.ema", "_target_", "3"]),
        (["choices=3.5"], ["choices", "filled in", "leave it out"]),
        (["+choices.exp=digits_gated"], ["choices", "filled in", "leave it out"]),
        (["sweep.seeds=2", "sweep.grids=[3]"], ["sweep.grids[0]", "3 is of the wrong type", "mapping"]),
        (["data.batch_size='${backbone.dept}'"], ["data.batch_size", "backbone.dept"]),
        (["data.batch_size=???"], ["data.batch_size", "pass data.batch_size="]),
        (["data=image_folder", "~data.root"], ["missing configuration key data.root"]),
        (["~residual"], ["missing configuration key residual"]),
        (
            ["+backbone.dept=3"],
            ["unknown configuration key backbone.dept", "Did you mean backbone.depth?", "(command line)"],
        ),
    ],
    ids=lambda v: " ".join(v) if v and "=" in v[0] else None,
)
def test_values_are_refused_by_name(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.devices=2"], ["trainer.devices=2", "strategy=ddp"]),
        (["trainer.num_nodes=2"], ["trainer.num_nodes=2", "strategy=ddp"]),
        (["trainer.devices=2", "strategy=ddp", "data.batch_size=127"], ["data.batch_size=127", "= 2", "=128"]),
        (
            ["trainer.accumulate_grad_batches=3", "data.batch_size=2"],
            ["data.batch_size=2", "= 3", "nearest: data.batch_size=3"],
        ),
        (["data=synthetic", "data.num_classes=3"], ["data.num_classes=3", "backbone.num_classes=3"]),
        (["data=imagenet", "data.image_size=64", "backbone.input_size=32"], ["64 x 64", "backbone.input_size=64"]),
        (
            ["data=imagenet", "first_stage=kl_f8", "backbone.in_channels=4", "backbone.input_size=16"],
            ["32 x 32", "backbone.input_size=32"],
        ),
    ],
    ids=lambda v: " ".join(v) if v and "=" in v[0] else None,
)
def test_rules_between_groups(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [w for w in words if w not in message] == [], message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        # timesteps that no sampler can use
        (["diffusion=cosine", "sampler.steps=996"], ["sampler.steps=996", "dpm++", "at most 995"]),
        (["diffusion.process.beta_end=0.05", "sampler.steps=999"], ["sampler.steps=999", "at most"]),
        (["diffusion=cosine", "sampler=ddpm", "sampler.steps=1000"], ["sampler.steps=1000", "ddpm", "at most 996"]),
        (["sampler=ddim", "sampler.steps=1000", "sampler.steps_offset=1"], ["sampler.steps=1000", "at most 999"]),
        # a schedule that never reaches noise
        (
            ["diffusion.process.num_timesteps=100"],
            ["diffusion.process.num_timesteps=100", "beta_start=0.001", "beta_end=0.2", "diffusion=cosine"],
        ),
        (["diffusion.process.num_timesteps=15", "sampler.steps=10"], ["diffusion=cosine"]),
        (["diffusion=ldm", "diffusion.process.num_timesteps=100"], ["beta_start=0.015", "beta_end=0.195"]),
        # guidance that never acts
        (["sampler.interval=[2000,3000]"], ["sampler.interval=[2000, 3000]", "none of the timesteps", "50 to 999"]),
        (["diffusion=flow", "sampler=euler", "sampler.interval=[10,15]"], ["sampler.interval", "20 to 1000"]),
        # keys by their full names
        (["diffusion=learned", "diffusion.learned_times.uniform=0"], ["diffusion.learned_times.uniform", "above 0"]),
        (
            ["diffusion=learned", "diffusion.learned_times.bins=1001"],
            ["diffusion.learned_times.bins=1001", "diffusion.process.num_timesteps=1000"],
        ),
        (
            ["diffusion.process.schedule=cosine"],
            ["diffusion.process.beta_start=null", "diffusion.process.beta_end=null"],
        ),
        (
            ["diffusion.process.beta_start=null", "diffusion.process.beta_end=5e-5"],
            ["diffusion.process.beta_end", "beta_start=0.0001"],
        ),
        # a flow beside other processes
        (["diffusion=flow"], ["sampler=euler", "sampler=heun", "sweep"]),
        # DiT's schedule where the experiment has another
        (
            ["exp=ldm4_gated", "diffusion=v"],
            ["diffusion=v", "exp=ldm4_gated", "diffusion=ldm", "diffusion.process.beta_start=0.0015"],
        ),
        (["exp=ldm4_gated_finetune", "diffusion=min_snr"], ["diffusion=min_snr", "diffusion.process.beta_end=0.0195"]),
        (["exp=uvit_h_gated", "diffusion=learned"], ["diffusion=learned", "diffusion.process.schedule=scaled_linear"]),
    ],
    ids=lambda v: " ".join(v) if v and "=" in v[0] else None,
)  # fmt: skip
def test_what_a_process_and_its_sampler_must_agree_on(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["diffusion=cosine", "sampler.steps=995"],
        ["diffusion=cosine", "sampler=ddim", "sampler.steps=1000"],
        ["diffusion.process.num_timesteps=100", "diffusion.process.beta_start=1e-3", "diffusion.process.beta_end=0.2"],
        ["diffusion=cosine", "diffusion.process.num_timesteps=50"],
        ["sampler.interval=[10,15]", "sampler.cfg_scale=1"],
        ["backbone.learn_sigma=false"],
        ["exp=ldm4_gated", "diffusion=ddpm", "diffusion.process.prediction=v"],
        ["exp=ldm4_gated", "diffusion=cosine"],
        [
            "exp=ldm4_gated", "diffusion=v", "diffusion.process.schedule=scaled_linear",
            "diffusion.process.beta_start=0.0015", "diffusion.process.beta_end=0.0195",
        ],
        ["exp=dit_xl_gated", "diffusion=v"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_what_they_agree_on_is_let_through(overrides: list[str]) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("experiment", "choice"),
    covering(
        ["digits_gated", "digits_video_gated", "digits_unet_gated", "digits_text_gated"],
        ["ddpm", "ldm", "sd", "v", "x0", "cosine", "min_snr", "learned", "flow"],
        whole=[("digits_gated", ...), (..., "flow")],
    ),
)
def test_every_objective_goes_with_every_experiment_on_the_digits(experiment: str, choice: str) -> None:
    sampler = ["sampler=euler"] if choice == "flow" else []
    check(f"exp={experiment}", f"diffusion={choice}", *sampler)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = extra(tmp_path, "optimizer/fast", "defaults: [adamw]\nlr: 1.0e-3\nbetaz: [0.9, 0.99]\n")
    message = refusal("optimizer=fast", folders=(tmp_path,))
    assert "unknown configuration key optimizer.betaz. Did you mean betas?" in message
    assert str(file) in message


def test_a_wrong_value_names_the_file_that_it_was_inherited_from(tmp_path: Path) -> None:
    base = extra(tmp_path, "optimizer/base", "defaults: [adamw]\nweight_decay: -1\n")
    extra(tmp_path, "optimizer/fast", "defaults: [base]\nlr: 1.0e-3\n")
    message = refusal("optimizer=fast", folders=(tmp_path,))
    assert "optimizer.weight_decay=-1 must be at least 0" in message
    assert str(base) in message
    assert str(config_dir() / "optimizer" / "adamw.yaml") in message
    assert "command line" not in message


@pytest.mark.parametrize(("text", "word"), [("lr: [1\nb: 2\n", "broken.yaml"), ("- 1\n- 2\n", "ListConfig")])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str, word: str) -> None:
    extra(tmp_path, "optimizer/broken", text)
    assert word in refusal("optimizer=broken", folders=(tmp_path,))


def test_a_class_of_another_package_is_checked_as_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its source is read; the module, which would fail, is not imported."""
    (tmp_path / "elsewhere.py").write_text(
        "import a_library_that_is_not_there\n"
        "from typing import Literal\n"
        "class Net(a_library_that_is_not_there.Module):\n"
        "    def __init__(self, width: int, form: Literal['wide', 'deep'] = 'wide', *, residual='gated', rate=0.5):\n"
        "        pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    extra(tmp_path, "backbone/mine", "_target_: elsewhere.Net\nwidth: 3\n")
    own = ["backbone=mine", "~exp", "sampler.cfg_scale=1"]
    backbone = check(*own, folders=(tmp_path,)).backbone
    assert backbone == {"_target_": "elsewhere.Net", "width": 3, "form": "wide", "rate": 0.5}
    assert check(*own, "backbone.form=deep", folders=(tmp_path,)).backbone.form == "deep"
    for typed, word in (
        ("backbone.widht=4", "Did you mean backbone.width?"),
        ("backbone.width=wide", "takes int"),
        ("backbone.form=dep", "Did you mean deep?"),
        ("backbone.residual=skip", "unknown configuration key"),
        ("backbone._target_=elsewhere_.Net", "has to be importable"),
    ):
        assert word in refusal(*own, typed, folders=(tmp_path,))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone.dept=3"], ["unknown configuration key backbone.dept", "Did you mean backbone.depth?", "num_heads"]),
        (["bakbone=dit"], ["unknown configuration key bakbone", "Did you mean backbone?"]),
        (["residual=gate"], ["residual=gate", "Did you mean gated?", "resnet, rezero, sandwich, skip"]),
        (["exp=digit_gated"], ["exp=digit_gated", "Did you mean digits_gated?"]),
        (["metric=null"], ["metric=null", "digits", "~metric leaves it out"]),
        (["data=null"], ["data=null", "coco, digits, digits_text, digits_video, image_folder, imagenet"]),
        (["backbone=3"], ["backbone=3", "dit, dit_b, dit_l, dit_s, dit_xl"]),
        (["trainer={max_steps:3}"], ["trainer={max_steps:3}", "auto, cpu, debug, gpu"]),
        (["residual=gated,skip"], ["residual=gated,skip", "--multirun"]),
        (["backbone.depth"], ["backbone.depth", "key=value"]),
        (["=3"], ["'=3' has no key", "key=value"]),
        (["backbone.depth=[1"], ["cannot read the argument", "quotes"]),
        (["backbone.depth=2", 'seed={"a":{"b":1}}'], ["cannot read the argument 'seed="]),
        (["+optimizer=[[[]]]"], ["+optimizer=[[[]]]", "no such choice", "adamw"]),
        (["pretrained=1"], ["key pretrained holds keys and cannot be 1", "pretrained.path=..."]),
        (["pretrained=null"], ["key pretrained holds keys and cannot be null", "pretrained.path=..."]),
        ([f"logger={'a' * 5000}"], ["logger=aaa", "no such choice", "tensorboard"]),
    ],
    ids=lambda v: v[0] if len(v) == 1 else None,
)
def test_composing_is_refused_by_name(overrides: list[str], words: list[str]) -> None:
    message = refusal(*overrides)
    assert [w for w in words if w not in message] == [], message


def test_a_config_dir_that_is_not_there() -> None:
    assert "--config-dir nowhere: no such folder" in refusal(folders=(Path("nowhere"),))


def test_composing_remembers_choices_and_typed_keys() -> None:
    composed = compose_config("train", ["residual=skip", "backbone.depth=3", "~metric"])
    assert composed.choices["residual"] == "skip"
    assert composed.choices["exp"] == "digits_gated"
    assert "metric" not in composed.choices
    assert composed.cfg.metric is None
    assert {"residual", "backbone.depth"} <= composed.sources.typed
    assert "hydra" not in composed.cfg
    assert [o.key_or_group for o in parse(["a.b=1", "+c=2", "~d"])] == ["a.b", "c", "d"]


@pytest.mark.parametrize(
    ("change", "word"), [({"depth": "x"}, "depth"), ({"depth": -1}, "depth=-1"), ({"x": 1}, "backbone.x")]
)
def test_nodes_are_checked_against_their_class(change: dict[str, Any], word: str) -> None:
    composed = compose_config("train", [])
    composed.cfg.backbone = {**DIT, **change}
    with pytest.raises(ConfigError, match=word):
        validate(composed.cfg)


def test_a_control_goes_with_what_needs_no_gates() -> None:
    assert check("control=folded").control == "folded"
    assert check().control is None
    assert "gamma=0.35 with control=folded: " in refusal("control=folded", "gamma=0.35")
    assert "pass train_only=all" in refusal("control=mlp_widened", "train_only=gates")
    assert "pass pretrained.path=null" in refusal("control=mlp_widened", "pretrained.path=x.pt")
    assert "control=wide" in refusal("control=wide")


@pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("mlflow", "mlflow"), ("aim", "aim")])
def test_a_package_that_is_missing_is_refused_with_what_installs_it(
    logger: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    composed = compose_config("train", [f"logger={logger}"])
    with pytest.raises(ConfigError, match=rf"^logger\.{logger} needs the package {package}: .*pip install .*{logger}"):
        validate(composed.cfg, "train", composed.sources)
