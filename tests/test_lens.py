"""`python -m neural_rdm.lens`: a trained run, stopped at each of its units."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.end_to_end import commands
from tests.test_sample import command, refused_without_torch, tiny_run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.getbasetemp())


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_looked_at(run: Path, tmp_path: Path) -> None:
    done = command("lens", f"run={run}", "samples=5", "batch_size=2", "times=[0.1,1.0]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 samples, 2 units" in done.stdout
    paths = [tmp_path / line.strip() for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert [p.name for p in paths] == [
        "depth.csv", "left_out.csv", "depth.json", "depth.png", "depth_samples.png", "mixing.csv", "mixing.png"
    ]  # fmt: skip
    shares = [r for r in read(paths[5]) if r["reader"] == "output"]
    assert [(r["t"], r["source"] == "input") for r in shares[::3]] == [("100", True), ("999", True)]
    assert paths[0].parent.parent == tmp_path / "outputs" / "lens" / "digits_gated"
    assert [(r["t"], r["units"]) for r in read(paths[0])] == [(t, str(n)) for t in ("100", "999") for n in range(3)]
    assert json.loads(paths[2].read_text())["samples"] == 5
    assert all(Image.open(path).width > 100 for path in paths[3:] if path.suffix == ".png")

    whole = command(
        "lens", f"run={run}", "samples=5", "batch_size=5", "times=[0.1,1.0]", "hydra.run.dir=w", cwd=tmp_path
    )
    assert whole.returncode == 0, whole.stderr
    for name, columns in (("depth.csv", ("error", "x0_error")), ("left_out.csv", ("left_out", "first_order"))):
        for one, other in zip(read(paths[0].parent / name), read(tmp_path / "w" / name), strict=True):
            for column in columns:  # batches of 2, 2 and 1 say what one of 5 says
                assert float(one[column]) == pytest.approx(float(other[column]), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("exp=digits_video_gated", "backbone.depth=2"), marks=pytest.mark.full),
        pytest.param(("exp=digits_text_gated",), marks=pytest.mark.full),
        pytest.param(("diffusion=flow", "sampler=heun", "sampler.steps=2"), marks=pytest.mark.full),
    ],
    ids=["clips", "text-unet", "flow"],
)
def test_any_run_can_be_looked_at(overrides: tuple[str, ...], tmp_path: Path) -> None:
    small = [o for o in commands.BARE if overrides[0] != "exp=digits_text_gated" or not o.startswith("backbone.")]
    code, output = commands.run(*overrides, *small, "trainer.max_steps=2", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    done = command("lens", "run=run", "samples=2", "times=[0.5]", "weights=raw", "hydra.run.dir=lens", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [r["name"] for r in read(tmp_path / "lens" / "left_out.csv")]
    assert len(names) > 2
    assert [r["last_unit"] for r in read(tmp_path / "lens" / "depth.csv")] == ["", *names]
    assert (tmp_path / "lens" / "depth_samples.png").is_file()


@pytest.mark.full
def test_times_of_a_flow_are_real_numbers(tmp_path: Path) -> None:
    """With its noise known as 1, not 1000, whole timesteps would be 0 alone."""
    code, output = commands.run(
        "diffusion=flow", "diffusion.process.num_timesteps=1", "sampler=euler", *commands.BARE, "trainer.max_steps=2",
        "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    done = command("lens", "run=run", "samples=2", "times=[0.25,1.0]", "hydra.run.dir=lens", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {r["t"] for r in read(tmp_path / "lens" / "left_out.csv")} == {"0.25", "1.0"}


def test_mistakes_are_refused_in_a_line(run: Path, tmp_path: Path) -> None:
    assert "which run" in refused_without_torch("lens", cwd=tmp_path)
    assert "times" in refused_without_torch("lens", f"run={run}", "times=[50]", cwd=tmp_path)
    assert "samples" in refused_without_torch("lens", f"run={run}", "samples=0", cwd=tmp_path)
