"""Every mistake on the command line ends in one message that says what to type, and in exit code 2."""

from __future__ import annotations

import importlib
import importlib.util
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from neural_rdm.cli import app
from neural_rdm.config import environment
from neural_rdm.config.check import config_dir
from tests.helpers import ROOT

Refuse = Callable[..., str]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refuse:
    """Run the command in an empty folder; it must refuse. Returns what it says after `error: `."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as stop:
            app.main("train", lambda cfg, folder: pytest.fail("the job was started"))
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert "Traceback" not in err
        assert not (tmp_path / "outputs").exists()
        return err.removeprefix("error: ").removesuffix("\n")

    return run


FILES = config_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            "backbone.dept=3",
            ["unknown configuration key backbone.dept", "Did you mean backbone.depth?", "command line"],
        ),
        ("bakbone=dit", ["unknown configuration key bakbone", "Did you mean backbone?", "command line"]),
        ("backbone=dit_xxl", ["backbone=dit_xxl", "Did you mean dit_xl?", "dit, dit_b, dit_l, dit_s, dit_xl"]),
        ("exp=dit_xl_gatd", ["exp=dit_xl_gatd", "Did you mean dit_xl_gated?", str(FILES / "exp")]),
        ("exp=paper/table2_skye", ["exp=paper/table2_skye", "Did you mean paper/table2_sky?", "small/fig6"]),
        ("exp=table2_sky", ["Did you mean paper/table2_sky?", str(FILES / "exp")]),
        ("exp/paper=table2_sky", ["paper is a folder of exp", "pass exp=paper/NAME"]),
        ("metric=null", ["metric=null", "~metric leaves it out"]),
        (
            "backbone.depth=deep",
            ["backbone.depth", "'deep'", "int", "command line", str(FILES / "backbone" / "dit.yaml")],
        ),
        ("backbone.depth=-1", ["backbone.depth=-1", "above 0", "command line"]),
        (
            "backbone.hidden_size=96 backbone.num_heads=5",
            ["backbone.num_heads", "hidden_size=96", "is 4", "command line"],
        ),
        ("data.batch_size=0", ["data.batch_size=0", "above 0", "command line", str(FILES / "data" / "digits.yaml")]),
        ("optimizer.betas=[0.9]", ["optimizer.betas", "[0.9]", "e.g. [0.9,0.999]", "command line"]),
        ("optimizer.betas=[0.9,1.5]", ["optimizer.betas", "[0.9, 1.5]", "two numbers in [0, 1)"]),
        ("residual.rule=gate", ["residual.rule=gate", "Did you mean gated?", str(FILES / "residual" / "gated.yaml")]),
        ("resume=nowhere", ["resume=nowhere", "no such run folder"]),
        ("resume=last", ["resume=last", "no run below", "start one without resume"]),
        ("resume=", ["resume=", "no such run folder"]),
        ("trainer.devices=2", ["trainer.devices=2", "strategy=ddp"]),
        (
            "trainer.devices=3 strategy=ddp data.batch_size=128",
            ["data.batch_size=128", "multiple", "data.batch_size=129"],
        ),
        ("residual=gated,skip", ["python -m neural_rdm.sweep residual=gated,skip", "--multirun"]),
        ("digits_gated", ["'digits_gated'", "key=value", "pass exp=digits_gated"]),
        ("gated", ["pass residual=gated"]),
        ("digit_gatd", ["Did you mean exp=digits_gated?"]),
        (".", ["run=.", "resume=."]),
        ("trainer.max_steps = 10", ["'trainer.max_steps'", "no space stands around the ="]),
        ("trainer.max_steps= 10", ["no space stands around the ="]),
        ("--exp digits_gated", ["no option --exp", "exp=VALUE"]),
        ("--halp", ["no option --halp", "--help lists"]),
        ("backbone.attention=cudnn", ["backbone.attention=cudnn", "of GPUs", "pass backbone.attention=auto"]),
        ("sweep=3.5", ["sweep: 3.5 is not a study", "seeds, base and grids"]),
        ("~exp sweep.grids=[{seed:3}]", ["~exp is a study of up to 1 runs", "neural_rdm.sweep ~exp"]),
        ("tags=draft", ["tags: 'draft' is of the wrong type", "such as [draft]"]),
        ("run=last", ["unknown configuration key run", "resume=last"]),
        ("data.root=/nowhere", ["unknown configuration key data.root. Keys of data: batch_size, num_workers, limit."]),
        ("-m seed=0,1 data.batch_size=0", ["data.batch_size=0"]),
        ("-m residual=gated,skip resume=last", ["resume continues one run", "-m"]),
        ("-m hydra/launcher=joblib", ["hydra/launcher is not used", "launcher=local, joblib"]),
        ("-m jobs=0", ["jobs=0", "above 0"]),
        ("-m launcher=slurm", ["launcher=slurm", "joblib, local, ray, submitit"]),
        (
            "-m launcher=joblib launcher.backend=1 launcher.bakend=x",
            ["launcher.bakend", "Did you mean launcher.backend"],
        ),
        ("-m optimizer.lr=interval(1e-4,1e-2)", ["an interval has no end of values", "sweeper=optuna"]),
        ("optimized_metric=frechet_pixel", ["measures accuracy, frechet_pixels", "Did you mean frechet_pixels?"]),
        ("optimized_metric=accuracy ~metric", ["no report without a metric", "val/loss"]),
        ("optimized_metric=vl/loss", ["begin with train/ and val/", "Did you mean val/loss?"]),
        ("optimized_metric=val/loss trainer.max_steps=9", ["nothing is validated in these steps"]),
        ("--config-dir nowhere", ["--config-dir nowhere", "no such folder"]),
        ("hydra.run.dr=x", ["hydra.run.dr"]),
        ("ckpt_path=x", ["unknown configuration key ckpt_path", "resume=DIR", "pretrained.path=FILE", "run=DIR"]),
        ("lr=1", ["Did you mean optimizer.lr?"]),
        ("trainer.max_epochs=1", ["trainer.max_steps=N"]),
        ("backbone.num_classes=7", ["the data have 10 classes", "pass backbone.num_classes=10"]),
        ("backbone.input_size=16", ["the data are [1, 8, 8]", "pass backbone.input_size=8"]),
        (
            "condition=minilm backbone.num_classes=0 backbone.context_dim=384",
            ["condition needs data with captions", "digits_text"],
        ),
        (
            "data.train={0..9}.tar",
            ["cannot read the argument", "braces", "\"data.train='train-{000000..000099}.tar'\""],
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_mistake_is_one_line_that_names_it(refuse: Refuse, arguments: str, words: list[str]) -> None:
    message = refuse(*arguments.split())
    assert [w for w in words if w not in message] == [], message
    assert "\n" not in message


def test_only_files_that_can_say_a_key_are_named(refuse: Refuse) -> None:
    message = refuse("sampler=euler")
    assert str(FILES / "sampler" / "euler.yaml") in message
    assert "tensorboard.yaml" not in message  # has a `name`, too, as the run has
    assert "train.yaml" not in message


def test_every_setting_of_a_sweep_that_cannot_run_is_told_before_anything_starts(refuse: Refuse) -> None:
    message = refuse("-m", "residual=gated,gate")
    assert message.startswith(
        "1 of the 2 settings of this sweep cannot be run:\n  residual=gate: residual=gate: no such"
    )
    assert "Did you mean gated?" in message
    lines = refuse("-m", "residual=gated,resnet,skip", "gamma=0.35", "backbone.depth=2,-1", "seed=0,1").splitlines()
    assert lines[0] == "4 of the 6 settings of this sweep cannot be run:"
    assert [line.split(": ")[0] for line in lines[1:-1]] == [
        "  residual=gated backbone.depth=-1", "  residual=resnet backbone.depth=2",
        "  residual=resnet backbone.depth=-1", "  residual=skip backbone.depth=-1",
    ]  # fmt: skip
    assert "gamma=0.35 with residual=resnet" in lines[2]
    assert "sweep.grids" in lines[-1]


def test_an_experiment_that_is_a_study_is_swept_and_not_trained(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine" / "exp").mkdir(parents=True)
    study = "sweep:\n  seeds: 3\n  grids:\n  - residual: [gated, skip]\n  - {residual: gated, gamma: [0, 0.35]}\n"
    study += "backbone: {input_size: 8, in_channels: 1, num_classes: 10}\n"
    (tmp_path / "mine" / "exp" / "own.yaml").write_text(f"# @package _global_\n{study}", encoding="utf-8")
    given = ("--config-dir", str(tmp_path / "mine"), "exp=own")
    message = refuse(*given)
    assert "exp=own is a study of up to 12 runs" in message
    assert "python -m neural_rdm.sweep exp=own" in message
    assert "seed=-1" in refuse("-m", *given, "seed=0,-1")
    assert "unknown configuration key sweep.sed. Did you mean seeds" in refuse("-m", *given, "sweep.sed=1")
    assert "unknown configuration key backbone.dept" in refuse(*given, "sweep=null", "backbone.dept=1")


def test_a_missing_data_folder_draws_the_layout(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("exp=dit_s_gated", f"data.root={tmp_path}/imagenet")
    assert message.splitlines()[0] == f"data.root: no folder {tmp_path}/imagenet."
    assert "train/<wnid>/" in message
    assert "data.root=/path/to/imagenet" in message
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    assert "no class folders" in refuse("exp=dit_s_gated", f"data.root={tmp_path}/imagenet")


def test_every_data_set_draws_its_layout_and_says_where_it_is_to_be_had(refuse: Refuse, tmp_path: Path) -> None:
    message = refuse("exp=latte_s_gated", f"data.root={tmp_path}/sky")
    assert message.startswith(f"data.root: no folder {tmp_path}/sky.")
    for words in ("ROOT/sky_train/<video>/<clip>/*.jpg", "SkyTimelapse comes from https://github.com/"):
        assert words in message
    assert "see `Clips`" not in message


def test_an_unknown_key_inside_a_file_names_the_file(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    file = tmp_path / "mine" / "optimizer" / "fast.yaml"
    file.write_text("defaults: [adamw]\nlr: 1.0e-3\nwarmup: 10\n", encoding="utf-8")
    message = refuse("--config-dir", str(tmp_path / "mine"), "optimizer=fast")
    assert message.startswith("unknown configuration key optimizer.warmup. Did you mean warmup_steps?")
    assert str(file) in message
    assert "Did you mean fast?" in refuse("--config-dir", str(tmp_path / "mine"), "optimizer=fasst")


def test_resuming_with_another_trajectory_names_both_values(refuse: Refuse, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from neural_rdm.config.compose import compose_config

    composed = compose_config("train", ["seed=5"])
    OmegaConf.resolve(composed.cfg)
    composed.cfg.choices = composed.choices
    run = tmp_path / "it's a run"
    run.mkdir()
    (run / "config.yaml").write_text(OmegaConf.to_yaml(composed.cfg), encoding="utf-8")
    message = refuse(f'resume="{run}"', "seed=6")
    assert [w for w in ("seed=6 would change", "seed=5", str(run / "config.yaml")) if w not in message] == []
    message = refuse(f'resume="{run}"', "trainer.devices=0")
    assert "trainer.devices=0 must be above 0" in message
    (run / "config.yaml").write_text("seed: [1\n", encoding="utf-8")
    assert "cannot be read" in refuse(f'resume="{run}"')


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "neural_rdm.train", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def imported(result: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}


def said(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(line for line in result.stderr.splitlines() if not line.startswith("import time:"))


def test_the_real_command_refuses_before_torch_is_loaded(tmp_path: Path) -> None:
    result = command(tmp_path, "backbone.dept=3")
    assert result.returncode == 2
    assert re.fullmatch(
        r"error: unknown configuration key backbone\.dept\. Did you mean backbone\.depth\?.*", said(result)
    )
    assert {"neural_rdm", "hydra"} <= imported(result)
    assert imported(result) & {"torch", "lightning", "timm", "diffusers"} == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sampler=dpm sampler.eta=0.5", ["sampler.eta=0.5", "sampler=ddim"]),
        ("exp=digits_unet_gated residual.time_conditioned=true", ["residual.time_conditioned", "UNet"]),
        (
            "metric=images metric.reference=a metric.frame_features=inception metric.frame_reference=b",
            ["metric.frame_features=inception", "frames of clips"],
        ),
    ],
)
def test_what_a_constructor_would_refuse_is_refused_before_torch_is_loaded(
    tmp_path: Path, arguments: str, words: list[str]
) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = command(tmp_path, *arguments.split())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.returncode == 2
    assert [w for w in words if w not in said(result)] == [], said(result)
    assert imported(result) & {"torch", "lightning", "timm", "diffusers"} == set()
    assert after.ru_utime - before.ru_utime < 5  # about 1.5 s on a core of its own; torch alone takes longer than 5


def test_an_experiment_of_another_network_is_named(refuse: Refuse) -> None:
    message = refuse("backbone=uvit")
    assert "exp=digits_gated is of another network than backbone=uvit" in message
    assert "exp=uvit_h_gated or exp=uvit_s_gated_coco" in message


@pytest.mark.parametrize("name", ["preview", "prepare", "stats", "encode"])
def test_folders_of_configurations_are_read_by_commands_that_look_at_data(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for group, text in (
        (
            "data",
            "defaults: [synthetic]\nshape: [3, 8, 8]\nnum_classes: 7\n" if name != "encode" else "defaults: [coco]\n",
        ),
        ("exp", "# @package _global_\ndefaults: [dit_xl_gated_t2i, _self_, {override /data: mine}]\n"),
    ):
        (tmp_path / group).mkdir()
        (tmp_path / group / "mine.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "images").mkdir()
    choice = ["data=mine"] if name != "encode" else ["exp=mine", f"data.root={tmp_path / 'images'}"]
    monkeypatch.setattr(sys, "argv", [name, "--config-dir", str(tmp_path), *choice])
    module, seen = importlib.import_module(f"neural_rdm.{name}"), []
    hook = {"encode": getattr(module, "complete", None), "stats": getattr(module, "complete", None)}.get(name)
    monkeypatch.setattr(app, "check_layout", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        app.main(name, lambda cfg, folder: seen.append(cfg) or 0, hook)
    assert stop.value.code == 0
    assert seen[0].data.get("num_classes") == (None if name == "encode" else 7)


def test_help_lists_the_groups_and_the_keys(tmp_path: Path) -> None:
    result = command(tmp_path, "--help")
    assert (result.returncode, said(result)) == (0, "")
    for word in (
        "python -m neural_rdm.train exp=digits_gated",
        "residual: adaln, block_attnres, dar, delta, denseformer, gated, hc, ihc, layerscale, mvsplit, resnet, ",
        "batch_size:",
    ):
        assert word in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_job_prints_the_composed_configuration(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    result = command(tmp_path, "--cfg", "job", "residual=skip", "backbone.depth=3")
    assert (result.returncode, said(result)) == (0, "")
    cfg = OmegaConf.create(result.stdout)
    assert (cfg.residual.rule, cfg.backbone.depth) == ("skip", 3)
    assert list(tmp_path.iterdir()) == []


def test_the_configuration_travels_with_the_package() -> None:
    """The checkout's folder, or the copy inside an installed package."""
    assert config_dir() in (ROOT / "configs", ROOT / "src" / "neural_rdm" / "configs")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["residual=rezero", "backbone.adaln_gate_init=0"], ("adaln_gate_init", "null")),
        (["residual=delta", "backbone.long_skip=0.5"], ("long_skip=0.5 with residual=delta", "long_skip=null")),
        (["sampler.interval=[500,100]"], ("sampler.interval", "[200, 700]")),
        (["sampler.channels=foo"], ("sampler.channels", "all")),
        (["diffusion.process.beta_start=0.5"], ("beta_start", "beta_end")),
        (["diffusion=cosine", "diffusion.process.beta_end=0.5"], ("beta_end", "null")),
        (["diffusion=flow"], ("sampler.name=dpm++", "sampler=euler")),
        (["sampler=heun"], ("sampler.name=heun", "sampler=ddim")),
        (["strategy=hsdp", "trainer.devices=2"], ("strategy.replicas=N", "strategy=fsdp2")),
        (
            ["strategy=hsdp", "trainer.devices=4", "strategy.replicas=3", "data.batch_size=64"],
            ("3 replica", "4 device"),
        ),
        (["diffusion=learned", "strategy=fsdp2", "trainer.devices=2"], ("learned_times", "strategy=ddp")),
        (
            ["gamma=0.35", "supervision=exact", "trainer.accumulate_grad_batches=2"],
            ("accumulate_grad_batches=1", "local"),
        ),
        (["gamma=0.35", "target=ceiling"], ("target", "isometry")),
        (["optimizer.lr=inf"], ("optimizer.lr", "finite")),
        (["seed=99999999999999999999"], ("seed", "between")),
        (["exp=dit_s_gated", "data=synthetic", "backbone.in_channels=3"], ("first_stage.channels", "in_channels=4")),
        (["--config-name=other"], ("--config-dir",)),
        (["logger=null"], ("logger", "~logger")),
    ],
)
def test_values_that_cannot_work_together(
    overrides: list[str], names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *overrides])
    with pytest.raises(SystemExit) as stopped:
        app.main("train", lambda cfg, folder: 0)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert all(name in message for name in names), message


def test_ranks_started_from_outside_need_one_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("sys.argv", ["train"])
    with pytest.raises(SystemExit) as stopped:
        app.main("train", lambda cfg, folder: 0)
    assert stopped.value.code == 2
    assert "hydra.run.dir=DIR" in capsys.readouterr().err


def test_another_number_of_classes_says_what_to_type(refuse: Refuse, tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "x.png").touch()
    for exp, typed in (
        ("dit_s_gated", "backbone.num_classes=2 data.num_classes=2"),
        ("uvit_h_gated", "backbone.num_classes=3 data.num_classes=2"),
        ("ldm4_gated", "backbone.num_context_classes=2 data.num_classes=2"),
    ):
        first = refuse(f"exp={exp}", f"data.root={tmp_path}").splitlines()[0]
        assert f"2 class folders in {tmp_path}/train" in first
        assert f"For these folders pass {typed}." in first


def test_what_is_not_installed_or_not_there_is_refused_without_torch(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = importlib.util.find_spec
    absent = {"wandb", "deepspeed", "transformers"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in absent else real(name, *a))
    assert "logger.wandb needs the package wandb" in (message := refuse("logger=wandb"))
    assert "[wandb]" in message
    assert "logger.wandb needs" in refuse("-m", "logger=wandb", "seed=0,1")
    assert "strategy needs the package deepspeed" in refuse("strategy=deepspeed_zero2")
    text = "exp=digits_text_gated"
    assert "condition needs the package transformers" in refuse(text)
    monkeypatch.setattr(environment, "_no_gpu", lambda: "there is none")
    assert "trainer.accelerator=gpu: there is none; pass trainer=cpu" in refuse("trainer=gpu")


def test_a_gpu_is_refused_only_where_there_is_certainly_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def reason(device: str, version: str, platform: str = "linux") -> str:
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / "dev" / device).touch()
        (tmp_path / "version.py").write_text(version, encoding="utf-8")
        monkeypatch.setattr(environment.sys, "platform", platform)
        monkeypatch.setattr(environment, "Path", lambda p: tmp_path / "dev" if p == "/dev" else Path(p))
        spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
        monkeypatch.setattr(environment.reader, "spec", lambda name: spec)
        said = environment._no_gpu()
        (tmp_path / "dev" / device).unlink()
        return said

    cpu, cuda = "cuda: Optional[str] = None\nhip: Optional[str] = None\n", "cuda: Optional[str] = '12.6'\nhip = None\n"
    assert reason("null", cuda) == "this machine has no GPU that torch can use"
    assert "is built for the CPU alone" in reason("nvidiactl", cpu)
    assert reason("nvidiactl", cuda) == ""
    assert reason("null", cpu, "darwin") == ""
