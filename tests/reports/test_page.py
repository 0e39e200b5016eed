"""The page of a comparison, opened in a real browser: complete, harmless, and readable on any screen, by keyboard."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from neural_rdm.config.provenance import read_provenance, write_provenance
from neural_rdm.core.errors import DataError
from neural_rdm.reports.pages.comparison import answer, question, write_page
from neural_rdm.reports.pages.origins import origins, shared
from neural_rdm.reports.pages.render import number, told
from neural_rdm.reports.pages.samples import ALL_PIXELS, side_by_side
from neural_rdm.reports.statistics import Interval
from neural_rdm.reports.study import Study, study
from neural_rdm.reports.tables import write_metrics
from tests.browser import Browser, browser
from tests.reports.page_runs import CLASSES, EVIL, EVIL_ERROR, make_run, make_sweep

PHONE, DESKTOP = (360, 740), (1440, 900)

#: contrast of every piece of text with what it stands on, by WCAG 2; those that are too faint
FAINT = """(() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const colour = channels(getComputedStyle(n).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility() || node.closest("script, style")) continue;
    const style = getComputedStyle(node);
    const [a, b] = [light(channels(style.color)), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push([node.outerHTML.slice(0, 80), contrast]);
  }
  return found;
})()"""
#: what a person without a mouse must get to: what can be pressed or followed, and what scrolls
REACHABLE = """[...document.querySelectorAll("a[href], button, summary, [tabindex='0']")]
  .filter((n) => n.checkVisibility()).length"""
FOCUSED = """(() => { const n = document.activeElement; if (n === document.body) return null;
  n.dataset.seen = "1"; return getComputedStyle(n).outlineStyle + " " + getComputedStyle(n).outlineWidth; })()"""


def figures(found: Study, folder: Path) -> dict[str, Path]:
    """A figure for each chart and metric, as large as they are."""
    written = {}
    for name in [*found.charts, *(metric.name.replace("/", "_") for metric in found.metrics), "mixing_gated"]:
        written[name] = folder / f"{name}.png"
        Image.new("L", (1094, 634), 255).save(written[name])
    return written


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    found = study(make_sweep(folder))
    return write_page(found, folder, figures(found, folder))


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_reads_on_every_screen(page: Path, tab: Browser, size: tuple[int, int], dark: bool) -> None:
    tab.open(page, *size, dark=dark)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    missing = "[...document.images].filter((i) => !(i.complete && i.naturalWidth > 0)).length"
    assert tab.run("document.images.length") > 10
    assert tab.run(missing) == 0
    assert tab.run("[document.documentElement.scrollWidth, document.body.scrollWidth]") == [size[0], size[0]]
    assert tab.run(FAINT) == []
    filters = tab.run("[...document.querySelectorAll('img.figure')].map((i) => getComputedStyle(i).filter)")
    assert filters
    assert all((each != "none") == dark for each in filters)  # a dark page turns the figures
    assert [url for url in tab.requests() if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in tab.requests() if url.startswith("file:")]) == 1
    assert tab.complaints() == []
    assert tab.run("document.title") != "harmed"
    assert tab.run("document.querySelectorAll('main b, main script, main img[src=x]').length") == 0


def test_everything_is_reached_by_keyboard_and_seen_there(page: Path, tab: Browser) -> None:
    tab.open(page, *PHONE)
    tab.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    tab.run("new Promise((done) => setTimeout(done, 200))")
    count = tab.run(REACHABLE)
    assert count > 20
    assert tab.run("document.querySelectorAll('.plate:not([tabindex])').length") == 0  # figures scroll on a phone
    outlines = []
    for _ in range(count):
        tab.press("Tab")
        outlines.append(tab.run(FOCUSED))
    assert tab.run("document.querySelectorAll('[data-seen]').length") == count
    assert all(re.fullmatch(r"solid [1-9].*", outline or "") for outline in outlines), outlines
    tab.run("document.querySelector('.scroll').focus()")
    for _ in range(3):
        tab.press("ArrowRight")
    wait = "new Promise((done) => setTimeout(() => done(document.querySelector('.scroll').scrollLeft), 300))"
    assert tab.run(wait) > 0


def test_it_can_be_read_aloud(page: Path, tab: Browser) -> None:
    tab.open(page, *DESKTOP)
    assert tab.run("[...document.images].filter((i) => i.alt.length < 8).length") == 0
    levels = tab.run("[...document.querySelectorAll('h1, h2, h3')].map((h) => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert tab.run(
        "[...document.querySelectorAll('table')].every((t) => t.caption && t.querySelector('th[scope=row]'))"
    )
    assert tab.run("[...document.querySelectorAll('th')].every((t) => t.scope)")
    assert tab.run("document.documentElement.lang") == "en"
    links = tab.run("[...document.querySelectorAll('a')].every((a) => document.querySelector(a.getAttribute('href')))")
    assert links


def test_a_command_is_copied_as_it_is_typed(page: Path, tab: Browser) -> None:
    tab.open(page, *DESKTOP)
    tab.run("document.execCommand = () => true")  # a headless browser has no clipboard; what is selected is what counts
    tab.run("document.querySelectorAll('pre + button')[1].click()")
    tab.run("new Promise((done) => setTimeout(done, 100))")
    lines = tab.run("getSelection().toString()").strip().splitlines()
    assert [re.sub(r" 'data.*", "", line.replace('"', "'")) for line in lines] == [
        f"python -m neural_rdm.train exp=digits_gated residual=resnet seed={seed}" for seed in (0, 1, 2)
    ]


def test_the_page_says_what_the_study_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = study([p.parent for p in sorted(page.parent.glob("*/config.yaml"))])
    assert EVIL not in text
    assert "&lt;script&gt;" in text
    assert EVIL_ERROR in unescape(text)
    assert question(found) == f"How do gated and {EVIL} differ from resnet, by val/loss?"
    for metric in found.metrics:
        for result in metric.results.values():
            assert told(result.interval) in text
            assert result.less is None or told(result.less, signed=True) in text
    assert [labels for words, labels in answer(found.metrics[0]) if "settled" in words]
    assert text.index('id="pending"') < text.index('id="result"')
    assert "step 20 of 40" in text
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", text)


def test_where_runs_come_from(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    found = origins(study(runs).groups, tmp_path)
    assert [each.done for each in found] == [True, True, False, True, True, True, True, True, False]
    assert [each.folder for each in found[:3]] == ["0", "1", ""]
    assert found[2].repeat == ["python -m neural_rdm.train residual=gated seed=2"]  # failed before it left a run
    common, kinds = shared(found)
    assert common["torch"] == "2.13.0"
    assert [list(own) for own, _ in kinds] == [["commit"], ["commit"]]
    # a resume that changed something is repeated too, one that only went on is not
    starts = read_provenance(runs[0])["starts"]
    again = [{"command_line": ["python", "-m", "neural_rdm.train", "resume=x", *more]} for more in ([], ["a.b=1"])]
    write_provenance(runs[0], starts=[*starts, *again])
    first, second = origins(study(runs[:1]).groups, tmp_path)[0].repeat
    assert first.startswith("python -m neural_rdm.train exp=digits_gated residual=gated seed=0 ")
    assert second == "python -m neural_rdm.train resume=last a.b=1"
    # without a word of its own the sweep's file tells it, and a damaged one is not believed
    (runs[1] / "provenance.json").unlink()
    (runs[2] / "provenance.json").write_text("{}")
    told_by_sweep = origins(study(runs[1:3]).groups, tmp_path)
    assert told_by_sweep[0].repeat == ["python -m neural_rdm.train residual=gated seed=1"]
    assert told_by_sweep[1].code == "not recorded"


def test_samples_of_equal_seeds_stand_in_one_column(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    found = side_by_side(study(runs).groups)
    assert found is not None
    assert (found.seed, found.frames, found.columns, len(found.blocks)) == (0, False, CLASSES, 2)
    assert [(row.label, row.note, len(row.pictures)) for row in found.rows] == [
        ("gated", "", 2), ("resnet", "", 2), (EVIL, "", 2)
    ]  # fmt: skip
    assert len({row.pictures[0].width for row in found.rows}) == 1
    assert found.rows[0].pictures[0].width == len(CLASSES) * found.width
    (runs[0] / "samples" / "final.png").rename(runs[0] / "samples" / "step=000000020.png")
    (runs[2] / "samples" / "final.png").unlink()
    noted = side_by_side(study([runs[0], runs[2], *runs[6:7]]).groups)
    assert noted is not None
    assert {row.label: row.note for row in noted.rows} == {
        "gated": "step 20, not the end", EVIL: "seed 1: other noise"
    }  # fmt: skip
    assert noted.missing == ["resnet (no samples yet)"]
    assert side_by_side(study([runs[2]]).groups) is None


def test_clips_are_strips_of_frames_and_play(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path, clips=True)
    found = side_by_side(study([runs[0], runs[2]]).groups)  # two runs: as the paper's Figure 4
    assert found is not None
    assert (found.frames, found.columns) == (True, ["1", "2", "3", "4"])
    assert found.blocks == [f"a clip of {name}" for name in CLASSES]
    assert [len(row.pictures) for row in found.rows] == [3, 3]
    assert [label for label, _ in found.played] == ["gated", "resnet"]
    assert all(clip.uri.startswith("data:image/gif;base64,") for _, clip in found.played)
    assert found.played[0][1].width == 3 * 48  # a clip of each class


def test_many_large_samples_stay_small(tmp_path: Path) -> None:
    runs = make_sweep(tmp_path)
    first = runs[0] / "samples" / "final.png"
    with Image.open(first) as image:
        assert image.height < 1000
    groups: list[Any] = study(runs).groups
    many = side_by_side(groups[:2] * 40)
    assert many is not None
    pixels = sum(p.width * p.height for row in many.rows for p in row.pictures)
    assert pixels <= 1.2 * ALL_PIXELS
    assert len(many.blocks) == 1


def test_of_runs_that_say_little_the_page_says_little(tmp_path: Path) -> None:
    """Samples that were measured without their run, a run that has only begun, and a picture that is damaged."""
    write_metrics(tmp_path / "a" / "report", [{"name": "generated", "accuracy": 0.5}], "how")
    begun = make_run(tmp_path / "b", "gated", 0, done=False)
    for name in ("metrics.csv", "throughput.csv", "sensitivity/sensitivity.csv", "provenance.json"):
        (begun / name).unlink()
    (begun / "samples").mkdir()
    (begun / "samples" / "step=000000020.png").write_bytes(b"no picture")
    text = write_page(study([tmp_path / "a", begun]), tmp_path, {}).read_text(encoding="utf-8")
    assert "step 20 of 40" not in text
    assert "unfinished: nothing saved of 40" in text
    assert text.count("The command was not recorded.") == 2
    assert 'id="costs"' not in text
    assert 'id="samples"' not in text
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken.png cannot be shown"):
        write_page(study([begun]), tmp_path, {"val_loss": broken, "mixing": broken})


def test_numbers_are_told_with_the_digits_that_they_have() -> None:
    assert told(None) == "–"
    assert told(Interval(0.18234, 0.1793, 0.1853, 0.01, 5)) == "0.1823 ± 0.0030"
    assert told(Interval(-12.4, -14.4, -10.4, 1, 5), signed=True) == "−12.4 ± 2.0"
    assert told(Interval(7637.2, 7237.2, 8037.2, 1, 5)) == "7,637 ± 400"
    assert told(Interval(3.2e12, 3.1e12, 3.3e12, 1, 5)) == "3.2e+12 ± 1e+11"
    assert told(Interval(100.0, 100.0, 100.0, 0.0, 2)) == "100 ± 0"
    assert told(Interval(0.25, float("nan"), float("nan"), float("nan"), 1), signed=True) == "+0.25"
    assert (number(753_010), number(0.006185, digits=2), number(None), number(2.0)) == ("753,010", "0.0062", "–", "2")
