"""`python -m neural_rdm.evaluate`: the numbers at the end of training, again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from neural_rdm.cli.compose import compose_config
from neural_rdm.cli.runs import inherit, written
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.evaluate import evaluate
from neural_rdm.reports.figures import attempt
from neural_rdm.reports.tables import compare_runs
from neural_rdm.training.evaluation import DigitsReport
from tests.test_sample import command, refused_without_torch, tiny_run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def evaluated(run, folder, *overrides):
    """The report of an evaluation in this process."""
    own = inherit([f"run={written(str(run))}", *overrides], groups=("sampler", "metric"), keys=("seed",))
    cfg = compose_config("evaluate", own).cfg
    OmegaConf.resolve(cfg)
    assert evaluate(cfg, folder) == 0
    return json.loads((folder / "report" / "metrics.json").read_text())


def test_the_command_repeats_the_numbers_of_the_training(run, tmp_path):
    done = command("evaluate", f"run={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| generated |" in done.stdout
    paths = [tmp_path / line.strip() for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert [p.name for p in paths] == ["metrics.md", "metrics.csv", "metrics.json", "config.yaml", "sampling.json"]
    assert paths[3].parent.parent == tmp_path / "outputs" / "evaluate" / "digits_gated"
    for path in paths[:3]:
        assert path.read_bytes() == (run / "report" / path.name).read_bytes()


def test_what_is_typed_is_measured(run, tmp_path):
    own = evaluated(run, tmp_path / "own")
    more = evaluated(run, tmp_path / "more", "metric.per_class=3", "sampler=ddim", "sampler.steps=4", "seed=7")
    raw = evaluated(run, tmp_path / "raw", "weights=raw")
    assert (own["rows"][0]["count"], more["rows"][0]["count"]) == (10, 30)
    assert "Sampler ddim, 4 steps" in more["protocol"]
    assert "3 samples a class; weights ema; step 4; seed 7." in more["protocol"]
    assert "weights raw" in raw["protocol"]
    assert raw["rows"][0]["frechet_pixels"] != own["rows"][0]["frechet_pixels"]
    assert own["rows"][1] == more["rows"][1]


def test_evaluations_can_be_compared_like_runs(run, tmp_path):
    steps = (1, 3)
    reports = [evaluated(run, tmp_path / str(n), f"sampler.steps={n}") for n in steps]
    rows = compare_runs([tmp_path / str(n) for n in steps])
    assert [row["sampler.steps"] for row in rows] == list(steps)
    assert [row["exp"] for row in rows] == ["digits_gated"] * 2
    assert [row["frechet_pixels"] for row in rows] == [r["rows"][0]["frechet_pixels"] for r in reports]


def test_a_run_without_a_metric_is_refused_naming_the_choices(run, tmp_path):
    plain = tmp_path / "plain"
    (plain / "checkpoints").mkdir(parents=True)
    (plain / "checkpoints" / "last.ckpt").symlink_to(run / "checkpoints" / "last.ckpt")
    config = OmegaConf.load(run / "config.yaml")
    config.metric = None
    OmegaConf.save(config, plain / "config.yaml")
    assert "choose one of metric=digits" in refused_without_torch("evaluate", "run=plain", cwd=tmp_path)
    asked = evaluated(plain, tmp_path / "out", "metric=digits", "metric.per_class=1")
    assert asked["rows"] == json.loads((run / "report" / "metrics.json").read_text())["rows"]


def test_the_digits_metric_refuses_other_data():
    data = SimpleNamespace(train_set=object(), val_set=None)
    with pytest.raises(ConfigError, match="metric=digits needs data=digits"):
        DigitsReport().metric(data)
    assert DigitsReport(per_class=2).labels.tolist() == [d for d in range(10) for _ in range(2)]


def test_a_run_too_short_to_draw_is_no_failure(capsys):
    def short() -> Path:
        raise DataError("holds no sensitivity")

    assert attempt(short) == []
    assert "holds no sensitivity" in capsys.readouterr().out
    assert attempt(lambda: None) == []
    assert attempt(lambda: Path("a.png")) == [Path("a.png")]
