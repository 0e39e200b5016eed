"""What a sweep is about to do: its jobs, each with a configuration of its own, and its folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from neural_rdm.cli.app import Arguments, plan
from neural_rdm.cli.jobs import save_record
from neural_rdm.cli.planning import Plan
from neural_rdm.core.errors import ConfigError

STUDY = """# @package _global_
trainer: {max_steps: 30}
backbone: {num_classes: 10, input_size: 8, in_channels: 1}
sweep:
  seeds: 2
  base: residual=resnet
  grids:
  - {residual: [resnet, gated], gamma: 0}
  - {residual: gated, gamma: [0.0, "${residual.gamma}"], trainer.max_steps: 60}
  - residual: gated
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "exp").mkdir(parents=True)
    (tmp_path / "mine" / "exp" / "own.yaml").write_text(STUDY, encoding="utf-8")


def planned(*arguments: str) -> Plan:
    return plan("train", Arguments.parse(["-m", *arguments]))


def told(found: Plan) -> list[str]:
    return [" ".join(found.record.apart(number)) for number in found.record.jobs]


def test_a_study_is_planned_with_its_base_its_steps_and_no_job_twice() -> None:
    found = planned("--config-dir", "mine", "exp=own")
    assert told(found) == [
        f"{setting} seed={seed}"
        for seed in (0, 1)
        for setting in (
            "residual=resnet gamma=0", "residual=gated gamma=0", "residual=gated gamma=0.0 trainer.max_steps=60",
            "residual=gated gamma='${residual.gamma}' trainer.max_steps=60",
        )
    ]  # fmt: skip  # the third grid's job is that of the first: gamma is 0 by default
    assert found.record.base == "residual=resnet"
    assert found.steps == {str(n): 60 if n % 4 > 1 else 30 for n in range(8)}
    assert found.further == ["sweep=null", "--config-dir", "mine"]
    assert re.fullmatch(r"outputs/sweep/own/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", str(found.folder))
    typed = planned("--config-dir", "mine", "exp=own", "residual=gated,skip", "trainer.max_steps=9", "seeds=[4]")
    assert {o for job in typed.record.jobs.values() for o in job if "max_steps" in o} == {"trainer.max_steps=9"}
    assert set(typed.steps.values()) == {9}
    assert all("seed=4" in job for job in typed.record.jobs.values())


def test_comma_lists_alone_are_crossed_and_go_to_the_folder_of_their_experiment() -> None:
    found = planned("residual=gated,skip", "seeds=2", "hydra.job.name=x", "optimized_metric=accuracy", "jobs=2")
    assert told(found) == [f"residual={rule} seed={seed}" for seed in (0, 1) for rule in ("gated", "skip")]
    assert found.further == ["hydra.job.name=x", "sweep=null"]
    assert (found.folder.parent, found.objective, found.how.jobs) == (Path("outputs/sweep/digits_gated"), "accuracy", 2)
    assert planned("exp=digits_gated,digits_unet_gated").folder.parent == Path("outputs/sweep/several")
    assert planned("hydra.sweep.dir=2024_01_15").folder == Path("2024_01_15")
    assert str(planned("hydra.sweep.dir='o/${now:%Y}'").folder).startswith("o/2")


def test_the_plan_that_was_made_first_is_gone_on_with() -> None:
    given = ("--config-dir", "mine", "exp=own", "residual=shuffle(gated,skip)", "seeds=1", "hydra.sweep.dir=s")
    first = planned(*given)
    first.folder.mkdir()
    save_record(first.folder, first.record)
    again = planned(*given, "jobs=2")
    assert (again.record, again.steps) == (first.record, first.steps)
    (Path("mine") / "exp" / "own.yaml").write_text(STUDY.replace("max_steps: 60", "max_steps: 70"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"other jobs than .*max_steps=60\): its experiment has changed"):
        planned(*given)


def test_a_study_and_what_does_not_go_with_it() -> None:
    with pytest.raises(ConfigError, match=r"exp=own,digits_gated: one of these is a study of its own"):
        planned("--config-dir", "mine", "exp=own,digits_gated")
    with pytest.raises(ConfigError, match=r"sweeper=optuna proposes settings of one seed"):
        planned("--config-dir", "mine", "exp=own", "sweeper=optuna", "gamma=interval(0,1)")
    one = planned("--config-dir", "mine", "exp=own", "sweep=null")
    assert list(one.record.jobs.values()) == [["exp=own"]]


def test_commands_beside_training_are_swept_by_the_same_code(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.png").touch()
    given = ("data=image_folder", "data.root=pictures", "data.num_classes=1", "first_stage=kl_f8")
    found = plan("encode", Arguments.parse(["-m", *given, "dtype=float16,float32"]))
    assert told(found) == ["dtype=float16", "dtype=float32"]
    assert found.further == []
