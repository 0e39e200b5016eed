"""What all figures share: names at the ends of lines stand apart, and lines look different."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.reports.figures import _apart, canvas, label_ends, look, tidy


@given(st.lists(st.floats(-2, 3), min_size=1, max_size=14))
def test_names_stand_apart_in_the_order_of_their_lines(wanted: list[float]) -> None:
    found = _apart([(str(i), value) for i, value in enumerate(wanted)], gap=0.05)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    heights = [found[str(i)] for i in order]
    assert all(b - a > 0.0499 for a, b in pairwise(heights))
    assert abs(sum(heights) / len(heights) - sum(min(max(w, 0), 1) for w in wanted) / len(wanted)) < 1e-6


def test_a_name_with_room_stands_at_its_line() -> None:
    figure = canvas(6, 4)
    axes = tidy(figure.add_subplot())
    axes.set_ylim(0, 10)
    label_ends(axes, {"low": (1.0, "red"), "high": (9.0, "blue")})
    assert [(text.get_text(), round(text.get_position()[1], 6)) for text in axes.texts] == [("low", 0.1), ("high", 0.9)]


def test_looks_differ() -> None:
    assert len({(each["color"], each["linestyle"]) for each in map(look, range(24))}) == 24
