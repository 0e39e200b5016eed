"""Whose folder it is: one job at a time, and never over what another command has made."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neural_rdm.config.primary import COMMANDS
from neural_rdm.config.provenance import read_provenance, write_config, write_provenance
from neural_rdm.core.errors import CheckpointError, ConfigError, DataError
from neural_rdm.core.locks import held
from neural_rdm.runs.folders import made_by, opened

CFG = OmegaConf.create({"seed": 1})


def made(folder: Path, command: str) -> Path:
    folder.mkdir(parents=True)
    with opened(folder, command, CFG):
        (folder / "result").write_text(command)
        if command in ("train", "deepen"):
            write_config(folder, CFG)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_no_command_writes_over_what_another_has_made(tmp_path: Path, command: str) -> None:
    for maker in sorted(COMMANDS):
        folder = made(tmp_path / maker, maker)
        assert made_by(folder) == maker
        before = content(folder)
        if command == maker and command in ("sample", "encode", "stats"):
            with opened(folder, command, CFG):
                pass
        else:
            with pytest.raises(ConfigError, match=r"holds .*hydra\.run\.dir"), opened(folder, command, CFG):
                raise AssertionError("it was opened")
        assert content(folder) == before


def test_statistics_go_on_for_the_same_command_alone(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", "stats")
    with pytest.raises(ConfigError, match="nothing is written over it"), opened(folder, "stats", OmegaConf.create({})):
        raise AssertionError("it was opened")


@pytest.mark.parametrize("trace", ["config.yaml", "checkpoints/last.ckpt", "request.json", "report/metrics.json"])
def test_a_folder_that_does_not_say_whose_it_is_is_known_by_what_it_holds(tmp_path: Path, trace: str) -> None:
    (tmp_path / "a" / trace).parent.mkdir(parents=True)
    (tmp_path / "a" / trace).touch()
    with pytest.raises(ConfigError, match="holds"), opened(tmp_path / "a", "lens", CFG):
        raise AssertionError("it was opened")
    assert list(content(tmp_path / "a")) == [trace]


def test_a_part_of_a_run_is_no_folder_for_others_but_a_new_one_in_it_is(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "train")
    (run / "samples").mkdir()
    (run / "samples" / "final.png").touch()
    refusal = pytest.raises(ConfigError, match=r"is a part of .*run, which train has made")
    with refusal, opened(run / "samples", "sample", CFG):
        raise AssertionError("it was opened")
    made(run / "evaluations" / "first", "evaluate")


def test_files_of_the_user_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "slurm-17.out").touch()
    with opened(tmp_path, "train", CFG):
        pass
    assert read_provenance(tmp_path)["command"] == "train"


def test_where_nothing_came_of_it_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError), opened(tmp_path / "a", "train", CFG):  # noqa: PT012 (the first may not raise)
        write_config(tmp_path / "a", CFG)
        raise DataError("no data")
    assert not (tmp_path / "a").exists()
    run = made(tmp_path / "run", "train")
    (run / "result").unlink()
    with pytest.raises(DataError), opened(run, "train", CFG, resumes=True):
        raise DataError("no data today")
    assert (run / "config.yaml").is_file()  # a run that was begun stays


def test_what_was_killed_is_swept_and_who_lives_is_not_disturbed(tmp_path: Path) -> None:
    run = made(tmp_path / "run", "train")
    left = run / "checkpoints" / ".last.ckpt.7.tmp"
    left.parent.mkdir()
    left.touch()
    refusal = pytest.raises(ConfigError, match="in use by process")
    with held(run, "train"), refusal, opened(run, "train", CFG, resumes=True):
        raise AssertionError("it was opened")
    assert left.exists()
    with opened(run, "train", CFG, resumes=True):
        assert not left.exists()


def test_a_folder_of_a_stranger_leads_nowhere_else(tmp_path: Path) -> None:
    run, home = made(tmp_path / "run", "train"), tmp_path / "home"
    home.mkdir()
    (run / "checkpoints").symlink_to(home)  # how checkpoints are kept on another disk
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    with opened(run, "train", CFG, resumes=True):
        pass
    for name in ("samples", "wandb/media"):
        (run / name).symlink_to(home)
        refusal = pytest.raises(ConfigError, match=f"{name} is a link to .*home, out of its folder")
        with refusal, opened(run, "train", CFG, resumes=True):
            raise AssertionError("it was opened")
        (run / name).unlink()


def test_what_was_killed_is_swept_where_the_command_is_sent_elsewhere(tmp_path: Path) -> None:
    """Found by `benchmarks soak`: a report that was killed is not gone on with, and its temporary file stayed."""
    folder = made(tmp_path / "a", "report")
    before = content(folder)
    (folder / ".comparison.png.123.tmp").touch()
    with pytest.raises(ConfigError, match="choose another"), opened(folder, "report", CFG):
        raise AssertionError("it was opened")
    assert content(folder) == before


@pytest.mark.parametrize("cut", [".config.yaml.4242.tmp", ".provenance.json.4242.tmp"])
def test_killed_while_it_wrote_its_configuration_the_same_command_begins_again(tmp_path: Path, cut: str) -> None:
    """Found by `benchmarks soak`: it was told to be gone on with, and there was nothing to go on with."""
    folder = tmp_path / "run"
    folder.mkdir()
    write_provenance(folder, command="train", seed=1)
    for name in (cut, "output.log"):
        (folder / name).write_text("half of it")
    with opened(folder, "train", CFG):
        assert not (folder / cut).exists()
        (folder / "result").touch()


def test_an_evaluation_is_not_gone_on_with_as_a_run(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", "evaluate")
    (folder / "config.yaml").write_text("seed: 1\n")
    refusal = pytest.raises(CheckpointError, match="an evaluation has a configuration too")
    with refusal, opened(folder, "train", CFG, resumes=True):
        raise AssertionError("it was opened")


def test_the_processes_of_one_job_share_a_folder_and_another_job_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "1")
    with opened(tmp_path, "sample", CFG):
        (tmp_path / "sampling.json").touch()
        monkeypatch.setenv("RANK", "1")
        with opened(tmp_path, "sample", CFG):
            pass
        monkeypatch.setenv("MASTER_PORT", "2")
        refusal = pytest.raises(ConfigError, match="in use by process")
        with refusal, opened(tmp_path, "sample", CFG):
            raise AssertionError("it was opened")
    refusal = pytest.raises(ConfigError, match="holds what sample has made")
    with refusal, opened(tmp_path, "encode", CFG):  # of another command it is not even the second process
        raise AssertionError("it was opened")


def test_a_run_keeps_what_it_prints_and_a_refused_one_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "train" / "exp" / "now"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError), opened(folder, "train", CFG):
        raise ConfigError("refused")
    assert not folder.exists()
    folder.mkdir()
    with opened(folder, "train", CFG):
        write_config(folder, CFG)
        print("hello")
    log = (folder / "output.log").read_text()
    assert "hello\n" in log
    assert read_provenance(folder)["seed"] == 1
    assert "now" in (tmp_path / "outputs" / "index.html").read_text()
    before = content(folder)
    with pytest.raises(ConfigError), opened(folder, "train", CFG, resumes=True):
        raise ConfigError("refused")
    assert content(folder) == before

    def train_and_fail() -> None:
        with opened(folder, "train", CFG, resumes=True):
            (folder / "metrics.csv").write_text("step\n1\n")
            raise ConfigError("not finite any more")

    with pytest.raises(ConfigError):
        train_and_fail()
    assert "error: not finite any more" in (folder / "output.log").read_text()
    assert "not finite any more" in (tmp_path / "outputs" / "index.html").read_text()
