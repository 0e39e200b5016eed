"""Optuna's proposals: what is searched, what is given up, and that a sweep that was cut goes on with its trials."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from neural_rdm.cli.sweepers import Optuna
from neural_rdm.config.compose import parse
from neural_rdm.core.errors import ConfigError
from tests.cli.jobs import stub

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweeper(*typed: str, objective: str | None = "val/loss", **how: Any) -> Any:
    """Optuna's sweeper over what is typed, ready; `checked` are the settings that were looked at before."""
    plan, made = stub([]), Optuna(**{"sampler": "random", **how})
    plan.typed, checked = parse(list(typed)), []
    cfg = OmegaConf.create({"optimized_metric": objective, "trainer": {"max_steps": 5}})
    plan.check = lambda overrides: checked.append(overrides) or SimpleNamespace(cfg=cfg)  # type: ignore[assignment, func-returns-value, return-value]
    made.check(plan)
    plan.folder.mkdir(exist_ok=True)
    made.begin()
    return SimpleNamespace(
        next=made.next, ended=made.ended, gives_up=made.gives_up, plan=plan, own=made, checked=checked
    )


def run(plan: Any, number: str, losses: list[float], state: str = "finished") -> None:
    """What a job leaves behind."""
    folder = plan.folder / number
    folder.mkdir(exist_ok=True)
    rows = "".join(f"{step},{loss}\n" for step, loss in enumerate(losses, 1))
    (folder / "metrics.csv").write_text(f"step,val/loss\n{rows}")
    if state == "finished":
        (folder / "report").mkdir(exist_ok=True)
        (folder / "report" / "metrics.json").write_text('{"rows": [{"name": "generated", "accuracy": 0.5}]}')
    plan.record.states[number] = {"state": state}


def test_the_search_space_is_what_is_typed_and_every_listed_value_is_checked_before() -> None:
    it = sweeper(
        "seed=3", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "backbone.depth=range(2,8,2)", "residual=gated,skip"
    )
    assert it.checked[0] == ["seed=3", "optimizer.lr=0.0001", "backbone.depth=2", "residual=gated"]
    assert len(it.checked) == 6
    for _ in range(20):
        fixed, lr, depth, residual = it.plan.record.jobs[it.next()]
        assert (fixed, residual in ("residual=gated", "residual=skip")) == ("seed=3", True)
        assert 1e-4 <= float(lr.removeprefix("optimizer.lr=")) <= 1e-2
        assert depth in ("backbone.depth=2", "backbone.depth=4", "backbone.depth=6")
    assert it.next() is None
    rates = [float(job[1].partition("=")[2]) for job in it.plan.record.jobs.values()]
    assert min(rates) < 1e-3 < max(rates)  # on a log scale half of them are on either side


def test_a_sweep_that_was_cut_goes_on_with_its_trials() -> None:
    it = sweeper("gamma=interval(0,1)", trials=4)
    numbers = [it.next() for _ in range(3)]
    assert numbers == ["0", "1", "2"]
    run(it.plan, "0", [0.5, 0.25])
    it.ended("0")
    run(it.plan, "1", [0.75])
    run(it.plan, "2", [0.5], "stopped")
    it.ended("2")
    again = sweeper("gamma=interval(0,1)", trials=4)  # killed before it learned that job 1 is finished
    assert [again.next(), again.next(), again.next()] == ["2", "3", None]
    assert again.plan.record.jobs["2"] == it.plan.record.jobs["2"]
    assert again.plan.record.jobs["3"] != it.plan.record.jobs["2"]
    assert [t.value for t in again.own.study.trials] == [0.25, 0.75, None, None]
    assert again.own.study.best_trial.number == 0


@pytest.mark.parametrize("cut", [True, False])
def test_what_somebody_else_s_folder_says_of_its_trials_is_not_typed(cut: bool) -> None:
    rate = optuna.distributions.FloatDistribution(0, 1)
    evil = {"callbacks.x._target_": optuna.distributions.CategoricalDistribution(["os.system"])}
    it = sweeper("seed=3", "gamma=interval(0,1)", trials=1)
    if cut:  # a kill between two parameters leaves a trial with one of them
        it.own.study.ask(evil)
    else:
        it.own.study.ask({"gamma": rate})
    again = stub([])
    again.record.jobs["0"] = ["trust=[os]", "+callbacks.x={_target_:os.system}"]
    made = Optuna(trials=1, sampler="random")
    again.typed, again.check = it.plan.typed, it.plan.check
    made.check(again)
    made.begin()
    assert made.next() == "0"
    seed, gamma = again.record.jobs["0"]
    assert (seed, gamma.partition("=")[0]) == ("seed=3", "gamma")
    assert 0 <= float(gamma.partition("=")[2]) <= 1


def test_a_journal_of_another_search_or_that_is_none_is_refused() -> None:
    sweeper("gamma=a,b").next()
    with pytest.raises(ConfigError, match=r"optuna\.journal is not of a sweep over this .*choose another hydra"):
        sweeper("gamma=a,c")
    for text in ('{"op_code": 0}\n{"op_code": 1}\n', "[" * 100_000 + "\n", "not JSON\n\n", "1\n"):
        Path("sweep/optuna.journal").write_text(text)
        with pytest.raises(ConfigError, match=r"optuna\.journal is not of a sweep over this"):
            sweeper("gamma=a,b")


def test_a_journal_that_is_a_link_or_a_pipe_is_refused_and_a_lock_of_it_not_waited_for() -> None:
    journal = Path("sweep/optuna.journal")
    journal.parent.mkdir()
    Path("own").write_text("mine\n")
    journal.symlink_to(Path("own").resolve())
    with pytest.raises(ConfigError, match=r"optuna\.journal is a link or no file"):
        sweeper("gamma=a,b")
    assert Path("own").read_text() == "mine\n"
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(ConfigError, match=r"optuna\.journal is a link or no file"):
        sweeper("gamma=a,b")
    journal.unlink()
    journal.with_name("optuna.journal.lock").symlink_to("nowhere")
    assert sweeper("gamma=a,b").next() == "0"


def test_any_metric_is_an_objective_and_its_direction_is_known() -> None:
    it = sweeper("gamma=interval(0,1)", objective="accuracy")
    number = it.next()
    run(it.plan, number, [0.5])
    it.ended(number)
    assert it.own.study.direction.name == "MAXIMIZE"
    assert it.own.study.best_value == 0.5
    failed = it.next()
    it.plan.record.states[failed] = {"state": "failed"}
    it.ended(failed)
    assert it.own.study.trials[1].state.name == "FAIL"


@pytest.mark.parametrize("objective", ["val/loss", "accuracy"])
def test_a_job_whose_validation_loss_is_worse_than_the_others_is_given_up(objective: str) -> None:
    it = sweeper("gamma=interval(0,1)", objective=objective, pruner_startup=2)
    for losses in ([0.5, 0.4, 0.3], [0.6, 0.5, 0.4]):
        number = it.next()
        run(it.plan, number, losses)
        assert not it.gives_up(number)
        it.ended(number)
    good, bad = it.next(), it.next()
    run(it.plan, good, [0.5, 0.3], "running")
    run(it.plan, bad, [0.7, 0.9], "running")
    assert (it.gives_up(good), it.gives_up(bad)) == (False, True)
    it.plan.record.states[bad] = {"state": "pruned"}
    it.ended(bad)
    assert it.own.study.trials[int(bad)].state.name == "PRUNED"
    lenient = sweeper("gamma=interval(0,1)", objective=objective, pruner=None)
    assert not lenient.gives_up(good)


@pytest.mark.parametrize(
    ("typed", "objective", "message"),
    [
        (["gamma=0.1"], "val/loss", "nothing varies"),
        (["gamma=interval(0,1)"], None, "optimized_metric=val/loss"),
        (["gamma=interval(1,0)"], "val/loss", r"gamma=interval\(1,0\)"),
        (["gamma=tag(log,interval(0,1))"], "val/loss", "gamma=tag"),
    ],
)
def test_what_cannot_be_optimised_is_refused(typed: list[str], objective: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweeper(*typed, objective=objective)
    assert not Path("sweep").exists()
