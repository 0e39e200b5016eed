"""EP_FID@k from recorded evaluations: closed forms, what is left out, and files that are damaged."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.core.errors import DataError
from neural_rdm.reports import efficiency
from neural_rdm.reports.efficiency import (
    efficiency_rows,
    plot_evaluations,
    reached,
    read_evaluations,
    spaces,
    write_efficiency,
)

HEADER = "step,images,frechet_inception,cfg_scale,weights,count"


@pytest.fixture
def run(tmp_path):
    """Make a run with lines of evaluations."""

    def make(*lines, name="run", header=HEADER, config="data: {batch_size: 10, limit: 500}\n"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.yaml").write_text(config)
        (folder / "evaluations.csv").write_text("".join(f"{line}\n" for line in (header, *lines)))
        return folder

    return make


def test_between_two_evaluations_the_logarithm_is_linear_in_images(run):
    folder = run("100,1000,8,1,ema,50000", "200,2000,4,1,ema,50000", "300,3000,1,1.0,ema,50000")
    found = reached(folder, 2.0)
    assert found.images == pytest.approx(2500)  # 2 is half-way from 4 to 1 in the logarithm
    assert found.epochs == pytest.approx(5)  # of 500 samples each
    assert (found.conditions.count, found.bound) == (50000, False)
    assert reached(folder, 4.0).images == pytest.approx(2000)
    assert reached(folder, 0.99) is None


@given(st.floats(0.5, 3), st.floats(1e-4, 1e-2), st.floats(0.05, 0.95))
def test_an_exponential_decay_is_read_exactly(tmp_path_factory, start, rate, share):
    folder = tmp_path_factory.mktemp("run")
    steps = [10, 30, 100, 400]
    lines = [f"{n},{n},{10**start * math.exp(-rate * n)!r},1,ema,100" for n in steps]
    (folder / "evaluations.csv").write_text("".join(f"{line}\n" for line in (HEADER, *lines)))
    images = 10 + share * 390
    assert reached(folder, 10**start * math.exp(-rate * images)).images == pytest.approx(images, rel=1e-6)


def test_the_first_time_counts_and_an_early_one_is_a_bound(run):
    folder = run("1,10,9,1,ema,100", "2,20,1,1,ema,100", "3,30,9,1,ema,100", "4,40,1,1,ema,100")
    assert reached(folder, 1.0).images == 20
    assert reached(folder, 9.0) == efficiency.Reached(10, 10 / 500, efficiency.Conditions(100), bound=True)
    assert reached(run("1,10,9,1,ema,100", "2,20,0,1,ema,100", name="zero"), 1.0).images <= 20


def test_guided_raw_and_other_counts_are_left_out(run):
    folder = run(
        "1,10,1,1.5,ema,100",
        "1,10,1,1,raw,100",
        "1,10,1,,ema,100",
        "1,10,1,1,ema,5",
        "1,10,nan,1,ema,100",
        "2,20,,1,ema,100",
        "3,30,3,1,ema,100",
        "4,40,4,1,ema,100",
        "4,40,1,1,ema,100",  # a resumed run
    )
    assert [(e.images, e.distance, e.conditions.count) for e in read_evaluations(folder)] == [
        (10, 1, 5),
        (30, 3, 100),
        (40, 1, 100),
    ]
    found = reached(folder, 1.0)
    assert (found.images, found.conditions.count) == (40, 100)


def test_images_and_epochs_from_where_they_are_recorded(run):
    header = "step,frechet_pixels,frechet_inception,frechet_inception_spatial,cfg_scale,weights,count,train_size"
    folder = run("3,1,,5,1,ema,100,60", "6,1,,5,1,ema,100,60", "9,1,,5,1,e", header=header)
    assert spaces(folder) == ["pixels", "inception"]
    told = efficiency.Conditions(100)
    assert reached(folder, 1.0) is None
    assert reached(folder, 1.0, "pixels") == efficiency.Reached(30, 0.5, told, bound=True)
    unknown = run("3,30,1,1,ema,100", name="unknown", config="data: {batch_size: 10, limit: null}\n")
    assert reached(unknown, 1.0).epochs is None
    with pytest.raises(DataError, match="no batch size"):
        reached(run("3,,1,1,ema,100", name="none", config="["), 1.0)


def test_no_file_is_no_evaluation(tmp_path):
    assert read_evaluations(tmp_path) == []
    assert spaces(tmp_path) == []
    assert reached(tmp_path, 2) is None


@pytest.mark.parametrize("missing", ["step", "frechet_inception", "cfg_scale", "weights", "count"])
def test_a_missing_column_is_named(run, missing):
    header = ",".join(name for name in HEADER.split(",") if name != missing)
    folder = run("1,1,1,1,1", header=header)
    with pytest.raises(DataError, match="frechet_SPACE" if missing.startswith("frechet") else repr(missing)) as error:
        reached(folder, 2)
    assert "\n" not in str(error.value)


def test_damage_and_distances_that_are_none(run):
    folder = run("1,10,9,1,ema,100")
    for k in (0, -1, math.nan, math.inf):
        with pytest.raises(DataError, match="above 0"):
            reached(folder, k)
    (folder / "evaluations.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read"):
        reached(folder, 2)


def test_the_table(run, tmp_path):
    header = HEADER.replace("inception", "pixels")
    folders = [
        run("1,100,8,1,ema,100", "2,200,2,1,ema,100", name="fast"),
        run("1,100,1,1,ema,100", name="early"),
        run("1,100,8,1,ema,100", name="never"),
        run("1,100,1,4,ema,100", name="guided"),
        run("1,100,1,1,ema,100", name="pixels", header=header),
        tmp_path / "bare",
    ]
    rows = {row["run"]: row for row in efficiency_rows(folders, 4)[0]}
    assert rows["fast"]["images"] == 150
    assert rows["fast"]["epochs"] == pytest.approx(0.3)
    assert rows["fast"]["result"] == "interpolated"
    assert rows["early"]["result"].startswith("at most")
    assert (rows["never"]["images"], rows["never"]["result"]) == (None, "never reached")
    assert rows["guided"]["result"].startswith("no unguided evaluation")
    assert rows["pixels"]["distance"] == "frechet_pixels <= 4"
    assert rows["bare"]["result"].startswith("no evaluation")
    page = write_efficiency(folders, 4, tmp_path / "out").read_text()
    assert "logarithm" in page
    assert "| fast |" in page


FULL = "step,images,weights,cfg_scale,sampler,sampler_steps,reference,precision,count,frechet_x"


def test_only_evaluations_of_one_protocol_are_used(run):
    folder = run(
        "1,10,ema,1,ddim,20,aaaaaaaa,32-true,100,9",
        "2,20,ema,1,ddim,20,aaaaaaaa,32-true,100,4",
        "2,20,ema,1,ddim,20,bbbbbbbb,32-true,100,1",  # other statistics
        "2,20,ema,1,ddim,250,aaaaaaaa,32-true,100,1",
        "2,20,ema,1,dpm++,20,aaaaaaaa,32-true,100,1",
        "2,20,ema,1,ddim,20,aaaaaaaa,bf16-mixed,100,1",
        "2,20,ema,1,ddim,20,aaaaaaaa,32-true,500,1",
        "3,30,ema,1,ddim,20,aaaaaaaa,32-true,100,3",
        header=FULL,
    )
    assert len(read_evaluations(folder, "x")) == 8
    assert reached(folder, 2.0, "x") is None
    found = reached(folder, 3.0, "x")
    assert found.images == 30
    assert str(found.conditions) == "100 samples, ddim, 20 steps, statistics aaaaaaaa, precision 32-true"


def test_runs_of_other_protocols_are_marked(run, tmp_path):
    one = run("1,10,ema,1,ddim,20,aaaaaaaa,32-true,100,9", name="one", header=FULL)
    same = run("1,10,ema,1,ddim,20,aaaaaaaa,32-true,100,3", name="same", header=FULL)
    other = run("1,10,ema,1,ddim,20,bbbbbbbb,bf16-mixed,100,3", name="other", header=FULL)
    old = run("1,10,1,1,ema,100", name="old", header=HEADER.replace("inception", "x"))
    rows, told = efficiency_rows([one, same, other, old, tmp_path / "bare"], 4)
    assert [row.get("protocol") for row in rows] == ["[a]", "[a]", "[b]", "[c]", None]
    assert "- [b] 100 samples, ddim, 20 steps, statistics bbbbbbbb, precision bf16-mixed\n" in told
    assert "- [c] 100 samples; sampler, statistics, precision not recorded\n" in told
    page = write_efficiency([one, other], 4, tmp_path / "out").read_text()
    assert "only numbers of one letter can be compared" in page
    rows, told = efficiency_rows([one, same], 4)
    assert "protocol" not in rows[0]
    assert told == "\n- 100 samples, ddim, 20 steps, statistics aaaaaaaa, precision 32-true\n"


def test_frames_are_counted_as_frames(run):
    header = (
        "step,images,weights,cfg_scale,count,count_frames,frechet_i3d,frechet_inception_frames,"
        "frechet_inception_frames_spatial"
    )
    folder = run("1,10,ema,1,20,80,3,2,1", header=header)
    assert spaces(folder) == ["i3d", "inception_frames"]
    assert reached(folder, 4, "i3d").conditions.count == 20
    assert reached(folder, 4, "inception_frames").conditions.count == 80


def test_recorded_evaluations_are_drawn(run, tmp_path):
    header = "step,images,weights,cfg_scale,count,frechet_x,frechet_x_spatial"
    folder = run("1,10,ema,1.0,100,900,5", "2,20,ema,1.0,100,3,4", "2,,raw,1.0,100,3,4", header=header)
    path = plot_evaluations(folder, tmp_path / "evaluations.png")
    assert path.stat().st_size > 10_000
    assert plot_evaluations(tmp_path / "none", tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
