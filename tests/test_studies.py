"""The studies of `benchmarks/studies`: plans, that they go on where they were stopped, what is made of rows."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import training
from benchmarks.studies import __main__ as running
from benchmarks.studies import compare, gather, measures, needs, noise, page, plan, rows
from benchmarks.studies.answers import variants
from benchmarks.studies.answers.rivals import _over_all

from neural_rdm.config.compose import compose_config
from neural_rdm.reports.statistics import resolvable
from neural_rdm.residual import units
from tests.reports import recompute

#: study -> what its groups are, the base, and the rows that are compared
COMPARED = {
    "fig6": ("case", "resnet", {}),
    "fig6_controls": ("case", "resnet", {}),
    "fig6_unet": ("rule", "resnet", {}),
    "fig6_video": ("rule", "resnet", {}),
    "fig7": ("rule", "resnet", {"stage": "equal steps", "units": 48}),
    "gates": ("gates", "none (resnet)", {}),
    "supervision": ("case", "gamma 0", {"rule": "skip", "steps": 200}),
    "objectives": ("case", "epsilon, hybrid (DiT)", {}),
}


@pytest.mark.parametrize("study", plan.STUDIES.values(), ids=lambda study: study.name)
def test_every_run_is_told_from_the_others_and_seeds_come_last_first(study: plan.Study) -> None:
    keys = [study.key(job.row) for job in study.jobs]
    assert len(set(keys)) == len(keys)
    compared = [job.row["seed"] for job in study.jobs if job.row["seed"] < 100]
    assert compared == sorted(compared)  # what is done at any time is a balanced study
    last = study.jobs[-1]
    cfg = compose_config("train", [*study.settings, *last.overrides]).cfg
    assert cfg.seed == last.row["seed"]


@pytest.mark.full
@pytest.mark.parametrize("study", plan.STUDIES.values(), ids=lambda study: study.name)
def test_every_run_composes(study: plan.Study) -> None:
    seen = set()
    for job in study.jobs:
        typed = tuple(part for part in job.overrides if not part.startswith("seed="))
        if typed not in seen:
            compose_config("train", [*study.settings, *job.overrides])
        seen.add(typed)


@pytest.mark.full
@pytest.mark.parametrize("study", plan.STUDIES.values(), ids=lambda study: study.name)
def test_a_run_of_every_study_is_trained_and_measured(study: plan.Study) -> None:
    short = ("trainer.max_steps=2", "metric.per_class=1")
    row = running.train_job(replace(study, settings=(*study.settings, *short), steps=()), study.jobs[0])
    assert row["broken"] == ""
    assert math.isfinite(row["val_loss"])


def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tuple(plan.Job({"rule": "gated", "seed": seed}, (f"seed={seed}",)) for seed in range(4))
    study = plan.Study("tiny", "?", (), jobs)
    asked: list[int] = []

    def train_job(_: plan.Study, job: plan.Job) -> dict[str, Any]:
        asked.append(job.row["seed"])
        if len(asked) == 3:
            raise SystemExit(143)
        return job.row | {"val_loss": 0.1 * job.row["seed"], "norm_10": [1.0, 2.0], "broken": "", "commit": "12345678"}

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "RESULTS", tmp_path)
    monkeypatch.setattr(running, "train_job", train_job)
    with pytest.raises(SystemExit):
        running.run(study)
    running.run(study)
    assert asked == [0, 1, 2, 2, 3]
    found = rows.read("tiny")
    assert [row["seed"] for row in found] == [0, 1, 2, 3]
    assert found[1] == {
        "rule": "gated", "seed": 1, "val_loss": 0.1, "norm_10": [1.0, 2.0], "broken": "", "commit": "12345678",
    }  # fmt: skip
    running.run(study)
    assert len(asked) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.csv"]


@pytest.mark.parametrize("name", COMPARED)
def test_means_intervals_and_signs_by_numpy_alone(name: str) -> None:
    by, base, where = COMPARED[name]
    found = [row for row in rows.read(name) if all(row[key] == value for key, value in where.items())]
    for metric, higher in (("val_loss", False), ("frechet_pixels", False), ("accuracy", True)):
        groups = compare.grouped(found, metric, lambda row: row[by])
        if len(groups) < 2 or min(map(len, groups.values())) < 2:
            pytest.skip(f"fewer than two seeds of {name} are there")
        p = {}
        lines = {line.name: line for line in compare.compare(groups, base, higher)}
        for group, values in groups.items():
            mine = recompute.summed(list(values.values()))
            line = lines[group]
            assert (line.values.mean, line.values.low, line.values.sd) == pytest.approx(
                (mine["mean"], mine["low"], mine["sd"]), rel=1e-6
            )
            pairs = [values[seed] - groups[base][seed] for seed in values if seed in groups[base]]
            if group != base:
                assert line.less is not None
                less = recompute.summed(pairs)
                assert (line.less.mean, line.less.high) == pytest.approx((less["mean"], less["high"]), rel=1e-6)
                t = less["mean"] / (less["sd"] / math.sqrt(less["n"])) if less["sd"] else 0.0
                p[group] = 2 * recompute.tail(abs(t), less["n"] - 1), less["mean"]
        still = True
        for place, group in enumerate(sorted(p, key=lambda each: p[each][0])):
            alone, mean = p[group]
            still = still and alone < 0.05 / (len(p) - place)
            word = "better" if (mean > 0) == higher else "worse"
            expected = word if still else f"{word}?" if alone < 0.05 else "open"
            if len(groups[group]) < 3:
                expected = "open"
            if lines[group].sign != "equal":
                assert lines[group].sign == expected, (group, metric)


@pytest.mark.parametrize("name", [*plan.STUDIES, "fig6"])
def test_what_is_compared_ran_on_one_machine(name: str) -> None:
    machines: dict[int, set[str]] = {}
    for row in rows.read(name):
        machines.setdefault(row["seed"], set()).add(row.get("machine", ""))  # of the oldest it was not kept
    assert all(len(each) == 1 for each in machines.values()), machines


def test_the_words_are_those_of_the_numbers() -> None:
    seeds = range(5)
    base = {seed: 1.0 + 0.1 * seed for seed in seeds}
    noise_ = [0.01, -0.01, 0.005, -0.005, 0.0]
    groups = {
        "same": dict(base),
        "open": {seed: base[seed] + noise_[seed] for seed in seeds},
        "worse": {seed: base[seed] + 0.5 + noise_[seed] for seed in seeds},
        "plain": base,
        "better": {seed: base[seed] - 0.5 + noise_[seed] for seed in seeds},
    }
    said = compare.told(compare.compare(groups, "plain"))
    assert "Better than `plain`: `better` (-0.5" in said
    assert "Worse than `plain`: `worse` (+0.5" in said
    assert "Open: `open`; a true difference of 0.0" in said
    assert "The same to the last bit: `same`." in said
    assert compare.told([]) == "Nothing can be said yet: fewer than two seeds."
    assert compare.signed([0.1, 0.11, 0.12]) == "above 0"
    assert compare.signed([-0.1, 0.1, 0.12]) == "not settled"
    assert compare.signed([0.1, 0.101]) == "not settled"  # as in a table, two say nothing
    assert compare.slope([1.0, 2.0, 3.0], [2.0, 1.5, 1.0]) == pytest.approx(-0.5)


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, Any], dict[str, float]]:
    """A tiny run's line, and the mean of each unit's time-conditioned alpha at t = 999, read from its weights."""
    kept: dict[str, Any] = {}

    def keep(run: training.Trained) -> dict[str, Any]:
        net: Any = run.module.net
        with torch.no_grad():
            e = net.t_embedder(torch.full((10,), 999))
            kept["own"] = [u.effective("alpha", e).mean().item() for _, u in units(net)]
            kept["weights"] = [u.alpha_time.abs().sum().item() for _, u in units(net)]
        return {}

    small = ("backbone.depth=2", "trainer.max_steps=4", "optimizer.lr=0.05", "optimizer.warmup_steps=0")
    typed = [*plan.NARROW, *small, "residual.time_conditioned=true", "metric.per_class=1"]
    cfg = compose_config("train", typed).cfg
    asked = {3: measures.sensitivity}
    row = training.train(cfg, training.held_out, training.report("accuracy"), measures.gates, keep, during=asked)
    return row, kept


def test_a_run_is_measured_on_its_way_and_at_its_end(trained: Any) -> None:
    row, kept = trained
    assert row["broken"] == ""
    assert len(row["norm_3"]) == len(row["between_3"]) == len(row["alpha"]) == 4
    assert row["between_3"][-1] == 0
    assert min(row["norm_3"]) > 0
    assert 0 <= row["accuracy"] <= 1
    assert row["own_999"] == pytest.approx(kept["own"], rel=1e-5)
    assert min(kept["weights"]) > 0


def test_measuring_on_the_way_changes_nothing() -> None:
    typed = [*plan.NARROW, "backbone.depth=1", "trainer.max_steps=3"]
    measured, plain = (
        training.train(compose_config("train", typed).cfg, training.held_out, during=during)
        for during in ({1: measures.sensitivity, 2: measures.sensitivity}, None)
    )
    assert measured["val_loss"] == plain["val_loss"]
    assert measured["train_loss"] == plain["train_loss"]


def test_a_sweep_becomes_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = {"0": ["exp=e", "seed=0", "residual=gated", "gamma=0.35"], "1": ["exp=e", "seed=1", "residual=resnet"]}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    folder = tmp_path / "0"  # the other has not finished
    for each in ("report", "sensitivity"):
        (folder / each).mkdir(parents=True)
    (folder / "metrics.csv").write_text("step,val/loss\n20,\n40,0.5\n80,0.25\n")
    (folder / "evaluations.csv").write_text("step,frechet_pixels\n40,3.0\n")
    (folder / "report" / "metrics.json").write_text(json.dumps({"rows": [{"frechet_pixels": 1.5, "accuracy": 0.9}]}))
    lines = [f"{step},{unit},{norm}\n" for step, norm in ((20, 1.0), (80, 4.0)) for unit in (0, 1)]
    (folder / "sensitivity" / "sensitivity.csv").write_text("step,unit,norm\n" + "".join(lines))
    (folder / "provenance.json").write_text(json.dumps({"starts": [{"commit": "a" * 40}, {"commit": "a" * 40}]}))
    (folder / "finished.json").write_text("{}")
    monkeypatch.setattr(rows, "RESULTS", tmp_path / "out")
    monkeypatch.setattr("sys.argv", ["gather", str(tmp_path), "small"])
    gather.main()
    gather.main()  # what is there stays
    assert rows.read("small") == [
        {
            "rule": "gated", "case": "gated gamma=0.35", "seed": 0, "steps": 80, "val_loss": 0.25,
            "frechet_pixels": 1.5, "accuracy": 0.9, "frechet_pixels_40": 3, "norm_first": [1.0, 1.0],
            "norm_last": [4.0, 4.0], "commit": "a" * 12, "machine": training.machine(),
        }
    ]  # fmt: skip


def test_the_rate_of_each_depth_is_the_best_of_its_rules() -> None:
    swept = [row for row in rows.read("fig7") if row["stage"] == "rate"]
    wanted = len(plan.UNITS) * 2 * len(plan.RATES) * 2
    if len(swept) < wanted:
        pytest.skip(f"{len(swept)} of {wanted} runs of the rates are there")
    for depth in plan.UNITS:
        losses: dict[float, list[float]] = {}
        for row in swept:
            if row["units"] == depth:
                losses.setdefault(row["lr"], []).append(math.inf if row["val_loss"] is None else row["val_loss"])
        mean = {lr: np.mean(values) for lr, values in losses.items()}
        assert min(mean, key=lambda lr: mean[lr]) == plan.DEPTH_RATE[depth]


def test_the_rate_of_each_rule_on_the_unet_is_its_best() -> None:
    for rule in plan.PAPER:
        losses: dict[float, list[float]] = {}
        for row in rows.read("fig6_unet_rates"):
            if row["rule"] == rule:
                losses.setdefault(row["lr"], []).append(row["val_loss"])
        if len(losses) < 3:
            pytest.skip("the rates have not been tried yet")
        assert min(losses, key=lambda lr: np.mean(losses[lr])) == plan.UNET_RATE[rule]


def test_what_it_would_take_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "forward", lambda exp, depth: depth)
    found = needs.count("fig7")
    steps, batch = 100_000, 40
    assert found["runs"] == 3 * 12
    assert found["flops"] == 3 * 3 * steps * batch * 3 * (14 + 28 + 42 + 56)
    assert found["days"] == pytest.approx(found["flops"] / (0.4 * 989.4e12) / 86_400)
    assert json.loads(needs.RESULT.read_text())["asked"].keys() == needs.ASKED.keys()


def test_so_many_pairs_find_a_difference() -> None:
    n = compare.pairs_for(sd=1.0, difference=0.5)
    assert resolvable(1.0, n) <= 0.5 < resolvable(1.0, n - 1)


def test_rules_are_told_over_all_optimizers_and_targets() -> None:
    best = [
        {"optimizer": o, "target": t, "rule": rule, "seed": seed, "val_loss": scale * worse * (1 + 0.1 * seed)}
        for o, t, scale in (("AdamW", "v", 1.0), ("Muon", "x0", 0.1))
        for rule, worse in (("resnet", 1.0), ("gated", 1.5 if o == "Muon" else 1.1))
        for seed in range(2)
    ]
    half_done = {"optimizer": "AdamW", "target": "v", "seed": 2}
    best += [half_done | {"rule": rule, "val_loss": 1.0} for rule in ("resnet", "gated")]
    found = _over_all(best)
    assert found["resnet"] == {0: 1.0, 1: 1.0}
    assert found["gated"] == pytest.approx({0: 1.3, 1: 1.3})


def test_controls_on_the_unet_stand_beside_the_rules_of_their_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(name: str, seed: int, loss: float) -> dict[str, Any]:
        return {"seed": seed, "val_loss": loss + 0.001 * seed, "frechet_pixels": loss + 0.01 * seed, **of(name)}

    def of(name: str) -> dict[str, Any]:
        return {"rule": name, "lr": plan.UNET_RATE[name]} if name in plan.PAPER else {"case": name}

    rules = [row(name, seed, 0.1) for seed in range(4) for name in plan.PAPER]
    controls = [row(name, seed, 0.2) for seed in range(3) for name in plan.UNET_CONTROLS]
    monkeypatch.setattr(variants, "read", lambda name: controls)
    said = variants._elsewhere_controls(tmp_path, "fig6_unet", "the U-Net", rules)
    assert "seeds 0 to 2" in said  # what has not all controls yet is left out
    for name in ("gated", "rezero", *plan.UNET_CONTROLS):
        assert f"| `{name}` |" in said
    assert "| `adaln` |" not in said
    assert (tmp_path / "fig6_unet_controls.png").is_file()
    monkeypatch.setattr(variants, "read", lambda name: [])
    assert variants._elsewhere_controls(tmp_path, "fig6_unet", "the U-Net", rules) == ""


def test_the_noise_floor_is_the_standard_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [1.0, 2.0, 4.0]
    lines = [{"case": "epsilon, hybrid (DiT)", "frechet_pixels": value} for value in values]
    monkeypatch.setattr(noise, "read", lambda name: lines if name == "objectives" else [])
    (line,) = noise.floor()
    assert line["standard deviation"].startswith(f"{np.std(values, ddof=1):.2g} [")
    assert float(line["3 seeds find"]) > float(line["10 seeds find"]) > 0


def test_claims_stand_under_what_became_of_them() -> None:
    def answer(title: str, verdict: str, needs: str = "GPUs", body: str = "") -> page.Answer:
        return page.Answer(title, f"claim of {title}", verdict, f"line of {title}", body, needs, "make it", "a.csv")

    said = page.concluded(
        [
            answer("Yes? (Fig. 6)", "holds, at equal time too", body="text\n![what](a.png)"),
            answer("No?", "does not hold: worse"),
            answer("Unseen?", "not seen at equal steps"),
            answer("Order?", "rank correlations"),
            replace(answer("Other?", "ranked", needs=""), claim="(not of the paper)"),
        ]
    )
    parts = dict(part.split("\n", 1) for part in said.split("## ") if "\n" in part)
    below = {heading: [line for line in text.splitlines() if line] for heading, text in parts.items()}
    headings = [line[3:] for line in said.splitlines() if line.startswith("## ")]
    assert headings == [*page.CONCLUSIONS, "Beside the paper"]
    order = [line.lstrip("# ") for line in said.splitlines() if line.startswith("##")]
    assert order == [
        "Not so at this scale", "No?", "Not to be told here", "Unseen?", "Seen at this scale", "Yes? (Fig. 6)",
        "Beside the paper", "Order?", "Other?",
    ]  # fmt: skip
    assert "![what](a.png)" in below["Yes? (Fig. 6)"]
    assert "README.md#yes-fig-6" in said
    assert "The paper: claim of No?. Here: **does not hold: worse**." in below["No?"]
    assert not any(line.startswith("The paper") for line in below["Other?"])


def test_a_page_without_its_marks_is_refused() -> None:
    assert page.with_block(f"a\n{page.BEGIN}\nold\n{page.END}\nb", "new") == f"a\n{page.BEGIN}\nnew\n{page.END}\nb"
    with pytest.raises(ValueError, match="one line"):
        page.with_block("nothing", "new")
