"""The page that shows a run's pictures: well formed, escaped, without anything from elsewhere, and never stale."""

from __future__ import annotations

import os
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

from neural_rdm.core.errors import ConfigError
from neural_rdm.reports.live import write_page

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with their attributes, the text of each kind of element, and whether every element is closed in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and data.strip():
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def picture(path, seconds=1000):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture")
    os.utime(path, (seconds, seconds))


def test_page_shows_pictures_with_captions_in_order(tmp_path):
    picture(tmp_path / "losses.png")
    picture(tmp_path / "sensitivity" / "gates.png")
    path = write_page(
        tmp_path, "digits, step 200", {"sensitivity/gates.png": "Gates", "losses.png": "Loss"}, refresh_seconds=30
    )
    assert path == tmp_path / "index.html"
    page = Page(path)
    assert page.texts["title"] == page.texts["h1"] == ["digits, step 200"]
    assert page.texts["figcaption"] == ["Gates", "Loss"]
    assert [urlsplit(image["src"]).path for image in page.all("img")] == ["sensitivity/gates.png", "losses.png"]
    assert [image["alt"] for image in page.all("img")] == ["Gates", "Loss"]
    assert [link["href"] for link in page.all("a")] == [image["src"] for image in page.all("img")]
    assert [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "refresh"] == ["30"]


def test_a_finished_run_does_not_reload(tmp_path):
    page = Page(write_page(tmp_path, "done", {}, refresh_seconds=None))
    assert not any("http-equiv" in meta for meta in page.all("meta"))


def test_page_says_when_it_was_written(tmp_path):
    text = Page(write_page(tmp_path, "run", {}, None)).texts["p"][0]
    found = re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?= UTC)", text)
    assert found
    written = datetime.strptime(found[0], "%Y-%m-%d %H:%M:%S").replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - written) < timedelta(minutes=1)


def test_a_new_picture_has_a_new_address_and_an_old_one_keeps_its_own(tmp_path):
    def addresses():
        return [image["src"] for image in Page(write_page(tmp_path, "run", pictures, 5)).all("img")]

    pictures = {"a.png": "A", "b.png": "B"}
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    before = addresses()
    picture(tmp_path / "a.png", seconds=1001)
    after = addresses()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_picture_that_is_not_there_yet_is_announced(tmp_path):
    page = Page(write_page(tmp_path, "run", {"gates.png": "Gates"}, 5))
    assert not page.all("img")
    assert page.texts["figcaption"] == ["Gates"]
    assert "gates.png" in page.texts["div"][0]


def test_text_and_names_are_escaped(tmp_path):
    nasty = "<script>alert('1')</script> & \"γ = 1\""
    name = "a b#c?d%20\"'&.png"
    picture(tmp_path / name)
    page = Page(write_page(tmp_path, nasty, {name: nasty, "<b>.png": nasty}, 5))
    assert not page.all("script")
    assert not page.all("b")
    assert page.texts["h1"] == [nasty]
    assert page.texts["figcaption"] == [nasty, nasty]
    (image,) = page.all("img")
    assert image["alt"] == nasty
    assert unquote(urlsplit(image["src"]).path) == name


def test_page_loads_nothing_but_its_pictures(tmp_path):
    picture(tmp_path / "a.png")
    path = write_page(tmp_path, "run", {"a.png": "A"}, 5)
    assert {tag for tag, _ in Page(path).tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert not re.search(r"https?:|//|@import|url\(", path.read_text(encoding="utf-8"))
    assert "color-scheme: light dark" in path.read_text(encoding="utf-8")


def test_page_is_replaced_and_leaves_no_other_file(tmp_path):
    write_page(tmp_path / "new", "one", {}, 5)
    path = write_page(tmp_path / "new", "two", {}, None)
    assert Page(path).texts["h1"] == ["two"]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["index.html"]


@pytest.mark.parametrize("seconds", [0, -5])
def test_a_page_cannot_reload_without_pause(tmp_path, seconds):
    with pytest.raises(ConfigError, match="at least 1"):
        write_page(tmp_path, "run", {}, seconds)
    assert not (tmp_path / "index.html").exists()
