"""`python -m neural_rdm.sweep`: the sweep's folder, its processes, and the comparison at the end."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from neural_rdm import sweep
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.ranks import RANK_VARIABLES
from neural_rdm.sweep import choose_folder, run
from tests.end_to_end.commands import BARE, start, wait_for_step
from tests.end_to_end.commands import run as end_to_end
from tests.reports.test_rates import make_run
from tests.test_sample import TINY, command, refused_without_torch


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "digits_gated"),
        (["exp=dit_s_gated", "residual=gated,resnet"], "dit_s_gated"),
        (["exp=dit_s_gated,digits_gated"], "several"),
        (["--config-dir", "mine", "exp=own"], "own"),
    ],
)
def test_the_folder_is_named_after_the_experiment(overrides, name):
    folder, more = choose_folder(overrides)
    assert folder.parent == Path("outputs/sweep") / name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", folder.name)
    assert more == [f"hydra.sweep.dir='{folder}'"]


@pytest.mark.parametrize("name", ["2024_01_15", "1e5", "007"])
def test_names_that_look_like_numbers_are_names(name):
    assert choose_folder([f"exp={name}"])[0].parent == Path("outputs/sweep") / name
    assert choose_folder([f"hydra.sweep.dir={name}"]) == (Path(name), [])


def test_a_given_folder_is_kept():
    assert choose_folder(["exp=x", "hydra.sweep.dir='my sweep'"]) == (Path("my sweep"), [])
    with pytest.raises(ConfigError, match="plain folder"):
        choose_folder(["hydra.sweep.dir='out/${now:%Y}'"])
    with pytest.raises(ConfigError, match="cannot read the argument"):
        choose_folder(["residual=[gated"])


def test_exit_codes_are_passed_on():
    assert run([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3
    assert run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]) == 143
    assert run([sys.executable, "-c", "pass"]) == 0


def test_a_sweep_inside_a_job_is_no_rank_of_it(monkeypatch):
    for name in RANK_VARIABLES:
        monkeypatch.setenv(name, "1")
    code = "import os, sys; sys.exit(any(name in os.environ for name in sys.argv[1:]))"
    assert run([sys.executable, "-c", code, *RANK_VARIABLES]) == 0


def test_what_is_best_by_is_the_comparison_s_and_not_the_runs(tmp_path, monkeypatch, capsys):
    folder, lines = tmp_path / "it", []

    def trained(line):
        lines.append(line)
        runs = [make_run(folder / str(i), "gated", lr, loss) for i, (lr, loss) in enumerate([(1e-3, 0.4), (1e-2, 0.3)])]
        (folder / "sweep.json").write_text(json.dumps({"arguments": [], "jobs": {run.name: [] for run in runs}}))
        return 0

    monkeypatch.setattr(sweep, "run", trained)
    assert (
        sweep.sweep(["residual=gated", "optimizer.lr=1e-3,1e-2", "best_by=accuracy", f"hydra.sweep.dir={folder}"]) == 0
    )
    assert not any(word.startswith("best_by") for word in lines[0])
    assert "By `accuracy`" in capsys.readouterr().out
    assert (folder / "comparison_rates.png").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_every_process_of_the_sweep(tmp_path, number):
    grandchild = (
        "import pathlib, signal, sys, time\n"
        "def stop(number, frame): pathlib.Path('saved').write_text(str(number)); sys.exit(0)\n"
        "signal.signal(signal.SIGINT, stop); signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    child = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {grandchild!r}]).returncode)"
    parent = f"from neural_rdm.sweep import run; import sys; sys.exit(run([sys.executable, '-c', {child!r}]))"
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        wait_for(tmp_path / "ready")
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        wait_for(tmp_path / "saved")
    finally:
        process.kill()
    assert (tmp_path / "saved").read_text() == str(int(number))


def wait_for(path: Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not (path.is_file() and (path.name == "ready" or path.read_text())):
        assert time.monotonic() < end, f"{path.name} was never written"
        time.sleep(0.02)


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
def test_a_killed_sweep_ends_its_job_and_goes_on(tmp_path):
    arguments = [
        *BARE,
        "checkpoint.every_n_steps=2",
        "log_every_n_steps=2",
        "trainer.max_steps=60",
        "residual=gated,resnet",
        "hydra.sweep.dir=2024_01_15",
    ]
    folder = tmp_path / "2024_01_15"
    launcher = start("-m", *arguments, cwd=tmp_path)
    try:
        wait_for_step(folder / "0", 4, launcher, timeout=400)
    finally:
        launcher.kill()
        launcher.wait()
    end = time.monotonic() + 120
    while "which is saved" not in (output := (tmp_path / "output.txt").read_text()):
        assert time.monotonic() < end, output
        time.sleep(0.1)
    saved = int(re.search(r"stopped by SIGTERM after step (\d+), which is saved", output)[1])
    assert 4 <= saved < 60
    time.sleep(1)
    assert not (folder / "1").exists()

    code, output = end_to_end(*arguments[:-1], "seed=5", arguments[-1], cwd=tmp_path, module="sweep")
    assert code == 2
    assert "holds the sweep" in output

    code, output = end_to_end(*arguments, cwd=tmp_path, module="sweep")
    assert code == 0, output
    assert "2024_01_15/0 goes on" in output
    assert f"continuing after step {saved}" in output
    steps = [row.partition(",")[0] for row in (folder / "0" / "metrics.csv").read_text().splitlines()[1:]]
    assert len(steps) == len(set(steps))
    with open(folder / "comparison.csv", newline="") as file:
        assert [row["steps"] for row in csv.DictReader(file)] == ["60", "60"]

    before = {path: path.read_bytes() for path in folder.glob("[01]/**/*") if path.is_file()}
    code, output = end_to_end(*arguments, cwd=tmp_path, module="sweep")
    assert code == 0, output
    assert output.count("is finished") == 2
    assert {path: path.read_bytes() for path in folder.glob("[01]/**/*") if path.is_file()} == before


@pytest.mark.end_to_end
def test_a_mistake_ends_the_sweep_before_it_begins(tmp_path):
    message = command("sweep", "residual=gated,resnt", cwd=tmp_path)
    assert message.returncode == 2
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
