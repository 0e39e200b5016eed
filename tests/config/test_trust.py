"""What a stranger's configuration can build: classes of this project and of a short list, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from neural_rdm import load_run
from neural_rdm.cli.app import Arguments
from neural_rdm.config import trust
from neural_rdm.config.check import as_plain
from neural_rdm.config.compose import compose_config
from neural_rdm.config.provenance import write_config
from neural_rdm.config.resume import find_run, lasting, make_absolute
from neural_rdm.core.errors import ConfigError
from neural_rdm.reports.runs import read_mapping
from neural_rdm.runs import build
from neural_rdm.runs.load import inherit, read_config

EVIL = "evil_package.Thing"
FEATURES = "neural_rdm.evaluation.features"


@pytest.fixture(autouse=True)
def nobody_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_own", set())
    monkeypatch.setenv(trust.VARIABLE, "")


def stranger(folder: Path, **changes: Any) -> Path:
    """A run folder whose configuration says what a run's would, but for the changes, under its own hash."""
    cfg = compose_config("train", ["exp=digits_gated", "trainer.max_steps=2"]).cfg
    trust._own.clear()  # it was composed here for somebody else
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"nothing")
    if not OmegaConf.to_yaml(cfg).count("${oc"):
        OmegaConf.resolve(cfg)
    write_config(folder, lasting(cfg))
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sampler", {"_target_": EVIL}),
        ("sampler", {"_target_": "os.system", "command": "true"}),
        ("sampler", {"_target_": "builtins.exec"}),
        ("data__note", [{"deep": {"_target_": EVIL}}]),
        ("residual__rule", EVIL),
        ("callbacks__mine", {"_target_": "torch.hub.load", "repo_or_dir": "x"}),
        # it would fetch what it is told to, and run what it fetched
        ("callbacks__mine", {"_target_": "diffusers.ModularPipeline", "pretrained_model_name_or_path": "x/y"}),
        # a program (torch.jit) under a hash that the folder says itself
        ("metric", {"_target_": f"{FEATURES}.FeatureReport", "features": "i3d", "features_sha256": "0" * 64}),
        ("metric__deep", [{"_target_": "neural_rdm.metrics.networks.I3D", "path": "i3d.pt", "sha256": "0" * 64}]),
        ("callbacks__mine", {"_target_": "torch.nn.modules.module.warnings.sys.exit"}),
        ("callbacks__mine", {"_target_": "lightning.pytorch.loggers.csv_logs.os.system"}),
    ],
)
def test_a_run_folder_builds_nothing_that_is_not_known_to_be_good(tmp_path: Path, key: str, value: Any) -> None:
    folder = stranger(tmp_path / "run", **{key: value})
    for read in (read_config, load_run, lambda path: find_run(str(path))):
        with pytest.raises(ConfigError, match=r"is no class of this project.*type trust=\["):
            read(folder)


@pytest.mark.parametrize("name", ["neural_rdm.core.files.os.system", "neural_rdm.core.files.write_text"])
def test_a_name_of_this_project_is_that_of_one_of_its_classes(name: str) -> None:
    with pytest.raises(ConfigError, match="is no class of this project"):
        build.build(OmegaConf.create({"_target_": name}), "sampler")


def test_nothing_is_built_from_a_mapping_that_a_report_has_read(tmp_path: Path) -> None:
    config = read_mapping(stranger(tmp_path / "run", backbone={"_target_": "os.system"}) / "config.yaml")
    with pytest.raises(ConfigError, match=r"os\.system"):
        build.network(OmegaConf.create(dict(config)))


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "\\\\${oc.env:HOME}", "a\\\\\\\\${seed}"])
def test_an_interpolation_of_a_stranger_reads_no_environment(tmp_path: Path, text: str) -> None:
    folder = stranger(tmp_path / "run")
    path = folder / "config.yaml"
    cfg = OmegaConf.load(path)
    cfg.data.note = text
    write_config(folder, cfg)
    with pytest.raises(ConfigError, match="holds an interpolation"):
        read_config(folder)


def test_a_text_that_looks_like_an_interpolation_is_none_in_any_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    folder = stranger(tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.notes, cfg.choices = r"\${oc.env:SECRET}", {"exp": r"\${oc.env:SECRET}"}
    write_config(folder, cfg)
    assert read_config(folder).notes == "${oc.env:SECRET}"
    cfg = compose_config("sample", inherit([f"run={folder}"], groups=("sampler",), keys=("notes",))).cfg
    assert cfg.notes == "${oc.env:SECRET}"
    assert cfg.experiment == "_{oc.env:SECRET}"  # it is part of hydra.run.dir, which Hydra reads once more


@pytest.mark.parametrize(
    ("group", "choice"),
    [
        ("+hydra.job_logging.handlers.x.class", "logging.FileHandler"),
        ("hydra.run.dir", "elsewhere"),
        ("hydra/job_logging", "default"),
        ("callbacks", "../../../../tmp/evil"),
        ("callbacks", "/tmp/evil"),
        ("callbacks", ["default"]),
        ("sampler=ddim steps", "1"),
    ],
)
def test_the_choices_of_a_stranger_are_names_of_files_of_groups(tmp_path: Path, group: str, choice: Any) -> None:
    folder = stranger(tmp_path / "run")
    cfg = OmegaConf.load(folder / "config.yaml")
    cfg.choices = {group: choice}
    write_config(folder, cfg)
    for read in (read_config, lambda path: find_run(str(path))):
        with pytest.raises(ConfigError, match="holds a choice that is no name"):
            read(folder)


def test_what_the_user_composes_names_or_keeps_in_a_folder_is_the_users(tmp_path: Path) -> None:
    config = OmegaConf.create({"sampler": {"_target_": EVIL}})
    with pytest.raises(ConfigError, match="evil_package"):
        trust.check_trusted(config, "x")
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text(f"_target_: {EVIL}\n")
    (tmp_path / "broken.yaml").write_text("a: [")
    trust.own_folder(tmp_path)
    trust.check_trusted(config, "x")
    trust._own.clear()
    trust.trust(["evil_package"])
    trust.check_trusted(config, "x")
    with pytest.raises(ConfigError, match="names of packages"):
        trust.trust(["os.path"])


def test_other_weights_of_ones_own_need_no_word(tmp_path: Path) -> None:
    node = {"features": "c3d", "features_sha256": "0" * 64}
    trust.check_trusted(node, "x")  # tensors alone
    node["features"] = "i3d"
    with pytest.raises(ConfigError, match=r"type trust=\[torchscript\]"):
        trust.check_trusted(node, "x")
    trust.own(node)  # typed
    trust.check_trusted(node, "x")


def test_all_that_this_project_composes_is_known_to_be_good() -> None:
    for overrides in (["exp=digits_gated"], ["exp=digits_text_gated"], ["exp=latte_s_gated", "logger=wandb"]):
        trust.check_trusted(compose_config("train", overrides).cfg.copy(), "x")
        trust._own.clear()


def test_the_word_is_typed_and_never_read(tmp_path: Path) -> None:
    folder = stranger(tmp_path / "run", sampler={"_target_": "os.system", "command": "touch done"}, trust=["os"])
    line = [sys.executable, "-m", "neural_rdm.sample", f"run={folder}"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "type trust=[os]" in done.stderr
    assert not (tmp_path / "done").exists()


def test_every_command_line_is_believed_where_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"_target_: {EVIL}\n")
    read = Arguments.parse(["-m", "--config-dir", str(tmp_path), "residual=gated,skip", "trust=[mixer]"])
    assert read.overrides == ["residual=gated,skip"]
    for known in (EVIL, "mixer.Mixer"):
        trust.check_trusted(OmegaConf.create({"_target_": known}), "x")
    with pytest.raises(ConfigError, match=r"other\.Thing"):
        trust.check_trusted(OmegaConf.create({"_target_": "other.Thing"}), "x")


TEXTS = (r"\${oc.env:HOME}", r"a \${seed} 'b'", r"\\\${oc.env:HOME}", r"\\", "x")


@pytest.mark.parametrize("text", TEXTS)
def test_text_that_looks_like_an_interpolation_is_never_read_as_one(text: str, tmp_path: Path) -> None:
    cfg = OmegaConf.create({"data": {"root": text, "sources": [text]}, "other": "${data.root}", "seed": 1})
    said = cfg.data.root
    for _ in range(3):
        trust.resolve(cfg)
    assert as_plain(cfg) == {"data": {"root": said, "sources": [said]}, "other": said, "seed": 1}
    assert OmegaConf.create(OmegaConf.to_yaml(cfg)) == cfg
    make_absolute(cfg)
    assert cfg.data.root == str(Path.cwd() / said)


@pytest.mark.parametrize("text", TEXTS)
def test_a_class_is_built_with_the_text_that_a_configuration_holds(text: str) -> None:
    node = OmegaConf.create({"_target_": "torch.nn.Softmax", "dim": text})
    assert build.build(node, "backbone").dim == node.dim
