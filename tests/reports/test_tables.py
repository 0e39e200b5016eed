"""Tables read back: Markdown, CSV, JSON, and the comparison of runs that are whole, cut or damaged."""

from __future__ import annotations

import csv
import json
import math
from pathlib import PurePath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neural_rdm.reports.comparison import write_comparison
from neural_rdm.reports.study import study
from neural_rdm.reports.tables import Footnotes, compare_runs, markdown_table, write_metrics

ROWS = [
    {"name": "generated", "accuracy": 0.87654321, "frechet_pixels": 1.5, "count": 200},
    {"name": "held out", "accuracy": 0.99, "count": 360, "note": "a|b\nc"},
]


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_markdown_table():
    assert markdown_table(ROWS) == (
        "| name | accuracy | frechet_pixels | count | note |\n"
        "| --- | ---: | ---: | ---: | --- |\n"
        "| generated | 0.8765 | 1.5 | 200 |  |\n"
        "| held out | 0.99 |  | 360 | a\\|b c |\n"
    )
    assert markdown_table([]) == ""


def test_scalars_of_torch_and_numpy_are_numbers():
    rows = [{"a": torch.tensor(0.123456), "b": np.int64(3), "c": np.float32(2), "d": True, "e": None}]
    assert markdown_table(rows).splitlines()[1:] == [
        "| ---: | ---: | ---: | --- | ---: |",
        "| 0.1235 | 3 | 2 | True |  |",
    ]


cells = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text("ab|\\\n\t é", max_size=9)


@given(st.lists(st.dictionaries(st.sampled_from("abcd"), cells), max_size=5))
def test_markdown_always_has_a_full_grid(rows):
    text = markdown_table(rows)
    columns = {key for row in rows for key in row}
    lines = text.split("\n")[:-1]
    assert len(lines) == (len(rows) + 2 if columns else 0)
    for line in lines:
        assert line.replace("\\|", "").count("|") == len(columns) + 1


def test_metrics_of_a_run_round_trip(tmp_path):
    folder = tmp_path / "run" / "report"
    paths = write_metrics(folder, [*ROWS, {"name": "broken", "frechet_pixels": math.nan, "accuracy": math.inf}], "how")
    assert paths == [folder / "metrics.md", folder / "metrics.csv", folder / "metrics.json"]
    markdown = paths[0].read_text()
    assert markdown.startswith("# Metrics\n\nhow\n\n| name |")
    assert "0.8765" in markdown
    rows = read_csv(paths[1])
    assert float(rows[0]["accuracy"]) == ROWS[0]["accuracy"]
    assert rows[1]["frechet_pixels"] == ""
    assert rows[1]["note"] == "a|b\nc"

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    report = json.loads(paths[2].read_text(), parse_constant=refuse)
    assert report["protocol"] == "how"
    assert report["rows"][:2] == ROWS
    assert report["rows"][2] == {"name": "broken", "frechet_pixels": "nan", "accuracy": "inf"}


def make_run(folder, residual, seed=0, protocol="how", accuracy=0.5):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"choices:\n  exp: digits_gated\n  sampler: s{seed}\nresidual: {residual}\n"
        f"backbone:\n  depth: 6\ntrainer:\n  max_steps: 300\nseed: {seed}\ngamma: 0.35\n"
    )
    (folder / "metrics.csv").write_text("step,train/loss\n0,1.0\n10,0.5\n")
    (folder / "finished.json").write_text('{"global_step": 300}')
    generated = {"name": "generated", "accuracy": accuracy, "frechet_pixels": 2.25, "count": 200}
    write_metrics(folder / "report", [{"name": "held out", "accuracy": 0.99}, generated], protocol)
    return folder


def test_runs_side_by_side(tmp_path):
    one = make_run(tmp_path / "one", "gated")
    two = make_run(tmp_path / "two", "{rule: rezero, granularity: scalar}", seed=3, accuracy=math.nan)
    shared = {"exp": "digits_gated", "depth": 6, "steps": 300, "frechet_pixels": 2.25, "count": 200}
    assert compare_runs([one, str(two)]) == [
        shared | {"run": "one", "residual": "gated", "gates": None, "gamma": 0.35, "seed": 0, "accuracy": 0.5},
        shared | {"run": "two", "residual": "rezero", "gates": "scalar", "gamma": 0.35, "seed": 3, "accuracy": "nan"},
    ]
    first = ["run", "exp", "residual", "gates", "gamma", "depth", "steps", "seed"]
    assert list(compare_runs([one])[0])[: len(first)] == first


def test_gates_and_swept_keys_have_columns(tmp_path):
    shapes = [
        "{rule: resnet, granularity: channel, beta_form: additive}",
        "{rule: gated, granularity: scalar, time_conditioned: true, beta_form: linear}",
    ]
    runs = [make_run(tmp_path / name, shape) for name, shape in zip("ab", shapes, strict=True)]
    for run, lr in zip(runs, (1e-3, 2e-3), strict=True):
        with open(run / "config.yaml", "a") as file:
            file.write(f"optimizer:\n  lr: {lr}\n  betas: [0.9, 0.999]\n")
    rows = compare_runs([*runs, tmp_path / "never made"])
    assert [row["gates"] for row in rows] == ["none", "scalar, time-conditioned, linear beta", None]
    assert [row["optimizer.lr"] for row in rows] == [0.001, 0.002, None]
    assert list(rows[0])[8:-3] == ["residual.granularity", "residual.beta_form", "optimizer.lr"]
    for run in runs:
        (run / "config.yaml").write_text(f"seed: 1\nmany: {{{', '.join(f'k{i}: {run.name}{i}' for i in range(9))}}}\n")
    assert list(compare_runs(runs)[0])[8:] == ["accuracy", "frechet_pixels", "count"]


DDPM = "{_target_: DDPM, schedule: linear, beta_end: 0.02, prediction: %s}"
DIFFUSIONS = {
    "ddpm": f"{{_target_: A, loss: hybrid, learned_times: null, process: {DDPM % 'epsilon'}}}",
    "v": f"{{_target_: A, loss: hybrid, learned_times: null, process: {DDPM % 'v'}}}",
    "learned": f"{{_target_: A, loss: hybrid, learned_times: {{bins: 32}}, process: {DDPM % 'epsilon'}}}",
    "flow": "{_target_: B, logit_std: 1.0, process: {_target_: Flow}}",
    "flow ": "{_target_: B, logit_std: 0.5, process: {_target_: Flow}}",
}


def test_a_sweep_over_objectives_says_which_each_run_had(tmp_path):
    """Their configurations hold different keys: those of one alone must not make the others' differences vanish."""
    runs = [make_run(tmp_path / name, "gated") for name in DIFFUSIONS]
    for run, (name, text) in zip(runs, DIFFUSIONS.items(), strict=True):
        with open(run / "config.yaml", "a") as file:
            file.write(f"choices: {{exp: digits_gated, diffusion: {name.strip()}}}\ndiffusion: {text}\n")
    rows = compare_runs(runs)
    assert list(rows[0])[8:-3] == ["choices.diffusion", "diffusion.process.prediction", "diffusion.logit_std"]
    assert [row["choices.diffusion"] for row in rows] == [name.strip() for name in DIFFUSIONS]
    assert [row["diffusion.process.prediction"] for row in rows] == ["epsilon", "v", "epsilon", "-", "-"]
    assert [row["diffusion.logit_std"] for row in rows] == ["-", "-", "-", 1.0, 0.5]


def test_a_key_that_some_runs_lack_is_a_dash(tmp_path):
    runs = [make_run(tmp_path / name, "gated") for name in "ab"]
    for run, text in zip(runs, ("{lr: 1, clip: 0.1}", "{lr: 1}"), strict=True):
        with open(run / "config.yaml", "a") as file:
            file.write(f"optimizer: {text}\n")
    assert [row["optimizer.clip"] for row in compare_runs(runs)] == [0.1, "-"]


@pytest.mark.parametrize(
    ("config", "report"),
    [
        (None, None),
        ("", ""),
        ("- a\n- list\n", "[1, 2]"),
        ("a: [unclosed\n", "{cut"),
        ("backbone: dit\ntrainer: 3\nexp: [a]\n", '{"rows": {"a": 1}, "protocol": 3}'),
        ("!!python/object/apply:os.system ['exit 1']\n", '{"rows": [3, {"accuracy": 1}]}'),
        (b"\xff\xfe\x00", b"\xff\xfe\x00"),
    ],
)
def test_damaged_runs_become_empty_cells(tmp_path, config, report):
    folder = tmp_path / "cut"
    (folder / "report").mkdir(parents=True)
    for path, content in ((folder / "config.yaml", config), (folder / "report" / "metrics.json", report)):
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "metrics.csv").write_bytes(b"\xff\x00,step\n")
    (row,) = compare_runs([folder])
    assert row.pop("run") == "cut"
    assert row.pop("exp") in (None, ["a"])
    assert row.pop("state", "") in ("", "unfinished: nothing saved")
    assert row == dict.fromkeys(["residual", "gates", "gamma", "depth", "steps", "seed"])
    whole = make_run(tmp_path / "whole", "skip")
    paths = write_comparison(study([folder, whole, tmp_path / "never made"]), tmp_path / "out")
    assert [row["accuracy"] for row in read_csv(paths[1])] == ["", "0.5", ""]
    assert [row["accuracy_mean"] for row in read_csv(paths[2])] == ["", "0.5", ""]


def test_equal_folder_names_are_told_apart(tmp_path):
    folders = [make_run(tmp_path / name, "gated") for name in ("a/0", "b/0", "b/1")]
    assert [row["run"] for row in compare_runs(folders)] == ["a/0: gated", "b/0: gated", "1: gated"]


def test_a_run_that_stopped_says_how_far_it_came(tmp_path):
    whole, stopped = make_run(tmp_path / "whole", "gated"), make_run(tmp_path / "stopped", "rezero")
    (stopped / "finished.json").unlink()
    assert [row["steps"] for row in compare_runs([whole, stopped])] == [300, 10]  # the last logged step
    (stopped / "checkpoints").mkdir()
    for name in ("step=000000020.ckpt", "step=000000030.ckpt", "last.ckpt", "step=x.ckpt"):
        (stopped / "checkpoints" / name).touch()
    rows = compare_runs([whole, stopped])
    assert [(row["steps"], row["state"]) for row in rows] == [(300, "finished"), (30, "unfinished: step 30 of 300")]
    assert "state" not in compare_runs([whole])[0]


def test_footnotes_are_lettered():
    notes = Footnotes()
    assert [notes.mark(str(i)) for i in (0, 1, 0)] == ["[a]", "[b]", "[a]"]
    assert notes.mark("") == ""
    assert [notes.mark(str(i)) for i in range(60)][25:28] == ["[z]", "[aa]", "[ab]"]
    assert notes.mark("52") == "[ba]"
    assert notes.list().startswith("- [a] 0\n- [b] 1\n")


def test_facts_are_written_beside_the_rows(tmp_path):
    def content(**facts):
        return json.loads(write_metrics(tmp_path, ROWS, "how", **facts)[2].read_text())

    facts = {
        "steps": 20,
        "hash": None,
        "official": True,
        "interval": [0.0, 0.5],
        "size": PurePath("x"),
        "least": math.nan,
    }
    assert content(facts=facts)["facts"] == facts | {"size": "x", "least": "nan"}
    assert content(facts={})["facts"] == {}
    assert set(content()) == {"protocol", "rows"}


def test_a_name_is_no_link_no_picture_and_no_html() -> None:
    names = [
        "![x](http://there/x.png)",
        "[run](http://there)",
        "<img src=x>",
        "<!-- x",
        "a|b",
        "a\nb",
        "x < y <1",
        "[a]",
    ]
    rows = markdown_table([{"run": name} for name in names]).splitlines()[2:]
    assert rows == [
        r"| ![x]\(http://there/x.png) |", r"| [run]\(http://there) |", r"| \<img src=x> |", r"| \<!-- x |", r"| a\|b |",
        "| a b |", "| x < y <1 |", "| [a] |",
    ]  # fmt: skip
