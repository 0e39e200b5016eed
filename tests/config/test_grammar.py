"""Text that looks like a number stays the text that was typed, wherever the schema wants text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from neural_rdm.cli import app
from neural_rdm.config.check import config_dir, validate
from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.grammar import as_typed, literal, written
from neural_rdm.config.schema import signatures_of, text_of
from neural_rdm.core.errors import ConfigError

LIKE_NUMBERS = ["2024_01_15", "1e5", "1.10", "007", "0x10", "+5", "-1_0", "inf", "nan", "True", "on", "no", "12:30:45"]


@pytest.mark.parametrize("text", [*LIKE_NUMBERS, "2024-01-15"])
def test_a_folder_is_named_as_typed(text: str, tmp_path: Path) -> None:
    for override in (f"data.root={text}", f"++data.root={text}", f"data.root= {text} "):
        cfg = compose_config("train", ["exp=dit_s_gated", override]).cfg
        assert cfg.data.root == text
        file = tmp_path / "config.yaml"
        file.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
        assert OmegaConf.load(file).data.root == text  # what a resume reads


@pytest.mark.parametrize(
    ("command", "override", "same"),
    [
        ("train", "data.root=1_0,2e3", "data.root='1_0','2e3'"),
        ("train", "data.root=choice(1_0, 2)", "data.root=choice('1_0', '2')"),
        ("train", "pretrained.reinit=[1_000, 2e3,null]", "pretrained.reinit=['1_000', '2e3','null']"),
        ("train", "++pretrained={path:123,reinit:[true]}", "++pretrained={path:'123',reinit:['true']}"),
        ("train", "pretrained.path=123", "pretrained.path='123'"),
        ("train", "resume=2024_01_15", "resume='2024_01_15'"),
        ("train", "hydra.run.dir=2024_01_15", "hydra.run.dir='2024_01_15'"),
        ("train", "hydra.sweep.subdir=1_0", "hydra.sweep.subdir='1_0'"),
        ("train", "exp=007_1,1e5", "exp=007_1,'1e5'"),
        ("train", "diffusion.process.schedule=1", "diffusion.process.schedule='1'"),
        ("train", "metric.clip=123", "metric.clip='123'"),
        ("train", "condition.path=1e5", "condition.path='1e5'"),
        ("sample", "prompts=[1_000,2e3]", "prompts=['1_000','2e3']"),
        ("sample", "run=123", "run='123'"),
        ("evaluate", "samples=1_0", "samples='1_0'"),
        ("report", "runs=out/[01]*,2_0", "runs='out/[01]*,2_0'"),
        ("report", "runs=it's", r"runs='it\'s'"),
    ],
)
def test_text_gets_quotes(command: str, override: str, same: str) -> None:
    assert as_typed([override], command) == [same]
    assert as_typed([same], command) == [same]


@pytest.mark.parametrize(
    ("command", "override"),
    [
        ("train", "seed=1_0"),
        ("train", "optimizer.betas=[0.9,0.95]"),
        ("train", "pretrained.path=null"),  # it may be null, and that is no folder
        ("train", "metric=null"),
        ("train", "optimizer.clip=1.0"),
        ("train", "~metric"),
        ("train", "data.root=range(1,3)"),
        ("train", "data.root='1_0'"),
        ("train", "data.split=1"),  # a number for UCF-101
        ("sample", "classes=[1,2]"),
        ("lens", "samples=10"),  # a number here, a file in `evaluate`
        ("report", "runs=null"),
        ("train", "data.root=a=b"),  # nothing that the grammar reads
    ],
)
def test_everything_else_stays_as_it_is(command: str, override: str) -> None:
    assert as_typed([override], command) == [override]


@pytest.mark.parametrize("group", sorted({path.parent.name for path in config_dir().glob("*/*.yaml")} - {"logger"}))
def test_no_name_of_a_group_is_text_in_one_class_and_a_number_in_another(group: str) -> None:
    """A typed key is looked up before it is known which class its node will be of."""
    known = signatures_of(group, (config_dir(),))
    assert known or group in ("exp", "study", "trainer")
    for name in {name for signature in known for name in signature.arguments}:
        kinds = [signature.arguments[name].kind for signature in known if name in signature.arguments]
        assert len({text_of(kind) is None for kind in kinds}) == 1, name


def test_hydra_runs_with_what_the_check_has_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("123").touch()
    seen, made = [], 0
    load = ConfigLoaderImpl._load_configuration_impl

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1
        return load(*args, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "_load_configuration_impl", counted)
    line = ["train", "hydra.run.dir=2024_01_15", "pretrained.path=123", "pretrained.reinit=[1_0]"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(SystemExit):
        app.main("train", lambda cfg, folder: seen.append((cfg, folder)) or 0)
    ((cfg, folder),) = seen
    assert folder.name == "2024_01_15"
    assert (cfg.pretrained.path, list(cfg.pretrained.reinit)) == (str(tmp_path / "123"), ["1_0"])
    assert made == 1
    monkeypatch.setattr("sys.argv", ["train", "resume=2024_01_15"])
    with pytest.raises(SystemExit):
        app.main("train", lambda cfg, folder: seen.append((cfg, folder)) or 0)
    assert seen[1][1].resolve() == (tmp_path / "2024_01_15").resolve()
    assert seen[1][0].pretrained.path == str(tmp_path / "123")


@pytest.mark.parametrize("line", ["root: 2024_01_15", "root: on", "root: 1.10", "root: 12:30:45"])
def test_a_file_whose_text_is_lost_is_refused_with_what_to_write(line: str, tmp_path: Path) -> None:
    """YAML has read a number already: which text it was nobody can tell."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "mine.yaml"
    file.write_text(f"defaults: [image_folder]\n{line}\n", encoding="utf-8")
    composed = compose_config("train", ["exp=dit_s_gated", "data=mine"], [str(tmp_path)])
    with pytest.raises(ConfigError, match=r'data\.root: .* quotes .*root: "\.\.\."') as refusal:
        validate(composed.cfg, "train", composed.sources)
    assert str(file) in str(refusal.value)
    file.write_text('defaults: [image_folder]\nroot: "2024_01_15"\n', encoding="utf-8")
    composed = compose_config("train", ["exp=dit_s_gated", "data=mine"], [str(tmp_path)])
    validate(composed.cfg, "train", composed.sources)
    assert composed.cfg.data.root == "2024_01_15"


@pytest.mark.parametrize("name", ["my, configs", "a=b", "it's [x]", "~x", "ü\\"])
def test_a_folder_of_configurations_may_have_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name / "exp").mkdir(parents=True)
    (tmp_path / name / "exp" / "1e5.yaml").write_text("# @package _global_\nseed: 7\n", encoding="utf-8")
    assert compose_config("train", ["exp=1e5"], [str(tmp_path / name)]).cfg.seed == 7


@given(st.recursive(st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans() | st.none(), st.lists))
def test_every_value_is_read_back(value: object) -> None:
    (override,) = parse([f"key={written(value)}"])
    assert override.value() == value


@given(st.lists(st.sampled_from(["\\", "${", "}", "'", '"', "oc.env:HOME", "a", " ", ","]), max_size=8).map("".join))
def test_a_text_that_nobody_typed_refers_to_nothing(text: str) -> None:
    (override,) = parse([f"key={literal(text)}"])
    assert OmegaConf.create({"key": str(override.value())}).key == text
