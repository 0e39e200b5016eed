"""Which captions are drawn: all different, the first of every image first; and which are too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.core.errors import BrokenSample
from neural_rdm.data.prompts import blank, distinct, too_long

words = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3), min_size=1, max_size=12)


@given(words, st.integers(0, 20), st.integers(0, 20))
def test_prompts_are_different_and_fewer_are_the_first_of_more(said: list[list[str]], few: int, many: int) -> None:
    every = {caption for captions in said for caption in captions}
    found = list(distinct(many, range(len(said)), said.__getitem__))
    assert len(found) == len(set(found)) == min(many, len(every))
    assert list(distinct(min(few, many), range(len(said)), said.__getitem__)) == found[: min(few, many)]
    assert set(distinct(99, range(len(said)), said.__getitem__)) == every


def test_every_image_comes_before_one_comes_twice() -> None:
    said = [[f"{image} {which}" for which in range(5)] for image in range(40)]
    found = list(distinct(100, range(40), said.__getitem__))
    assert {c.split()[0] for c in found[:40]} == {str(i) for i in range(40)}
    assert {c.split()[1] for c in found[:40]} == {"0"}
    assert {c.split()[1] for c in found[40:80]} == {"1"}
    assert found[:40] != sorted(found[:40], key=lambda c: int(c.split()[0])), "a first class of a sorted set only"


def test_images_keep_their_order_where_some_are_missing() -> None:
    said = {i: [str(i)] for i in range(20)}
    kept = [i for i in said if i not in (3, 11)]
    stored = list(distinct(99, kept, lambda place: said[kept[place]]))

    def read(index: int) -> list[str]:
        if index in (3, 11):
            raise BrokenSample("gone", "x")
        return said[index]

    assert stored == list(distinct(99, range(20), read))


def test_blank_texts() -> None:
    assert all(map(blank, ("\u3164", "\u2800 ", "\ufe0f", "\u0301")))  # fillers and marks that stand on nothing
    assert not any(map(blank, ("e\u0301", "\u2764\ufe0f", "7", "\u0e01")))
    assert [blank(text) for text in ("", " \n", "\u200b\ufeff", "a", "!", "\u732b")] == [True] * 3 + [False] * 3


def test_the_line_on_long_captions() -> None:
    class Words:
        max_length = 3

        def cut(self, captions):
            return {c: (len(c.split()), " ".join(c.split()[3:])) for c in captions if len(c.split()) > 3}

    line = too_long(Words(), ["a b", "a b c d e", "a b c d e", "a b c d"])
    assert line.startswith("3 of 4 captions looked at are longer than condition.max_length=3 tokens, the longest has 5")
    assert "loses 'd e'" in line
    assert too_long(Words(), ["a"]) == ""
