"""Which runs are a group, what tells groups apart, what they are compared with, and what a sweep says is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neural_rdm.core.errors import DataError
from neural_rdm.reports.groups import base_of, bases, by_reason, groups
from neural_rdm.runs.load import find_runs
from tests.reports.made import make_run, write_sweep


def test_runs_that_differ_in_seed_and_in_what_training_does_not_depend_on_are_one_group(tmp_path: Path) -> None:
    more = {"trainer": {"num_threads": 2, "devices": 2}, "logger": {"csv": {}}, "data": {"num_workers": 3}}
    runs = [make_run(tmp_path / "a", seed=3), make_run(tmp_path / "b", seed=0, **more)]
    runs += [make_run(tmp_path / "c", seed=0, data={"batch_size": 16})]
    found = groups(runs)
    assert [group.label for group in found] == ["gated, data.batch_size=8", "gated, data.batch_size=16"]
    assert [group.runs for group in found] == [{0: runs[1], 3: runs[0]}, {0: runs[2]}]
    assert found[1].settings == {"residual": "gated", "data.batch_size": 16}


def test_labels_name_what_differs_as_people_say_it(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "0", "resnet"),
        make_run(tmp_path / "1", "gated", gamma=0.35),
        make_run(tmp_path / "2", "gated", control="folded"),
        make_run(tmp_path / "3", "hc", residual={"rule": "hc", "streams": 2, "granularity": None}),
        make_run(tmp_path / "4", "hc", residual={"rule": "hc", "streams": 4, "granularity": None}),
        make_run(tmp_path / "5", "resnet", optimizer={"lr": 3e-3}, backbone={"depth": 4}),
    ]
    assert [group.label for group in groups(runs)] == [
        "resnet, depth=2, lr=0.001",
        "gated, gamma=0.35, depth=2, lr=0.001",
        "gated (folded), depth=2, lr=0.001",
        "hc, depth=2, lr=0.001, residual.streams=2",
        "hc, depth=2, lr=0.001, residual.streams=4",
        "resnet, depth=4, lr=0.003",
    ]


def test_a_seed_that_ran_twice_counts_once(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, finished=name != "cut") for name in ("first", "second", "cut")]
    (found,) = groups(runs)
    assert found.runs == {0: runs[1]}
    assert set(found.again) == {runs[0], runs[2]}


def test_runs_that_cannot_be_read_are_groups_of_their_own(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "config.yaml").write_text("[cut")
    found = groups([tmp_path / "a", whole, tmp_path / "b"])
    assert [(group.label, list(group.runs)) for group in found] == [("a", [None]), ("gated", [0]), ("b", [None])]


def test_each_group_is_compared_with_the_base_that_is_most_like_it(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / f"{rule}{depth}{gamma}", rule, backbone={"depth": depth}, gamma=gamma)
        for depth in (2, 4)
        for rule, gamma in (("resnet", 0.0), ("gated", 0.0), ("gated", 0.35))
    ]
    found = groups(runs)
    assert bases(found, None) == {
        "gated, depth=2": "resnet, depth=2", "gated, gamma=0.35, depth=2": "resnet, depth=2",
        "gated, depth=4": "resnet, depth=4", "gated, gamma=0.35, depth=4": "resnet, depth=4",
    }  # fmt: skip
    assert bases(found, "residual=gated gamma=0.35")["gated, depth=4"] == "gated, gamma=0.35, depth=4"
    assert set(bases(found, "gated, depth=2").values()) == {"gated, depth=2"}
    with pytest.raises(DataError, match=r"base=residual=skip: no group .* resnet, depth=2; gated, depth=2"):
        bases(found, "residual=skip")


def test_there_need_not_be_a_base(tmp_path: Path) -> None:
    found = groups([make_run(tmp_path / rule, rule) for rule in ("gated", "skip")])
    assert bases(found, None) == {}
    folded = groups([make_run(tmp_path / f"f{c}", "gated", control=c) for c in (None, "folded")])
    assert bases(folded, "residual=gated") == {"gated (folded)": "gated"}


def test_what_a_sweep_says_of_jobs_that_left_nothing(tmp_path: Path) -> None:
    jobs = {str(2 * i + s): [f"residual={r}", f"seed={s}"] for i, r in enumerate(("gated", "skip")) for s in range(2)}
    for number, overrides in jobs.items():
        make_run(tmp_path / number, overrides[0].partition("=")[2], int(overrides[1][-1]), finished=number != "0")
    told = {"job_0": {"state": "failed", "error": "NaN"}, "job_1": {"state": "pruned"}, "job_2": {"state": "finished"}}
    write_sweep(tmp_path, jobs, "residual=skip", **told)
    gated, skip = groups(find_runs(tmp_path))
    assert gated.failed == {0: "failed: NaN", 1: "pruned"}
    assert skip.failed == {}
    for number in ("1", "2", "3"):
        shutil.rmtree(tmp_path / number)
    gated, lost = groups(find_runs(tmp_path))
    assert (gated.seeds, gated.failed) == ([0, 1], {0: "failed: NaN", 1: "pruned"})
    assert (lost.label, lost.runs, lost.failed) == ("residual=skip", {}, {0: "finished", 1: "not started"})
    assert base_of(find_runs(tmp_path)) == "residual=skip"


def test_seeds_are_told_together_that_lack_a_run_for_the_same_reason() -> None:
    missing = {3: "not started", 5: "failed: disk full", 6: "not started"}
    assert by_reason(missing) == [("seeds 3, 6", "not started"), ("seed 5", "failed: disk full")]
    assert by_reason({None: "unfinished"}) == [("", "unfinished")]
