"""What a study's grids and typed lists stand for: which jobs, in which order, each once."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from neural_rdm.config.compose import parse
from neural_rdm.config.grids import crossed, seeds_of, study
from neural_rdm.config.primary_train import Sweep
from neural_rdm.core.errors import ConfigError
from tests.helpers import ROOT

STUDY = {
    "seeds": 2,
    "base": "residual=resnet",
    "grids": [{"residual": ["resnet", "gated"]}, {"residual": "gated", "gamma": [0.35]}],
}


def jobs(node: Any, *typed: str, seeds: Any = None) -> list[str]:
    """The jobs as one would type them."""
    found = Sweep() if node is None else study(node)
    return [" ".join(job) for job in crossed(found, parse(list(typed)), seeds_of(seeds), lambda _: ["adaln", "skip"])]


def test_the_jobs_are_those_of_all_grids_seed_by_seed() -> None:
    settings = ["residual=resnet", "residual=gated", "residual=gated gamma=0.35"]
    assert jobs(STUDY) == [f"{setting} seed={seed}" for seed in (0, 1) for setting in settings]
    assert jobs({**STUDY, "seeds": [7, 3]})[::3] == ["residual=resnet seed=7", "residual=resnet seed=3"]
    assert jobs({**STUDY, "seeds": None}) == settings
    assert jobs({"seeds": 2}) == ["seed=0", "seed=1"]


def test_the_study_of_the_page_is_one() -> None:
    page = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
    node = OmegaConf.to_container(OmegaConf.create(page.split("```yaml\n")[1].split("```")[0])["sweep"])  # type: ignore[index]
    assert len(jobs(node)) == 5 * (5 + 3 + 2)


def test_a_job_that_two_grids_have_is_one() -> None:
    twice = {"grids": [{"gamma": [0, 1], "residual": "gated"}, {"residual": ["gated", "skip"], "gamma": 0}]}
    assert jobs(twice) == ["gamma=0 residual=gated", "gamma=1 residual=gated", "residual=skip gamma=0"]


def test_learning_rates_of_one_rule_are_a_grid_of_its_own() -> None:
    rates = {"grids": [{"residual": "dar", "optimizer.lr": [1e-3, 3e-3]}, {"residual": "gated", "optimizer.lr": 5e-3}]}
    assert jobs(rates) == [
        "residual=dar optimizer.lr=0.001", "residual=dar optimizer.lr=0.003", "residual=gated optimizer.lr=0.005",
    ]  # fmt: skip


def test_what_is_typed_is_crossed_and_takes_the_place_of_a_grid_s_key() -> None:
    found = jobs(STUDY, "backbone.depth=2,4", "residual=adaln", seeds=[5])
    assert found == [
        *(f"backbone.depth={depth} residual=adaln seed=5" for depth in (2, 4)),
        *(f"backbone.depth={depth} residual=adaln seed=5 gamma=0.35" for depth in (2, 4)),
    ]
    assert jobs(STUDY, "seed=9")[0] == "seed=9 residual=resnet"
    assert jobs({"grids": [{"seed": [4, 5]}]}, seeds=[1]) == ["seed=1"]


def test_a_command_line_alone_is_a_sweep_too() -> None:
    assert jobs(None, "residual=glob(a*)", "trainer.max_steps=range(1,3)") == [
        "residual=adaln trainer.max_steps=1", "residual=adaln trainer.max_steps=2",
    ]  # fmt: skip
    assert jobs(None, "~metric", "seed=1,0", "residual=gated,skip")[:3] == [
        "~metric seed=1 residual=gated", "~metric seed=1 residual=skip", "~metric seed=0 residual=gated",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="sweeper=optuna"):
        jobs(None, "optimizer.lr=tag(log,interval(1e-4,1e-2))")
    with pytest.raises(ConfigError, match="seeds= and seed=1,2"):
        jobs(None, "seed=1,2", seeds=3)


@pytest.mark.parametrize(
    ("value", "override"),
    [
        ([[1, 2]], "key=[1,2]"), (["${residual.gamma}"], "key='${residual.gamma}'"), ([None], "key=null"),
        (["null"], "key='null'"), ([True], "key=true"), (["a,b"], "key='a,b'"), (["small/fig6"], "key=small/fig6"),
    ],
)  # fmt: skip
def test_values_of_a_grid_are_typed_as_hydra_reads_them_back(value: Any, override: str) -> None:
    assert jobs({"grids": [{"key": value}]}) == [override]
    wanted = value[0]
    assert parse([override])[0].value() == wanted


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (5, "is not a study"),
        ({"seed": 1}, "unknown configuration key sweep.seed. Did you mean seeds"),
        ({"seeds": 0}, "sweep.seeds"),
        ({"seeds": [-1]}, "sweep.seeds"),
        ({"grids": {"residual": ["gated"]}}, "sweep.grids"),
        ({"grids": ["residual=gated"]}, r"grids\[0\].*it takes mapping"),
        ({"grids": [{}]}, "is no grid"),
        ({"grids": [{"optimizer": {"lr": [1]}}]}, r"write optimizer\.NAME: \[VALUE"),
        ({"grids": [{"gamma": []}]}, "at least one value, or no gamma"),
    ],
)
def test_a_node_that_is_no_study_is_refused(node: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(node)
