"""What a run is called and how far it is, from whatever its folder still holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neural_rdm.reports.runs import labels, progress
from neural_rdm.reports.sweeps import FILE


def make(folder: Path, saved: tuple[int, ...] = (), **files: str) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "report").mkdir()
    for step in saved:
        (folder / "checkpoints" / f"step={step:09d}.ckpt").touch()
    names = {"config": "config.yaml", "finished": "finished.json", "metrics": "metrics.csv"}
    names["numbers"] = "report/metrics.json"
    for name, text in files.items():
        (folder / names[name]).write_text(text)
    return folder


END_300 = '{"global_step": 300}'
PLAN = "trainer: {max_steps: 400}\n"


@pytest.mark.parametrize(
    ("saved", "files", "told"),
    [
        ((), {}, (None, None, None, "not recorded")),
        ((), {"config": PLAN}, (None, 400, False, "unfinished: nothing saved of 400")),
        ((), {"config": PLAN, "metrics": "step\n10\n20\n3"}, (20, 400, False, "unfinished: step 20 of 400")),
        ((20, 30), {"config": PLAN, "metrics": "step\n39\n"}, (30, 400, False, "unfinished: step 30 of 400")),
        ((400,), {"config": PLAN}, (400, 400, False, "unfinished: step 400 of 400")),  # its report is missing
        ((400,), {"config": PLAN, "finished": '{"global_step": 400}'}, (400, 400, True, "finished")),
        # finished once with 300 steps, now training on to 400
        ((350,), {"config": PLAN, "finished": END_300}, (350, 400, False, "unfinished: step 350 of 400")),
        ((30,), {"config": PLAN, "finished": '{"global_'}, (30, 400, False, "unfinished: step 30 of 400")),
        # an evaluation has no checkpoints of its own
        ((), {"config": PLAN, "numbers": '{"facts": {"step": 30}}'}, (30, 400, False, "unfinished: step 30 of 400")),
        ((), {"config": PLAN, "numbers": '{"facts": {"step": 400}}'}, (400, 400, True, "finished")),
        ((), {"config": PLAN, "numbers": '{"rows": [{"name": "generated"}]}'}, (None, 400, None, "not recorded")),
        ((), {"config": "trainer: [1]", "finished": '{"global_step": 5}'}, (5, None, True, "finished")),
    ],
)
def test_how_far_a_run_is(tmp_path: Path, saved: tuple[int, ...], files: dict[str, str], told: tuple) -> None:
    found = progress(make(tmp_path / "run", saved, **files))
    assert (found.done, found.planned, found.finished, str(found)) == told


def test_jobs_of_a_sweep_are_called_by_what_was_swept(tmp_path: Path) -> None:
    runs = [make(tmp_path / "s" / str(n), config=f"residual: {{rule: {rule}}}\n") for n, rule in enumerate(("a", "b"))]
    assert labels(runs) == ["0: a", "1: b"]
    jobs = {str(n): ["exp=x", f"residual={rule}", f"seed={n // 2}"] for n, rule in enumerate("abab")}
    (tmp_path / "s" / FILE).write_text(json.dumps({"arguments": [], "jobs": jobs}))
    assert labels(runs) == ["0: residual=a seed=0", "1: residual=b seed=0"]
    named = make(tmp_path / "named", config="residual: {rule: a}\n")
    assert labels([runs[0], named, make(tmp_path / "t" / "0")]) == ["s/0: residual=a seed=0", "named", "t/0"]
    for damaged in ("", "[]", '{"jobs": {"0": 3}}', '{"jobs": {"0": ["exp=x"]}}'):
        (tmp_path / "s" / FILE).write_text(damaged)
        assert labels(runs[:1]) == ["0: a"]
