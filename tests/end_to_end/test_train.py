"""The train command from its first line to its last, on real and made-up data."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.records import read_rows
from neural_rdm.train import train
from tests.end_to_end.commands import TINY, checkpoint, run
from tests.latents.test_first_stage import tiny_autoencoder

pytestmark = pytest.mark.end_to_end


def report(folder: Path) -> dict[str, dict[str, float]]:
    return {row["name"]: row for row in json.loads((folder / "report" / "metrics.json").read_text())["rows"]}


def test_the_default_learns_digits_in_twenty_seconds(tmp_path: Path) -> None:
    """Cut to a quarter of its steps: far above chance (0.1), far below what the whole run reaches."""
    code, output = run("trainer.max_steps=200", "metric.per_class=20", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    folder = tmp_path / "run"
    rows = report(folder)
    assert rows["generated"]["accuracy"] >= 0.25
    assert rows["generated"]["frechet_pixels"] < 6
    assert rows["real, held out"]["accuracy"] >= 0.97
    printed = output[output.index("Look at:") :].split()
    paths = [tmp_path / p for p in printed if os.sep in p]
    assert {p.name for p in paths} >= {"final.png", "metrics.md", "sensitivity.png", "last.ckpt", "index.html"}
    assert all(p.is_file() and p.stat().st_size > 0 for p in paths)
    content = checkpoint(folder)
    assert content["global_step"] == 200
    assert content["ema"]["updates"] == 200


SMALL = tuple(option for option in TINY if not option.startswith(("metric.", "callbacks.")))


def test_debug_fast_does_two_steps_of_everything(tmp_path: Path) -> None:
    code, output = run("debug=fast", *SMALL, "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    folder = tmp_path / "run"
    rows = read_rows(folder / "metrics.csv")
    assert {row["step"] for row in rows} == {"1", "2"}
    for step in ("1", "2"):
        told = {name for row in rows if row["step"] == step for name, value in row.items() if value}
        assert {"train/loss", "val/loss"} <= told
    assert [p.name for p in sorted((folder / "samples").iterdir())] == [
        "final.png", "step=000000001.png", "step=000000002.png"
    ]  # fmt: skip
    assert {row["step"] for row in read_rows(folder / "sensitivity" / "sensitivity.csv")} == {"1", "2"}
    assert [(row["step"], row["count"]) for row in read_rows(folder / "evaluations.csv")] == [("2", "10")]
    assert report(folder)["generated"]["count"] == 10
    assert checkpoint(folder)["global_step"] == 2
    assert (folder / "index.html").read_text().count('<img class="figure"') >= 4


def test_debug_overfit_learns_one_batch_and_reports_nothing(tmp_path: Path) -> None:
    short = "trainer.max_steps=80", "~callbacks.sensitivity", "hydra.run.dir=run"
    code, output = run("debug=overfit", *SMALL, *short, cwd=tmp_path)
    assert code == 0, output
    assert re.search(r"debug=overfit: loss [\d.]+ -> [\de.-]+ in 80 steps on one batch: it learns", output), output
    assert not (tmp_path / "run" / "report" / "metrics.json").exists()
    assert not (tmp_path / "run" / "samples" / "final.png").exists()


@pytest.mark.full
def test_the_default_reaches_95_percent(tmp_path: Path) -> None:
    code, output = run("hydra.run.dir=run", cwd=tmp_path, timeout=500)
    assert code == 0, output
    rows = report(tmp_path / "run")
    assert rows["generated"]["accuracy"] >= 0.95
    assert rows["generated"]["frechet_pixels"] < 1.5


@pytest.mark.full
@pytest.mark.timeout(900)
def test_dit_xl_trains_two_steps_on_a_cpu(tmp_path: Path) -> None:
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < 20 * 2**30:
        pytest.skip("needs about 15 GiB of memory: weights, gradients, two moments and averages of 675 M parameters")
    code, output = run(
        "exp=dit_xl_gated",
        "data=synthetic",
        "data.batch_size=1",
        "trainer.max_steps=2",
        "hydra.run.dir=run",
        cwd=tmp_path,
        timeout=800,
    )
    assert code == 0, output
    assert "675,258,656 parameters, 129,024 of them gates" in output
    (tmp_path / "run" / "checkpoints" / "step=000000002.ckpt").unlink()
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()  # 11 GB


def test_pictures_are_encoded_and_previews_decoded(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 2)):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pictures" / split / name / f"{i}.png")
    tiny_autoencoder(tmp_path / "vae")
    code, output = run(
        "exp=dit_s_gated",
        "data=image_folder",
        "data.root=pictures",
        "data.image_size=16",
        "data.batch_size=4",
        "data.num_workers=2",
        "first_stage.path=vae",
        "first_stage.downsample=2",
        "backbone.input_size=8",
        "backbone.depth=1",
        "backbone.hidden_size=32",
        "backbone.num_heads=2",
        "backbone.num_classes=2",
        "trainer.max_steps=4",
        "callbacks.samples.every_n_steps=2",
        "callbacks.validation.every_n_steps=2",
        "sampler.steps=2",
        "~callbacks.sensitivity",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert code == 0, output
    assert Image.open(tmp_path / "run" / "samples" / "step=000000004.png").mode == "RGB"
    assert "val/loss" in (tmp_path / "run" / "metrics.csv").read_text()
    assert not [k for k in checkpoint(tmp_path / "run")["state_dict"] if "vae" in k or not k.startswith("net.")]


@pytest.mark.full
def test_previews_of_latents_without_a_first_stage_say_so(tmp_path: Path) -> None:
    small = (
        "backbone.depth=1",
        "backbone.hidden_size=32",
        "backbone.num_heads=2",
        "backbone.input_size=8",
        "data.batch_size=2",
    )
    code, output = run(
        "exp=dit_s_gated",
        "data=synthetic",
        *small,
        "trainer.max_steps=2",
        "callbacks.samples.every_n_steps=1",
        "sampler.steps=2",
        "~callbacks.sensitivity",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert code == 0, output
    assert output.count("previews show latents") == 1
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2


@pytest.mark.full
@pytest.mark.parametrize("residual", ["adaln", "skip", "resnet", "rezero"])
def test_every_rule_trains(residual: str, tmp_path: Path) -> None:
    code, output = run(
        *TINY,
        f"residual={residual}",
        "trainer.max_steps=12",
        "callbacks.sensitivity.every_n_steps=4",
        "hydra.run.dir=run",
        cwd=tmp_path,
    )
    assert code == 0, output
    weights = checkpoint(tmp_path / "run")["state_dict"].values()
    assert all(torch.isfinite(w).all() for w in weights)
    assert (tmp_path / "run" / "sensitivity" / "sensitivity.png").is_file()


@pytest.mark.full
def test_what_can_be_left_out(tmp_path: Path) -> None:
    tiny = [o for o in TINY if not o.startswith(("callbacks", "logger", "metric"))]
    code, output = run(
        *tiny,
        "~callbacks.samples",
        "~callbacks.sensitivity",
        "metric.per_class=1",
        "trainer.max_steps=2",
        "hydra.run.dir=a",
        cwd=tmp_path,
    )
    assert code == 0, output
    assert (tmp_path / "a" / "report" / "metrics.md").is_file()
    everything = ("~callbacks", "~logger", "~metric", "backbone.num_classes=0", "sampler.cfg_scale=1")
    code, output = run(*tiny, *everything, "trainer.max_steps=2", "hydra.run.dir=b", cwd=tmp_path)
    assert code == 0, output
    assert "y_embedder" not in str(checkpoint(tmp_path / "b")["state_dict"].keys())


def test_missing_pictures_are_refused_at_once(tmp_path: Path) -> None:
    code, output = run("exp=dit_xl_gated", cwd=tmp_path)
    assert code == 2
    assert str(tmp_path / "data" / "imagenet") in output
    assert "data.root=" in output
    assert "Traceback" not in output
    assert not (tmp_path / "outputs").exists()


def test_a_class_for_every_sample_is_asked_for_before_the_first_step(tmp_path: Path) -> None:
    cfg = compose_config("train", ["exp=digits_gated", "data=digits_text", "~metric"]).cfg
    with pytest.raises(ConfigError, match=r"num_classes=10, but these data have no labels"):
        train(cfg, tmp_path)
