"""`python -m neural_rdm.report`: which runs it finds, and what it writes about them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import as_typed
from neural_rdm.core.errors import CheckpointError, ConfigError, DataError
from neural_rdm.report import complete, select_runs
from neural_rdm.reports.comparison import write_comparison
from neural_rdm.reports.study import study
from neural_rdm.reports.tables import write_metrics
from neural_rdm.runs.load import read_config
from tests.test_sample import command, refused_without_torch


def make_run(folder: Path, rule: str = "gated", accuracy: float = 0.5) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"choices: {{exp: digits_gated}}\nresidual: {{rule: {rule}, granularity: channel}}\nbackbone: {{depth: 2}}\n"
        "trainer: {max_steps: 4}\nseed: 0\n"
    )
    (folder / "metrics.csv").write_text("step,train/loss\n2,1.0\n4,0.5\n")
    (folder / "finished.json").write_text('{"global_step": 4}')
    write_metrics(folder / "report", [{"name": "generated", "accuracy": accuracy}], "how")
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return [make_run(Path("sweep") / str(n)) for n in (0, 1, 2, 10)]


def test_runs_are_found_however_they_are_named(runs):
    assert select_runs("sweep") == runs
    assert select_runs("sweep/*") == runs
    assert select_runs("sweep/[12]*") == [runs[1], runs[2], runs[3]]
    assert select_runs("sweep/2") == [runs[2]]
    assert select_runs(" sweep/2 , sweep/0, ") == [runs[2], runs[0]]
    assert select_runs("sweep/2,sweep") == [runs[2], runs[0], runs[1], runs[3]]
    assert select_runs(".") == runs
    odd = make_run(Path("a,b"))
    assert select_runs("a,b") == [odd]
    (Path("sweep") / "notes.txt").write_text("not a run")
    assert select_runs("sweep/*") == runs


def test_the_last_run_is_the_newest_of_training(runs):
    with pytest.raises(ConfigError, match="runs=last: there is no trained run"):
        select_runs("last")
    for name in ("b_exp/2026-01-01_10-00-00-000000", "a_exp/2026-01-02_10-00-00-000000"):
        newest = make_run(Path("outputs/train") / name)
        (newest / "checkpoints").mkdir()
        (newest / "checkpoints" / "last.ckpt").touch()
    assert select_runs("last") == [newest]
    assert select_runs("last,sweep/1") == [newest, runs[1]]
    make_run(Path("last"))
    assert select_runs("last,./last") == [newest, Path("./last")]


def test_the_last_may_be_a_sweep(runs):
    make_run(Path("outputs/train/b_exp/2026-01-01_10-00-00-000000/")).joinpath("checkpoints").mkdir()
    trained = Path("outputs/train/b_exp/2026-01-01_10-00-00-000000")
    (trained / "checkpoints" / "last.ckpt").touch()
    for day in (1, 2):
        sweep = Path(f"outputs/sweep/a_exp/2026-01-0{day}_09-00-00-000000")
        jobs = [make_run(sweep / str(n)) for n in range(2)]
        assert select_runs("last") == [trained]
        (sweep / "sweep.json").write_text("{}")
        assert select_runs("last") == ([trained] if day == 1 else jobs)


def test_samples_that_were_measured_without_their_run_are_a_row(runs):
    folder = Path("measured") / "0"
    write_metrics(folder / "report", [{"name": "generated", "accuracy": 0.25}], "how")
    assert select_runs("measured/0") == select_runs("measured") == [folder]
    make_run(Path("measured") / "1")
    assert select_runs("measured") == [folder, Path("measured/1")]
    rows = write_comparison(study(select_runs("measured")), Path("out"))[1].read_text().splitlines()
    assert rows[1].startswith("0,,,,")
    assert "0.25" in rows[1]
    with pytest.raises(CheckpointError, match=r"holds no config.yaml.$"):  # it is no run to draw from
        read_config(folder)


@pytest.mark.parametrize("names", ["missing", "sweep/0,missing", "empty", "sweep/x*", ",", " "])
def test_nothing_found_is_a_mistake_that_says_so(runs, names):
    Path("empty").mkdir()
    with pytest.raises(DataError, match="in quotes"):
        select_runs(names)


@given(st.text("ab/*?[]{}(),=\\'\" ~!@%&;:é", min_size=1).filter(lambda t: t[0] not in "'\""))
def test_bare_values_reach_the_command_as_they_were_typed(text):
    (override,) = parse(as_typed([f"runs={text}"], "report"))
    assert str(override.value()) == text


def test_runs_are_looked_for_before_anything_else(runs):
    assert complete(["runs='sweep/0,sweep/1'", "hydra.run.dir=x"]) == ["runs='sweep/0,sweep/1'", "hydra.run.dir=x"]
    assert complete([]) == []
    with pytest.raises(DataError, match="runs=missing"):
        complete(["runs=missing"])


@pytest.mark.end_to_end
def test_the_command_compares_runs(runs):
    make_run(Path("other"), "rezero", 0.75)
    done = command("report", "runs=sweep/1,other", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert "| 1: gated | digits_gated | gated | channel |  | 2 | 4 | 0 | 0.5 |" in done.stdout
    assert "| other | digits_gated | rezero | channel |  | 2 | 4 | 0 | 0.75 |" in done.stdout
    paths = [Path(line.strip()) for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert [path.name for path in paths] == [
        "comparison.md", "comparison.csv", "summary.csv", "comparison_accuracy.png", "comparison_train_loss_steps.png",
        "index.html",
    ]  # fmt: skip
    assert all(path.is_file() and path.parent.parent == Path("outputs/report") for path in paths)


@pytest.mark.end_to_end
def test_a_base_and_a_quality_of_ones_own(runs):
    for seed in range(2):
        make_run(Path("other") / str(seed), "rezero")
        for run in (Path("other") / str(seed), Path("sweep") / str(seed)):
            config = (run / "config.yaml").read_text().replace("seed: 0", f"seed: {seed}")
            (run / "config.yaml").write_text(config)
            (run / "metrics.csv").write_text(f"step,train/loss,val/loss\n2,1.0,{1 + seed}\n4,0.5,{0.5 + seed / 3}\n")
    asked = ("runs=sweep/0,sweep/1,other", "base=residual=rezero", "quality=0.75", "best_by=accuracy")
    done = command("report", *asked, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert "Compared with `rezero`." in done.stdout
    assert "| gated | 2 of 2 | 0.5 | +0 | equal |" in done.stdout.split("## val/loss")[0].split("## accuracy")[1]
    assert "until a validation loss of 0.75, linear" in done.stdout
    assert "| gated | reached by 1 of 2 seeds |" in done.stdout
    wrong = command("report", "runs=sweep", "base=residual=skip", cwd=Path.cwd())
    assert wrong.returncode == 2
    assert "base=residual=skip: no group of these runs is that" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.end_to_end
def test_the_published_tables_need_no_run(tmp_path):
    done = command("report", "published=true", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| GAN | BigGAN-deep [59] [a] | ✗ | 6.95 | 7.36 | 171.4 | – | – | – |" in done.stdout
    assert "| Neural-RDM (the paper's) [b] | ✔✔ | 3.35 | 85.97 | 39.89 | 91.22 | 461.03 |" in done.stdout
    paths = [tmp_path / line.strip() for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert [path.name for path in paths] == ["published.md", "published.csv"]
    assert all(path.is_file() for path in paths)


@pytest.mark.end_to_end
def test_runs_stand_in_the_published_tables_and_beside_their_efficiency(runs):
    write_metrics(runs[0] / "report", [{"name": "generated", "frechet_pixels": 0.5, "count": 20}], "how")
    (runs[0] / "evaluations.csv").write_text(
        "step,images,frechet_pixels,cfg_scale,weights,count\n2,20,8,1,ema,20\n4,40,2,1,ema,20\n"
    )
    done = command("report", "published=true", "runs=sweep", "ep_fid=4", cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    assert "| own run |" not in done.stdout
    assert "| 0: gated | frechet_pixels | 0.5 | Class-to-Image FID | data not recorded; features of p" in done.stdout
    assert "- 1: gated: no column of these tables fits its numbers. how" in done.stdout
    assert "| frechet_pixels <= 4 |  | 30 | 20 | interpolated |" in done.stdout
    names = [Path(line.strip()).name for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert names[-3:] == ["efficiency.md", "published.md", "published.csv"]


@pytest.mark.end_to_end
def test_mistakes_are_refused_before_anything_is_written(runs):
    assert "published=true" in refused_without_torch("report", cwd=Path.cwd())
    assert "pass runs=DIR" in refused_without_torch("report", "published=true", "ep_fid=2", cwd=Path.cwd())
    assert "ep_fid" in refused_without_torch("report", "runs=sweep", "ep_fid=0", cwd=Path.cwd())
    assert "no run found" in refused_without_torch("report", "runs=missing/*", cwd=Path.cwd())
    assert "runs" in refused_without_torch("report", cwd=Path.cwd())
    for key in ("base=residual=gated", "quality=0.1"):
        assert "pass runs=DIR" in refused_without_torch("report", "published=true", key, cwd=Path.cwd())
    assert "runz" in refused_without_torch("report", "runs=sweep", "runz=1", cwd=Path.cwd())
    assert os.listdir() == ["sweep"]


@pytest.mark.end_to_end
@pytest.mark.parametrize("module", ["report", "sample", "evaluate"])
def test_help_says_how_to_call_the_command(module, tmp_path):
    done = command(module, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"python -m neural_rdm.{module} run" in done.stdout
    assert "Writes " in done.stdout
    assert os.listdir(tmp_path) == []
