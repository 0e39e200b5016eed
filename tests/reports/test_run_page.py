"""The page of a run and the list of all runs, opened in a real browser, while runs train and after."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from neural_rdm.core.files import write_text
from neural_rdm.core.locks import held
from neural_rdm.reports.pages import index, run
from neural_rdm.reports.pages.charts import draw
from neural_rdm.reports.runs import read_mapping
from tests.browser import Browser, browser
from tests.reports.page_runs import EVIL, EVIL_ERROR, make_run, make_sweep
from tests.reports.test_page import DESKTOP, FAINT, FOCUSED, PHONE, REACHABLE


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def place(root: Path, name: str, command: str = "train") -> Path:
    return root / "outputs" / command / "exp" / name


def described(folder: Path, **more: Any) -> Path:
    """A run with a name, tags and notes."""
    config = {**read_mapping(folder / "config.yaml"), **more}
    write_text(folder / "config.yaml", yaml.safe_dump(config))
    return folder


def stored(root: Path) -> dict[str, Any]:
    return json.loads((root / "outputs" / "index.json").read_text())


def test_the_page_of_a_run_shows_all_of_it_and_asks_for_nothing(tmp_path: Path, tab: Browser) -> None:
    folder = make_run(place(tmp_path, "a"), "gated", 1, True)
    described(folder, name=EVIL, tags=["deep", "<i>"], notes=EVIL_ERROR)
    path = run.write_page(folder)
    for size, dark in ((PHONE, False), (DESKTOP, True)):
        tab.open(path, *size, dark)
        assert tab.run("document.documentElement.scrollWidth") == size[0]
        assert tab.run(FAINT) == []
        assert [each for each in tab.requests() if not each.startswith("data:")] == [path.resolve().as_uri()]
        assert tab.complaints() == []
        assert tab.run("document.title") == EVIL
    text = tab.run("document.body.innerText")
    for words in ("finished: 40 steps", EVIL_ERROR, "deep", "gated", "0123456789abcdef", "2.13.0", "accuracy", "run="):
        assert words in text, words
    charts = tab.run("[...document.querySelectorAll('.axes > svg')].map((n) => n.getAttribute('aria-label'))")
    assert charts[0].startswith("Loss against optimizer step")
    assert "Sensitivity" in charts[1]
    assert tab.run("document.querySelector('#samples ~ figure img').naturalWidth") > 20
    assert "residual:" in tab.run("document.querySelector('details pre').textContent")
    for _ in range(tab.run(REACHABLE)):
        tab.press("Tab")
        assert not str(tab.run(FOCUSED)).startswith(("none", "None"))


def test_a_run_that_trains_is_shown_with_what_there_is_and_reads_itself_again(tmp_path: Path) -> None:
    folder = place(tmp_path, "a")
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", "trainer: {max_steps: 50}\n")
    with held(folder, "train"):
        page = run.write_page(folder).read_text()
        assert "training: step 0 of 50" in page
        assert f'data-reload="{run.RELOAD}"' in page
        write_text(folder / "metrics.csv", "step,train/loss\n10,0.5\n20,nan\n30,0.4\n")
        assert "training: step 30 of 50" in run.write_page(folder).read_text()
    write_text(folder / "output.log", "# 2026-01-01 00:00:00 python\nerror: the disk is full\n")
    page = run.write_page(folder).read_text()
    assert "failed at step 30 of 50: the disk is full" in page
    assert "data-reload" not in page
    assert "resume=" in page


def test_the_list_has_every_run_and_sweep_and_can_be_searched(tmp_path: Path, tab: Browser) -> None:
    described(make_run(place(tmp_path, "a"), "gated", 0, True), name="first one", tags=["deep"])
    make_run(place(tmp_path, "b"), "resnet", 1, False)
    make_sweep(place(tmp_path, "c", "sweep"))
    index.tell(place(tmp_path, "c", "sweep") / "0")
    path = tmp_path / "outputs" / "index.html"
    for size, dark in ((PHONE, True), (DESKTOP, False)):
        tab.open(path, *size, dark)
        assert tab.run("document.documentElement.scrollWidth") == size[0]
        assert tab.run(FAINT) == []
        assert tab.complaints() == []
        assert [each for each in tab.requests() if not each.startswith("data:")] == [path.resolve().as_uri()]
    runs = tab.run("[...document.querySelectorAll('.runs > li')].map((n) => n.innerText)")
    assert len(runs) == 3
    words = [next(each for each in runs if name in each) for name in ("first one", "train/exp/b", "sweep/exp/c")]
    assert "finished: 40 steps" in words[0]
    assert "accuracy 0.9" in words[0].replace("\n", " ")
    assert "stopped at step 20 of 40" in words[1]
    assert "0 of 9 jobs finished, 1 failed" in words[2]
    assert tab.run("document.querySelector('.thumbnail img').naturalWidth") > 20
    tab.run("document.getElementById('find').focus()")
    tab.call("Input.insertText", text="DEEP finished")
    assert tab.run("[...document.querySelectorAll('.runs > li')].filter((n) => n.checkVisibility()).length") == 1
    assert tab.run("document.getElementById('found').textContent") == "1 of 3 shown"


def test_a_command_reads_only_what_may_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make_run(place(tmp_path, name), "gated", 0, True) for name in "abc"]
    for folder in folders:
        index.tell(folder)
    read: list[str] = []
    entry = index._entry
    monkeypatch.setattr(index, "_entry", lambda folder, *more: read.append(folder.name) or entry(folder, *more))
    index.tell(folders[1])
    assert read == ["b"]
    make_run(place(tmp_path, "new"), "gated", 0, True)  # of a command that could not tell it
    (folders[2] / "config.yaml").rename(tmp_path / "elsewhere")
    for file in folders[2].iterdir():  # and one that is gone
        os.unlink(file) if file.is_file() else None
    for file in sorted(folders[2].rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    folders[2].rmdir()
    index.tell(folders[0])
    assert read == ["b", "a", "new"]
    assert sorted(stored(tmp_path)) == ["train/exp/a", "train/exp/b", "train/exp/new"]


def test_a_run_that_was_killed_is_found_out_by_the_next_command(tmp_path: Path) -> None:
    killed, other = place(tmp_path, "a"), make_run(place(tmp_path, "b"), "gated", 0, True)
    make_run(killed, "gated", 0, False)
    with held(killed, "train"):
        index.tell(killed)
        assert stored(tmp_path)["train/exp/a"]["state"] == "training"
    index.tell(other)
    assert stored(tmp_path)["train/exp/a"]["state"] == "stopped"


def test_nothing_fails_for_a_list_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(place(tmp_path, "a"), "gated", 0, True)
    (tmp_path / "outputs" / "index.json").write_text('{"train/exp/a": {"path": 3}, "x": []}')
    index.tell(folder)
    assert list(stored(tmp_path)) == ["train/exp/a"]  # what was damaged is read anew
    (tmp_path / "outputs" / "index.html").unlink()
    (tmp_path / "outputs" / "index.html").mkdir()
    index.tell(folder)
    assert "its place in the list of runs is not up to date" in capsys.readouterr().err
    index.tell(make_run(tmp_path / "elsewhere", "gated", 0, True))  # in no folder `outputs`
    assert capsys.readouterr().err == ""


def test_a_chart_has_round_marks_and_breaks_where_nothing_was_recorded() -> None:
    drawn = draw("Loss", "step", {"train": [(0, 1.0), (10, float("nan")), (20, 3.0), (40, 2.0)], "val": []}, most=100)
    assert drawn is not None
    assert [piece.count(",") for piece in drawn.strokes[0].pieces] == [1, 2]
    assert drawn.strokes[0].pieces[1].startswith("20.00,")
    assert [words for _, words in drawn.x] == ["0", "20", "40", "60", "80", "100"]
    assert drawn.legend == [(0, "train")]
    assert drawn.alt == "Loss against step, up to 40. Last values: train 2"
    wide = draw("Loss", "step", {"train": [(i, 10.0 ** (-i / 50)) for i in range(1000)]})
    assert wide is not None
    assert [stroke.pale for stroke in wide.strokes] == [True, False]
    assert max(piece.count(",") for stroke in wide.strokes for piece in stroke.pieces) <= 300
    assert draw("Loss", "step", {"train": [(0, float("nan"))]}) is None
