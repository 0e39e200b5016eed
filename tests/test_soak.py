"""The soak: its page, that it sees a broken promise, and some of its trials."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from benchmarks import outcomes
from benchmarks.fuzz import run as fuzz
from benchmarks.fuzz import training as fuzz_training
from benchmarks.soak import page
from benchmarks.soak.cases import CASES
from benchmarks.soak.injuries import INJURIES
from benchmarks.soak.run import COLUMNS, KEPT, append, drawn, read, soak
from benchmarks.soak.run import main as soak_main
from benchmarks.soak.trial import Fault, Trial, differences, reference_of

from neural_rdm.cli.app import Arguments, preflight


def test_the_page_is_that_of_the_rows() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "run python -m benchmarks.soak.page"


def test_every_fault_of_the_table_was_looked_into() -> None:
    rows = read()
    faults = {(int(row["seed"]), int(row["trial"])) for row in rows if row["outcome"] not in KEPT}
    assert faults == set(page.explained())
    assert len({(row["seed"], row["trial"], row["commit"]) for row in rows}) == len(rows)


def test_every_fault_of_the_training_fuzz_was_looked_into() -> None:
    rows = json.loads(fuzz.RESULT.read_text(encoding="utf-8"))["rows"]
    faults = [
        (row["seed"], fault["case"]) for row in rows if row["subject"] == fuzz.TRAINING for fault in row["faults"]
    ]
    assert sorted(faults) == sorted(case for cases in page.REPAIRED.values() for case in cases)


def test_what_is_drawn_follows_from_seed_and_number() -> None:
    first, again = drawn(7, 3), drawn(7, 3)
    assert first[:2] == again[:2]
    assert first[2].random() == again[2].random()
    names = {drawn(i, 0)[1].name for i in range(2000)}
    possible = {injury.name for injury in INJURIES if any(injury.fits(case) for case in CASES)}
    assert names == possible
    case, injury, _ = drawn(0, 0, cases="^sample$", injuries="SIGTERM$")
    assert (case.name, injury.name) == ("sample", "SIGTERM")


@pytest.mark.parametrize("run", [fuzz.main, soak_main])
def test_what_is_no_option_is_refused_in_a_sentence(run: Callable[[list[str]], None]) -> None:
    with pytest.raises(SystemExit, match=r"takes .*seed=.*, not colour=red"):
        run(["colour=red"])
    with pytest.raises(SystemExit, match=r"seed=x is not of its kind \(int\)"):
        run(["seed=x"])


def test_rows_are_kept_as_they_land(tmp_path: Path) -> None:
    table = tmp_path / "soak.csv"
    for number in range(2):
        append(table, dict.fromkeys(COLUMNS, "a, b") | {"trial": number})
    assert [row["trial"] for row in read(table)] == ["0", "1"]
    assert read(table)[1]["detail"] == "a, b"


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A trial of which nothing has run: its result is the reference's."""
    reference = tmp_path / "references" / "x" / "cwd" / "run"
    (reference / "checkpoints").mkdir(parents=True)
    (reference / "metrics.csv").write_text("step\n1\n")
    made = Trial(CASES[0], INJURIES[0], random.Random(0), tmp_path, reference, 1.0)
    (made.folder / "checkpoints").mkdir(parents=True)
    (made.folder / "metrics.csv").write_text("step\n1\n")
    (made.folder / "throughput.csv").write_text("its own time")
    return made


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("run/metrics.csv", "step\n2\n", "different"),
        ("run/samples/final.png", "new", "different"),
        ("run/.lock", "", "different"),
        (".metrics.csv.42.tmp", "", "left behind"),
        ("somewhere else", "", "left behind"),
    ],
)
def test_a_broken_promise_is_seen(trial: Trial, name: str, content: str, kind: str) -> None:
    assert trial._same("went on") == "went on"
    (trial.cwd / name).parent.mkdir(exist_ok=True)
    (trial.cwd / name).write_text(content)
    with pytest.raises(Fault) as fault:
        trial._same("went on")
    assert fault.value.kind == kind
    assert differences(trial.reference, trial.reference) == []


def test_the_step_that_a_run_was_stopped_at_is_kept_in_place_of_another(trial: Trial) -> None:
    (trial.reference / "checkpoints" / "step=000000006.ckpt").touch()
    (trial.folder / "checkpoints" / "step=000000007.ckpt").touch()
    with pytest.raises(Fault, match="is missing"):
        trial._same("went on")
    session: Any = SimpleNamespace(said=lambda: "SIGTERM: waiting for this step, which is then saved")
    trial.sessions.append(session)
    with pytest.raises(Fault, match="is missing"):  # the newest one has to be there
        trial._same("went on")
    for folder in (trial.reference, trial.folder):
        (folder / "checkpoints" / "step=000000008.ckpt").touch()
    assert trial._same("went on") == "went on"


def test_what_was_reported_as_saved_has_to_be_there(trial: Trial) -> None:
    (trial.folder / "checkpoints" / "step=000000004.ckpt").touch()
    assert trial._kept("Saved last was step 4; continue with resume=run") == 4
    with pytest.raises(Fault, match="step 6 was reported as saved"):
        trial._kept("stopped by SIGTERM after step 6, which is saved.")


@pytest.mark.end_to_end
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    reference, length = reference_of(CASES[0], tmp_path)
    trial = Trial(CASES[0], INJURIES[0], random.Random(1), tmp_path, reference, length)
    trial.moment = 0.7
    assert trial.run() in ("went on", "finished")


@pytest.mark.full
@pytest.mark.end_to_end
def test_two_minutes_of_it(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as work:  # sockets of workers lie below it, which `tmp_path` is too long for
        rows = soak(minutes=2, seed=2026, table=tmp_path / "soak.csv", work=Path(work))
    assert rows
    assert [row for row in rows if row["outcome"] not in KEPT] == []


QUICK = "run folders|checkpoints|shared|gates|latents|weights|pictures|tars|annotations|samples"


@pytest.mark.parametrize("cases", [400, pytest.param(4000, marks=pytest.mark.full)])
def test_damaged_inputs_are_read_or_refused(cases: int) -> None:
    found = fuzz.fuzz(cases=cases, seed=1, subjects=QUICK if cases == 400 else "")
    assert [row["faults"] for row in found if row["faults"]] == []
    assert sum(row["cases"] for row in found) > cases / 2


def test_a_fault_is_told_without_places_of_the_machine() -> None:
    told = 'sweep=3.5: File "/home/me/lib/site-packages/omegaconf/a.py" | File "/a/b/src/neural_rdm/c.py"'
    kept = 'sweep=3.5: File "omegaconf/a.py" | File "src/neural_rdm/c.py"'
    assert outcomes.placeless(told) == kept
    assert outcomes.placeless("dit: x=/dev/zero y=1") == "dit: x=/dev/zero y=1"
    trial = 'File "/me/lib/python3.11/re.py" | folder /tmp/a/trial/cwd/run | "/me/lib/python3.11/site-packages/a.py"'
    assert outcomes.placeless(trial) == 'File "re.py" | folder run | "a.py"'
    assert "site-packages" not in fuzz.RESULT.read_text(encoding="utf-8")


def test_the_fuzz_sees_what_is_wrong_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Path) -> fuzz.Case:
        def case(draw: random.Random) -> str:
            match draw.randrange(3):
                case 0:
                    raise KeyError("a bug")
                case 1:
                    raise fuzz.Wrong("another number")
            return "read"

        return case

    monkeypatch.setattr(fuzz, "SUBJECTS", {"broken": (broken, 1.0)})
    (row,) = fuzz.fuzz(cases=20)
    assert row["traceback"] > 0 < row["wrong"]
    assert row["traceback"] + row["wrong"] + row["read"] == 20
    assert len(row["faults"]) == row["traceback"] + row["wrong"]
    (longer,) = fuzz.fuzz(cases=30, held=[row])
    assert longer["cases"] == 30
    assert longer["faults"][: len(row["faults"])] == row["faults"]
    (other,) = fuzz.fuzz(cases=5, seed=1, held=[row])
    assert other["cases"] == 5


OUTPUT = {"refused": "error: seed=-1: must be between 0 and 9\n", "trained": "run folder run\nfinished 2 steps\n"}


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., str]:
    """Judges a case of `fuzz_training` of which nothing has run, from what it is said to have left."""
    run = tmp_path / "run"

    def judge(said: str, code: int, spent: float = 0.1, why: str = "", loss: str = "0.5", **wrong: Any) -> str:
        (tmp_path / "output.txt").write_text(said)
        (tmp_path / "spent.json").write_text(json.dumps({"code": code, "spent": spent, "loaded": 0.0}))
        if code == 0 or wrong:
            content = {"global_step": 2, "weight": 1.0, "seed": 3} | wrong
            (run / "checkpoints").mkdir(parents=True)
            (run / "finished.json").write_text(json.dumps({"global_step": content["global_step"]}))
            (run / "metrics.csv").write_text(f"step,train/loss\n1,0.5\n2,{loss}\n")
            (run / "config.yaml").write_text(f"seed: {content['seed']}\n")
            weights = {"state_dict": {"net.w": torch.tensor([1.0, content["weight"]])}}
            torch.save(weights, run / "checkpoints" / "step=000000002.ckpt")
        return fuzz_training.judged(why, [], ["seed=3"] if code == 0 else ["seed=-1"], tmp_path)[0]

    return judge


@pytest.mark.parametrize("outcome", OUTPUT)
def test_a_case_that_trains_or_is_refused_is_right(told: Callable[..., str], outcome: str) -> None:
    assert told(OUTPUT[outcome], 0 if outcome == "trained" else 2) == outcome


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        ("traceback", {"said": "Traceback (most recent call last):\nKeyError: 3\n", "code": 1}),
        ("slow", {"said": OUTPUT["refused"], "code": 2, "spent": 1.6}),
        ("unnamed", {"said": "error: no\n", "code": 2}),
        ("hang", {"said": "", "code": 2, "why": "no end in 9 s"}),
        ("crash", {"said": "", "code": 2, "why": "ended by SIGSEGV"}),
        ("wrong", {"said": "error: a\nerror: b\n", "code": 2}),
        ("wrong", {"said": OUTPUT["refused"], "code": 2, "global_step": 2}),  # its folder stays
        ("wrong", {"said": OUTPUT["trained"], "code": 0, "global_step": 1}),
        ("wrong", {"said": OUTPUT["trained"], "code": 0, "loss": "nan"}),
        ("wrong", {"said": OUTPUT["trained"], "code": 0, "weight": math.inf}),
        ("wrong", {"said": OUTPUT["trained"], "code": 0, "seed": 0}),
    ],
)
def test_what_a_case_has_broken_is_seen(told: Callable[..., str], kind: str, case: dict[str, Any]) -> None:
    with pytest.raises(fuzz.Wrong) as broken:
        told(**case)
    assert broken.value.kind == kind


def test_every_family_of_the_training_fuzz_can_be_trained(tmp_path: Path) -> None:
    fuzz_training.make_inputs(tmp_path)
    for _, base in fuzz_training.FAMILIES.values():
        arguments = Arguments.parse([o.replace("{place}", str(tmp_path)) for o in base])
        assert preflight("train", arguments) is None
