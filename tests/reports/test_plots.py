"""What the figures read from their CSV files, and that the files they write are pictures of it."""

from __future__ import annotations

import math
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.reports import figures, plots
from neural_rdm.reports.figures import short_name
from neural_rdm.reports.plots import (
    mean_and_std,
    plot_curves,
    plot_losses,
    plot_sensitivity,
    read_sensitivity,
    read_series,
    stages_of,
)
from tests.reports.figures import keep_figures

HEADER = "step,unit,name,norm,normalized,gain\n"


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written."""
    return keep_figures(monkeypatch, plots)


def record(path, steps, units, norm=lambda step, unit: 2.0 ** -(unit / (1 + step))):
    lines = [f"{step},{unit},blocks.{unit}.attn_unit,{norm(step, unit)},,\n" for step in steps for unit in range(units)]
    path.write_text(HEADER + "".join(lines))
    return path


def is_png(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return np.array(image.convert("L")).std() > 1


def test_sensitivity_is_normalised_by_the_largest_unless_given(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "0,0,a,1,,2\n0,1,b,4,,\n0,2,c,2,,\n10,0,a,1,0.125,\n10,1,b,8,1,\n")
    stages, names = read_sensitivity(path)
    assert stages == {0: {0: 0.25, 1: 1.0, 2: 0.5}, 10: {0: 0.125, 1: 1.0}}
    assert names == {0: "a", 1: "b", 2: "c"}


def test_sensitivity_of_a_resumed_run_and_of_one_cut_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text(HEADER + "0,0,a,1,,\n0,1,b,2,,\n0,0,a,nan,,\n0,1,b,4,,\n5,0,a,3,,\n5,1")
    stages, _ = read_sensitivity(path)
    assert math.isnan(stages[0][0])
    assert stages[0][1] == 1
    assert stages[5][0] == 1


def test_sensitivity_draws_means_over_the_records_of_a_stage_under_both_normalisations(tmp_path, drawn):
    noise = np.random.default_rng(0).lognormal(0, 0.3, size=(41, 6))
    path = record(tmp_path / "s.csv", range(0, 4001, 100), 6, norm=lambda step, unit: noise[step // 100, unit])
    assert is_png(plot_sensitivity(path, tmp_path / "s.png"))
    above, below, bar = drawn[0].axes
    groups = [group.tolist() for group in np.array_split(np.arange(41), 8)]
    labels = [tick.get_text().replace(",", "") for tick in bar.get_yticklabels()]
    assert len(labels) == len(above.lines) == len(above.collections) == 8
    places = [[int(step) // 100 for step in label.split(" to ")] for label in labels]
    assert [first for first, _ in places] == [0] + [last + 1 for _, last in places[:-1]]  # every record once
    assert places[-1][1] == 40
    assert {last - first + 1 for first, last in places} == set(map(len, groups))
    for axes, values in ((above, noise / noise.max(axis=1, keepdims=True)), (below, noise / noise[:, -1:])):
        for line, band, (first, last) in zip(axes.lines, axes.collections, places, strict=True):
            part = values[first : last + 1]
            np.testing.assert_allclose(line.get_ydata(), part.mean(axis=0))
            top = band.get_paths()[0].vertices[:, 1].max()
            np.testing.assert_allclose(top, (part.mean(axis=0) + part.std(axis=0, ddof=1)).max())
    assert [tick.get_text() for tick in below.get_xticklabels()] == [f"blocks.{unit}.attn" for unit in range(6)]
    assert above.get_ylabel() != below.get_ylabel()
    assert "standard deviation" in above.get_figure().get_suptitle()


def test_stages_have_several_records_where_there_are_enough():
    assert stages_of([5]) == [[5]]
    assert stages_of([5, 9]) == [[5], [9]]
    assert stages_of(range(8)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(map(len, stages_of(range(30)))) == [4] * 5 + [5] * 2
    assert len(stages_of(range(1000))) == 8


def test_a_record_without_numbers_is_left_out_of_the_mean():
    mean, std = mean_and_std(np.array([[1.0, math.nan], [3.0, math.nan], [math.nan, math.nan]]))
    assert mean[0] == 2
    assert std[0] == pytest.approx(math.sqrt(2))
    assert math.isnan(mean[1])


@pytest.mark.parametrize("steps", [[0], [0, 50]])
def test_sensitivity_of_few_stages(tmp_path, drawn, steps):
    assert is_png(plot_sensitivity(record(tmp_path / "s.csv", steps, 3), tmp_path / "s.png"))
    assert len(drawn[0].axes[0].lines) == len(steps)
    assert drawn[0].axes[0].get_yscale() == "linear"


def test_deep_networks_get_numbers_for_names_and_wide_ranges_a_logarithm(tmp_path, drawn):
    path = record(tmp_path / "s.csv", [0, 10], 60, norm=lambda step, unit: 10.0 ** (-unit / 20))
    plot_sensitivity(path, tmp_path / "s.png")
    axes = drawn[0].axes[0]
    assert axes.get_yscale() == "log"
    assert not any("blocks" in tick.get_text() for tick in axes.get_xticklabels())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("step,unit,name\n0,0,a\n", "'norm'"),
        (HEADER, "no sensitivity"),
        (HEADER + "0,0,a,,,\n", "no"),
    ],
)
def test_sensitivity_that_cannot_be_drawn(tmp_path, text, message):
    if text is not None:
        (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        plot_sensitivity(tmp_path / "s.csv", tmp_path / "s.png")
    assert not (tmp_path / "s.png").exists()


def test_a_long_record_never_lies_in_memory_whole(tmp_path):
    metrics, sensitivity = tmp_path / "metrics.csv", tmp_path / "sensitivity.csv"
    metrics.write_text("step,train/loss,a,b,c\n" + "".join(f"{s},0.123456789,1,2,3\n" for s in range(20_000)))
    rows = [f"{s},{u},blocks.{u}.residual.attention,0.123456,0.5,1\n" for s in range(500) for u in range(20)]
    sensitivity.write_text(HEADER + "".join(rows))
    for read in (lambda: read_series(metrics, "train/loss"), lambda: read_sensitivity(sensitivity)):
        tracemalloc.start()
        found = read()
        kept, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(found[0]) in (500, 20_000)
        assert peak < 2.5 * kept  # as rows of texts they would be over ten times as much


def test_series_skips_empty_cells_and_takes_the_last_of_repeated_steps(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("epoch,step,train/loss,val/loss\n0,20,3,\n0,10,1,\n0,10,2,\n0,20,,9\n0,30,nan,\n0,,5,\n")
    steps, values = read_series(path, "train/loss")
    assert steps == [10, 20, 30]
    assert values[:2] == [2, 3]
    assert math.isnan(values[2])
    assert read_series(path, "val/loss") == ([20], [9])
    assert read_series(path, "no/such") == ([], [])


def test_losses(tmp_path, drawn):
    path = tmp_path / "m.csv"
    rows = [f"{step},{1 / (1 + step)},{0.5 if step % 50 == 0 else ''}\n" for step in range(200)]
    path.write_text("step,train/loss,val/loss\n" + "".join(rows))
    assert is_png(plot_losses(path, tmp_path / "m.png"))
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train/loss, running mean", "val/loss"]
    raw, mean, val = axes.lines
    assert list(raw.get_ydata()) == [1 / (1 + step) for step in range(200)]
    assert mean.get_ydata()[100] == pytest.approx(np.mean([1 / (1 + step) for step in range(97, 104)]))
    assert list(val.get_xdata()) == [0, 50, 100, 150]
    assert axes.get_yscale() == "log"


def test_losses_without_validation_and_with_a_divergence(tmp_path, drawn):
    path = tmp_path / "m.csv"
    path.write_text("step,train/loss\n0,1\n1,2\n2,inf\n3,nan\n")
    assert is_png(plot_losses(path, tmp_path / "m.png"))
    assert len(drawn[0].axes[0].lines) == 1
    (tmp_path / "none.csv").write_text("step,other\n0,1\n")
    with pytest.raises(DataError, match="train/loss"):
        plot_losses(tmp_path / "none.csv", tmp_path / "none.png")


@given(st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=40), st.integers(2, 9))
def test_running_mean_is_the_mean_of_finite_neighbours(values, width):
    means = plots.running_mean(values, width)
    for place, mean in enumerate(means):
        window = np.array(values[max(0, place - width // 2) : place + width // 2 + 1])
        finite = window[np.isfinite(window)]
        assert mean == pytest.approx(finite.mean(), abs=1e-9) if len(finite) else math.isnan(mean)


@given(st.integers(1, 200), st.integers(2, 8))
def test_spread_keeps_the_ends_and_the_evenness(count, most):
    steps = list(range(count))
    chosen = figures.spread(steps, most)
    assert len(chosen) == min(count, most)
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


def test_curves_of_many_runs_stay_apart(tmp_path, drawn):
    curves = {f"run {index}": ([0, 1], [1.0, 0.5 + index]) for index in range(12)} | {"cut": ([], [])}
    assert is_png(plot_curves(curves, tmp_path / "c.png", ylabel="loss", title="Loss"))
    lines = drawn[0].axes[0].lines
    assert len(lines) == len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


def test_no_global_figure_is_left_behind(tmp_path):
    plot_sensitivity(record(tmp_path / "s.csv", [0], 3), tmp_path / "s.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("blocks.3.attn_unit", "blocks.3.attn"),
        ("net.down_blocks.0.resnets.1.unit", "down.0.res.1"),
        ("net.mid_block.attentions.0.unit", "mid.attn.0"),
        ("net.mid_block.attentions.0.unit/transformer_blocks.0.attn2_unit", "· attn2"),
        ("net.up_blocks.1.attentions.0.unit/transformer_blocks.3.ff_unit", "· transformer.3.ff"),
        ("in_blocks.0.mlp_unit", "in.0.mlp"),
    ],
)
def test_names_fit_an_axis(name: str, short: str) -> None:
    assert short_name(name) == short
