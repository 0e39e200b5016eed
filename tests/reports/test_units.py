"""What the figures of single units read from their CSV files and what they draw of it."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.reports import units
from neural_rdm.reports.units import (
    QUANTITIES,
    bin_label,
    grid,
    largest_factor,
    linear_threshold,
    plot_gates,
    plot_heatmap,
    plot_units,
    read_quantities,
    read_units,
)
from tests.reports.figures import keep_figures

HEADER = "step,unit,name,norm,normalized,gain,alpha_mean,alpha_std,beta_norm\n"
KEY = "step,unit,name,t_low,t_high,samples"
UNITS_HEADER = f"{KEY},{','.join(QUANTITIES)}\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    return keep_figures(monkeypatch, units)


def gates(path, steps, count, alpha=True, beta=True):
    """alpha = 1 + step + unit / 8, its deviation 1/4, the norm of beta = unit."""
    lines = [
        f"{step},{unit},blocks.{unit}.attn_unit,{2.0**-unit},{2.0**-unit},{2 if unit + 1 < count else ''},"
        f"{1 + step + unit / 8 if alpha else ''},{0.25 if alpha else ''},{unit if beta else ''}\n"
        for step in steps
        for unit in range(count)
    ]
    path.write_text(HEADER + "".join(lines))
    return path


def record(path, steps, count, bins=((0, 125.0), (125.0, 250)), value=lambda quantity, step, unit, low: 1.0 + unit):
    lines = [
        f"{step},{unit},blocks.{unit}.attn_unit,{low},{high},16,"
        + ",".join(str(value(quantity, step, unit, low)) for quantity in QUANTITIES)
        + "\n"
        for step in steps
        for unit in range(count)
        for low, high in bins
    ]
    path.write_text(UNITS_HEADER + "".join(lines))
    return path


def is_png(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.array(image.convert("L")).std() > 1


# -- reading


def test_quantities_are_finite_and_the_last_of_repeated_lines_counts(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(
        HEADER
        + "0,0,a,1,1,2,0.5,0.1,3\n0,1,b,1,1,,nan,inf,\n"
        + "0,0,a,1,1,,0.75,,4\n5,1,B,1,1,0.5,2,0,\n"  # the gain of (0, 0) is gone with its first line
        + "5,"  # cut by a kill
    )
    found, names = read_quantities(path, ("gain", "alpha_mean", "alpha_std", "beta_norm", "other"))
    assert found == {
        "gain": {5: {1: 0.5}},
        "alpha_mean": {0: {0: 0.75}, 5: {1: 2}},
        "alpha_std": {5: {1: 0}},
        "beta_norm": {0: {0: 4}},
        "other": {},
    }
    assert names == {0: "a", 1: "B"}


def test_units_by_step_unit_bin_and_quantity(tmp_path):
    path = tmp_path / "u.csv"
    path.write_text(
        f"{KEY},rms,importance,growth\n"
        "10,0,a,0,125,4,1,-2,1\n10,0,a,125.0,250.5,4,2,,nan\n10,1,b,0,125,4,3,inf,2\n10,1,b,125,250.5,4,nan,,\n"
        "10,0,a,0.0,125,8,5,,3\n"  # a resumed run: this line replaces the first as a whole
        "20,1,b,0,125,4,7,,\n20,0,a,0,,4,7,1,1\n20,0,a,0,12"
    )
    records, names = read_units(path)
    assert records == {
        10: {0: {(0, 125): {"rms": 5, "growth": 3}, (125, 250.5): {"rms": 2}}, 1: {(0, 125): {"rms": 3, "growth": 2}}},
        20: {1: {(0, 125): {"rms": 7}}},
    }
    assert names == {0: "a", 1: "b"}


def test_a_repeated_line_without_numbers_removes_the_earlier_one(tmp_path):
    path = tmp_path / "u.csv"
    path.write_text(f"{KEY},rms\n1,0,a,0,9,4,1\n1,1,b,0,9,4,1\n1,1,b,0,9,0,nan\n")
    assert read_units(path)[0] == {1: {0: {(0, 9): {"rms": 1}}}}


def test_grid_has_a_row_a_unit_a_column_a_step_and_nan_where_nothing_was_recorded():
    cells = grid({0: {0: 1.0, 2: 3.0}, 5: {0: math.inf, 1: 2.0}}, [0, 5, 9], [0, 1, 2])
    nan = math.nan
    np.testing.assert_equal(cells, [[1, nan, nan], [nan, 2, nan], [3, nan, nan]])


@given(st.lists(st.floats(1e-6, 1e6), min_size=1))
def test_limits_about_one_hold_every_value(values):
    factor = largest_factor([*values, 0.0, -3.0, math.nan, math.inf])
    assert factor >= 1.05
    assert all(1 / factor <= value * (1 + 1e-9) and value <= factor * (1 + 1e-9) for value in values)
    assert factor == 1.05 or any(math.isclose(factor, max(value, 1 / value)) for value in values)


def test_limits_about_one_of_nothing_and_of_extremes():
    assert largest_factor([]) == 1.05
    assert math.isfinite(largest_factor([5e-324, 1.7e308]))


def test_an_axis_of_either_sign_bends_only_where_most_values_would_lie_on_zero():
    assert linear_threshold([]) is None
    assert linear_threshold([0.0, 0.0]) is None
    assert linear_threshold([-1.0, 0.5, 0.1]) is None
    assert linear_threshold([-1.0, 0.004, -0.002, 0.003, 0.0]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("bin", "label"),
    [((0.0, 125.0), "t 0-125"), ((875.0, 1000.0), "t 875-1000"), ((0.125, 0.25), "t 0.125-0.25")],
)
def test_bins_are_named_without_idle_digits(bin, label):
    assert bin_label(bin) == label


# -- gates


def test_gates_are_drawn_as_lines_with_bands_and_the_norm_of_beta_below(tmp_path, drawn):
    path = gates(tmp_path / "s.csv", range(0, 2001, 100), 6)
    assert plot_gates(path, tmp_path / "g.png") == tmp_path / "g.png"
    assert is_png(tmp_path / "g.png")
    alpha, beta, bar = drawn[0].axes
    steps = [0, 300, 600, 900, 1100, 1400, 1700, 2000]
    assert [tick.get_text().replace(",", "") for tick in bar.get_yticklabels()] == list(map(str, steps))
    assert len(alpha.lines) == len(beta.lines) == 8
    (band,) = alpha.collections  # that of the last step: eight of them would hide each other
    for line, below, step in zip(alpha.lines, beta.lines, steps, strict=True):
        means = [1 + step + unit / 8 for unit in range(6)]
        assert list(line.get_ydata()) == means
        assert list(below.get_ydata()) == list(range(6))
        assert line.get_color() == below.get_color()
    corners = band.get_paths()[0].vertices
    for unit, mean in enumerate(means):
        at_unit = corners[corners[:, 0] == unit, 1]
        assert {at_unit.min(), at_unit.max()} == {mean - 0.25, mean + 0.25}
    assert [tick.get_text() for tick in beta.get_xticklabels()] == [f"blocks.{unit}.attn" for unit in range(6)]
    assert beta.get_ylim()[0] == 0


def test_gates_of_a_rule_without_beta_have_one_panel(tmp_path, drawn):
    plot_gates(gates(tmp_path / "s.csv", [0], 1, beta=False), tmp_path / "g.png")
    alpha, _ = drawn[0].axes
    assert [list(line.get_ydata()) for line in alpha.lines] == [[1]]
    assert r"\alpha" in alpha.get_ylabel()


def test_gates_break_at_units_without_and_need_no_deviation(tmp_path, drawn):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "0,0,a,1,,,1,,\n0,1,b,1,,,,,\n0,2,c,1,,,nan,,\n0,3,d,1,,,2,0.5,7\n")
    assert is_png(plot_gates(path, tmp_path / "g.png"))
    alpha, beta, _ = drawn[0].axes
    nan = math.nan
    np.testing.assert_equal(alpha.lines[0].get_ydata(), [1, nan, nan, 2])
    np.testing.assert_equal(beta.lines[0].get_ydata(), [nan, nan, nan, 7])


def test_gates_of_many_units_are_numbered(tmp_path, drawn):
    plot_gates(gates(tmp_path / "s.csv", [0, 9], 60), tmp_path / "g.png")
    beta = drawn[0].axes[1]
    assert len(beta.lines[0].get_ydata()) == 60
    assert not any("blocks" in tick.get_text() for tick in beta.get_xticklabels())
    assert "index" in beta.get_xlabel()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("step,unit,norm\n0,0,1\n", "'name'"),
        (HEADER, "no record"),
        (HEADER + "0,0,a,1,1,1,,,\n", "no gates"),
        ("step,unit,name,norm\n0,0,a,1\n", "no gates"),  # a run of resnet, cut back: empty columns are dropped
    ],
)
def test_gates_that_cannot_be_drawn(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        plot_gates(tmp_path / "s.csv", tmp_path / "g.png")
    assert not (tmp_path / "g.png").exists()


# -- heat maps


def images(figure):
    return [axes.images[0] for axes in figure.axes if axes.images]


def test_heatmap_shows_every_record_and_gains_about_one(tmp_path, drawn):
    path = gates(tmp_path / "s.csv", range(0, 1000, 100), 5)
    with path.open("a") as file:
        file.write("300,2,blocks.2.attn_unit,0,,0.25,,,\n")
    assert plot_heatmap(path, tmp_path / "h.png") == tmp_path / "h.png"
    assert is_png(tmp_path / "h.png")
    sensitivity, gain = images(drawn[0])
    expected = np.tile(2.0 ** -np.arange(5)[:, None], 10)
    expected[2, 3] = 0
    np.testing.assert_array_equal(sensitivity.get_array(), expected)
    assert sensitivity.norm.vmin == 0
    assert sensitivity.norm.vmax == 1
    cells = gain.get_array()
    assert cells.shape == (5, 10)
    assert cells.mask[4].all()  # the last unit has no gain
    assert not cells.mask[:4].any()
    assert cells[2, 3] == 0.25
    assert (gain.norm.vmin, gain.norm.vmax) == pytest.approx((0.25, 4))
    assert gain.norm(1.0) == pytest.approx(0.5)
    red, green, blue, _ = gain.cmap(gain.norm(1.0))
    assert min(red, green, blue) > 0.94
    assert len(set(gain.cmap.get_bad()[:3])) == 1
    assert drawn[0].get_suptitle() == "Sensitivity over depth and training"
    left = drawn[0].axes[0]
    assert [tick.get_text() for tick in left.get_yticklabels()] == [f"blocks.{unit}.attn" for unit in range(5)]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["0", "200", "400", "500", "700", "900"]
    low, high = left.get_ylim()
    assert low > high  # the first unit on top


def test_heatmap_of_a_wide_range_is_logarithmic_and_zero_is_its_darkest(tmp_path, drawn):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "0,0,a,1,1,,,,\n0,1,b,1,0.001,,,,\n0,2,c,0,0,,,,\n0,3,d,,nan,,,,\n")
    assert is_png(plot_heatmap(path, tmp_path / "h.png"))
    (sensitivity,) = images(drawn[0])  # no gain was recorded
    cells = sensitivity.get_array()
    assert cells[:3, 0].tolist() == [1, 0.001, 0.001]
    assert cells.mask[:, 0].tolist() == [False, False, False, True]
    assert type(sensitivity.norm).__name__ == "LogNorm"
    assert (sensitivity.norm.vmin, sensitivity.norm.vmax) == (0.001, 1)


def test_heatmap_of_one_step_and_one_unit(tmp_path, drawn):
    path = tmp_path / "s.csv"
    path.write_text("step,unit,name,norm,gain\n7,0,a,3,1\n")
    assert is_png(plot_heatmap(path, tmp_path / "h.png"))
    sensitivity, gain = images(drawn[0])
    assert sensitivity.get_array().tolist() == gain.get_array().tolist() == [[1]]


def test_heatmap_of_many_units_is_numbered(tmp_path, drawn):
    path = gates(tmp_path / "s.csv", [0, 10], 60)
    assert is_png(plot_heatmap(path, tmp_path / "h.png"))
    left = drawn[0].axes[0]
    numbers = [int(tick.get_text()) for tick in left.get_yticklabels()]
    assert (numbers[0], numbers[-1], len(numbers)) == (0, 59, 12)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot read"), ("step,unit,name\n0,0,a\n", "'norm'"), (HEADER, "no sensitivity")],
)
def test_heatmap_that_cannot_be_drawn(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        plot_heatmap(tmp_path / "s.csv", tmp_path / "h.png")
    assert not (tmp_path / "h.png").exists()


# -- units by time


def lines_of(axes):
    """The lines of the bins; that at the neutral value has no name."""
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_units_are_drawn_at_the_newest_step_a_panel_a_quantity_a_line_a_bin(tmp_path, drawn):
    def value(quantity, step, unit, low):
        return list(QUANTITIES).index(quantity) + step + unit / 4 + low

    path = record(tmp_path / "u.csv", [20, 10], 5, value=value)
    assert plot_units(path, tmp_path / "u.png") == tmp_path / "u.png"
    assert is_png(tmp_path / "u.png")
    panels = drawn[0].axes
    assert len(panels) == 7
    for quantity, axes in zip(QUANTITIES, panels, strict=True):
        lines = lines_of(axes)
        assert list(lines) == ["t 0-125", "t 125-250"]
        assert axes.get_title(loc="left")
        for low, line in zip((0, 125), lines.values(), strict=True):
            assert list(line.get_xdata()) == list(range(5))
            assert list(line.get_ydata()) == [value(quantity, 20, unit, low) for unit in range(5)]
    (legend,) = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == ["t 0-125", "t 125-250"]
    assert "step 20" in drawn[0].get_suptitle()
    dark, light = (sum(line.get_color()[:3]) for line in lines_of(panels[0]).values())
    assert dark < light
    below = [tick.get_text() for tick in panels[-1].get_xticklabels()]
    assert below == [f"blocks.{unit}.attn" for unit in range(5)]

    plot_units(path, tmp_path / "u.png", step=10)
    assert lines_of(drawn[1].axes[0])["t 0-125"].get_ydata()[0] == value("rms", 10, 0, 0)


def test_units_break_where_a_bin_has_no_samples_and_panels_may_be_empty(tmp_path, drawn):
    path = tmp_path / "u.csv"
    path.write_text(
        f"{KEY},rms,importance,mean_share\n10,0,a,0,0.5,4,1,-1,inf\n10,0,a,0.5,1,4,2,,nan\n10,2,c,0,0.5,4,3,2,\n"
        "5,1,b,0,0.5,4,9,9,9\n"  # a unit that is not in the newest record stays a gap there
    )
    assert is_png(plot_units(path, tmp_path / "u.png"))
    panels = dict(zip(QUANTITIES, drawn[0].axes[:7], strict=True))
    nan = math.nan
    rms = lines_of(panels["rms"])
    np.testing.assert_equal(rms["t 0-0.5"].get_ydata(), [1, nan, 3])
    np.testing.assert_equal(rms["t 0.5-1"].get_ydata(), [2, nan, nan])
    np.testing.assert_equal(lines_of(panels["importance"])["t 0-0.5"].get_ydata(), [-1, nan, 2])
    for quantity in ("growth", "mean_share"):
        assert [text.get_text() for text in panels[quantity].texts] == ["not recorded"]
    assert not panels["rms"].texts


def test_axes_of_units_fit_their_ranges(tmp_path, drawn):
    ranges = {
        "rms": lambda unit: 2.0**unit,
        "growth": lambda unit: 1.2 + unit / 100,
        "write_ratio": lambda unit: 0.5 + unit / 100,
        "write_cos": lambda unit: 0.9 / 3**unit,  # positive and over two decades, but a cosine
        "importance": lambda unit: -1.0 if unit == 0 else 0.002 * (-1) ** unit,
        "redundancy": lambda unit: 10.0**-unit,
        "mean_share": lambda unit: unit,
    }
    path = record(tmp_path / "u.csv", [1], 6, value=lambda quantity, step, unit, low: ranges[quantity](unit))
    assert is_png(plot_units(path, tmp_path / "u.png"))
    panels = dict(zip(QUANTITIES, drawn[0].axes[:7], strict=True))
    assert {quantity: axes.get_yscale() for quantity, axes in panels.items()} == {
        "rms": "log",
        "growth": "linear",
        "write_ratio": "linear",
        "write_cos": "linear",
        "importance": "symlog",
        "redundancy": "log",
        "mean_share": "linear",
    }
    assert panels["write_ratio"].get_ylim()[0] == 0
    bottom, top = panels["growth"].get_ylim()
    assert 0.9 < bottom < 1 < 1.25 < top  # about the neutral value, which is in sight
    bottom, top = panels["importance"].get_ylim()
    assert bottom < -1
    assert top > 0.002


@pytest.mark.parametrize(("count", "bins"), [(1, 1), (60, 20)])
def test_units_few_and_many(tmp_path, drawn, count, bins):
    edges = [(1000 * index / bins, 1000 * (index + 1) / bins) for index in range(bins)]
    assert is_png(plot_units(record(tmp_path / "u.csv", [3], count, bins=edges), tmp_path / "u.png"))
    axes = drawn[0].axes[-1]
    assert len({tuple(line.get_color()) for line in lines_of(axes).values()}) == bins
    assert any("blocks" in tick.get_text() for tick in axes.get_xticklabels()) == (count == 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("step,unit,name,t_low,rms\n0,0,a,0,1\n", "'t_high'"),
        (UNITS_HEADER, "no numbers"),
        (f"{KEY},rms\n0,0,a,0,125,3,nan\n", "no numbers"),
        (f"{KEY},rms\n0,0,a,0,125,3,1\n5,0,a,0,125,3,1\n", "no step 7; .* 0, 5"),
    ],
)
def test_units_that_cannot_be_drawn(tmp_path, text, message):
    if text is not None:
        (tmp_path / "u.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        plot_units(tmp_path / "u.csv", tmp_path / "u.png", step=7 if "step 7" in message else None)
    assert not (tmp_path / "u.png").exists()


def test_no_global_figure_is_left_behind(tmp_path):
    plot_units(record(tmp_path / "u.csv", [0], 3), tmp_path / "u.png")
    plot_heatmap(gates(tmp_path / "s.csv", [0], 3), tmp_path / "h.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
