"""`python -m neural_rdm.sweep`: the sweep's folder, its processes, and the comparison at the end."""

from __future__ import annotations

import csv
import json
import os
import re
import time

import pytest

from neural_rdm import sweep
from neural_rdm.cli.jobs import save_record
from neural_rdm.cli.planning import Plan
from tests.end_to_end.commands import BARE, start, wait_for_step
from tests.end_to_end.commands import run as end_to_end
from tests.reports.test_rates import make_run
from tests.test_sample import TINY, command, refused_without_torch


def launched(monkeypatch: pytest.MonkeyPatch, code: int = 0) -> list[Plan]:
    """Let sweeps train in no time: two finished runs with different learning rates."""
    plans: list[Plan] = []

    def launch(plan: Plan) -> int:
        plans.append(plan)
        for number, (lr, loss) in enumerate([(1e-3, 0.4), (1e-2, 0.3)]):
            make_run(plan.folder / str(number), "gated", lr, loss)
        save_record(plan.folder, plan.record)
        return code

    monkeypatch.setattr(sweep, "launch", launch)
    return plans


@pytest.mark.parametrize(
    ("given", "judged"),
    [
        (["best_by=accuracy"], "accuracy"),
        (["best_by=accuracy", "optimized_metric=val/loss"], "accuracy"),
        (["optimized_metric=accuracy"], "accuracy"),
        ([], "val/loss"),
    ],
)
def test_what_is_best_by_is_the_comparison_s_and_not_the_runs(given, judged, tmp_path, monkeypatch, capsys):
    folder, plans = tmp_path / "it", launched(monkeypatch)
    assert sweep.sweep(["optimizer.lr=1e-3,1e-2", *given, f"hydra.sweep.dir={folder}"]) == 0
    assert plans[0].record.jobs["0"] == ["optimizer.lr=0.001", *(g for g in given if not g.startswith("best_by"))]
    assert f"By `{judged}`" in capsys.readouterr().out
    assert (folder / "comparison_rates.png").is_file()


def test_how_to_go_on_is_told_where_not_every_job_is_finished(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    launched(monkeypatch, code=1)
    assert sweep.sweep(["optimizer.lr=1e-3,1e-2", "seeds=2"]) == 1
    out = capsys.readouterr().out
    assert re.search(
        r"this goes on with the sweep:\n  python -m neural_rdm\.sweep optimizer\.lr=1e-3,1e-2 seeds=2 "
        r"hydra\.sweep\.dir=outputs/sweep/digits_gated/[\d_-]+\n",
        out,
    )


@pytest.mark.end_to_end
def test_a_sweep_trains_every_job_and_compares_them(tmp_path):
    done = command(
        "sweep", *TINY, "~callbacks.sensitivity", "residual=gated,resnet", cwd=tmp_path, LOCAL_RANK="0", WORLD_SIZE="1"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "outputs" / "sweep" / "digits_gated").iterdir()
    paths = [tmp_path / line.strip() for line in done.stdout.rsplit("wrote:\n", 1)[1].splitlines()]
    assert paths[:3] == [folder / name for name in ("comparison.md", "comparison.csv", "summary.csv")]
    with open(paths[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["residual"], row["gates"], row["steps"]) for row in rows] == [
        ("0: residual=gated", "gated", "channel", "4"),
        ("1: residual=resnet", "resnet", "none", "4"),
    ]
    assert all(float(row["frechet_pixels"]) > 0 for row in rows)
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["0", "1"]
    assert "| 1: residual=resnet | digits_gated | resnet | none |" in done.stdout


@pytest.mark.full
@pytest.mark.end_to_end
def test_a_killed_sweep_ends_its_jobs_and_goes_on_as_if_nothing_had_been(tmp_path):
    tiny = [*BARE, "checkpoint.every_n_steps=5", "log_every_n_steps=2", "trainer.max_steps=60", "residual=gated,resnet"]
    arguments = [*tiny, "jobs=2", "hydra.sweep.dir=2024_01_15"]
    folder = tmp_path / "2024_01_15"
    process = start(*arguments, cwd=tmp_path, module="sweep")
    try:
        wait_for_step(folder / "0", 4, process, timeout=400)
        wait_for_step(folder / "1", 4, process, timeout=400)
    finally:
        process.kill()
        process.wait()
    logs = [folder / number / "output.log" for number in "01"]
    end = time.monotonic() + 120
    while not all("which is saved" in log.read_text() for log in logs):
        assert time.monotonic() < end, [log.read_text() for log in logs]
        time.sleep(0.1)
    saved = [int(re.search(r"stopped by SIGTERM after step (\d+), which is saved", log.read_text())[1]) for log in logs]
    assert all(4 <= step < 60 for step in saved)

    code, output = end_to_end(*arguments, "seed=5", cwd=tmp_path, module="sweep")
    assert code == 2
    assert "holds the sweep" in output

    code, output = end_to_end(*arguments, cwd=tmp_path, module="sweep")
    assert code == 0, output
    assert "2 jobs, 0 finished, 2 begun; 2 at once" in output
    assert "[1 of 2] residual=gated goes on -> 2024_01_15/0" in output
    for step, log in zip(saved, logs, strict=True):
        assert f"continuing after step {step}" in log.read_text()

    code, output = end_to_end("-m", *tiny, "hydra.sweep.dir=uninjured", cwd=tmp_path)  # one after another
    assert code == 0, output
    for number in "01":
        whole = tmp_path / "uninjured" / number / "metrics.csv"
        assert (folder / number / "metrics.csv").read_bytes() == whole.read_bytes()

    before = {path: path.read_bytes() for path in folder.glob("[01]/**/*") if path.is_file()}
    code, output = end_to_end(*arguments, cwd=tmp_path, module="sweep")
    assert code == 0, output
    assert "2 jobs, 2 finished; 2 at once" in output
    assert {path: path.read_bytes() for path in folder.glob("[01]/**/*") if path.is_file()} == before


@pytest.mark.full
@pytest.mark.end_to_end
def test_optuna_proposes_and_the_best_run_is_that_of_its_study(tmp_path):
    optuna = pytest.importorskip("optuna")
    code, output = end_to_end(
        *BARE, "trainer.max_steps=8", "log_every_n_steps=2", "callbacks.validation.every_n_steps=2", "sweeper=optuna",
        "sweeper.trials=3", "sweeper.pruner=null", "optimized_metric=val/loss", "hydra.sweep.dir=it",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", cwd=tmp_path, module="sweep",
    )  # fmt: skip
    assert code == 0, output
    told = [json.loads((tmp_path / "it" / n / "finished.json").read_text())["objective"] for n in "012"]
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(tmp_path / "it" / "optuna.journal"))
    )
    study = optuna.load_study(study_name="sweep", storage=storage)
    assert [trial.value for trial in study.trials] == told
    assert study.best_value == min(told)


@pytest.mark.end_to_end
def test_a_mistake_ends_the_sweep_before_it_begins(tmp_path):
    message = command("sweep", "residual=gated,resnt", cwd=tmp_path)
    assert message.returncode == 2
    assert "1 of the 2 settings" in message.stderr
    assert "Did you mean resnet" in message.stderr
    assert "cannot read the argument" in refused_without_torch("sweep", "residual=[gated", cwd=tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.end_to_end
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_how_to_call_the_command(tmp_path, flag):
    done = command("sweep", flag, cwd=tmp_path)
    assert done.returncode == 0
    assert "python -m neural_rdm.sweep exp=digits_gated residual=gated" in done.stdout
    assert os.listdir(tmp_path) == []
