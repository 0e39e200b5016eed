"""The packages of `examples/`, used as an outsider would: by `--config-dir`, in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import ConfigError, DataError
from tests import processes
from tests.helpers import ROOT
from tests.latents.test_first_stage import tiny_autoencoder

RULES, NETWORKS, DATA, METRICS = (ROOT / "examples" / name for name in ("rules", "networks", "data", "metrics"))
SMALL = [
    *("backbone.depth=2", "backbone.hidden_size=16", "backbone.num_heads=2", "data.batch_size=8", "data.limit=64"),
    *("trainer.max_steps=3", "optimizer.schedule=constant", "~metric", "checkpoint.every_n_steps=2"),
    "log_every_n_steps=1",
]


def run(command: str, *arguments: str, folders: bool = True, package: Path = RULES) -> str:
    """What `python -m neural_rdm.COMMAND` prints; it has to end well."""
    options = ["--config-dir", str(package / "configs")] if folders else []
    if not folders or command == "evaluate":  # what the run folder names is in none of these files
        options.append("trust=[damped,pair,mixer,shapes]")
    paths = [*map(str, (RULES, NETWORKS, DATA, METRICS)), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = processes.run(
        [sys.executable, "-m", f"neural_rdm.{command}", *options, *arguments],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.end_to_end
def test_a_rule_of_two_streams_trains_resumes_samples_and_grows(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    trained = run("train", "residual=pair", *SMALL, f"hydra.run.dir={folder}")
    assert "residual=pair" in trained
    assert "128 of them gates" in trained  # 4 units x 2 copies x 16 channels
    run("train", f"resume={folder}", "trainer.max_steps=4")
    sampled = tmp_path / "samples"
    run("sample", f"run={folder}", "per_class=1", "sampler.steps=2", f"hydra.run.dir={sampled}", folders=False)
    assert (sampled / "grid.png").is_file()
    run("deepen", f"checkpoint={folder}", "depth=3", f"hydra.run.dir={tmp_path / 'deep'}", folders=False)
    with pytest.raises(AssertionError, match="stream is several tensors"):
        run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False)


@pytest.mark.full
@pytest.mark.end_to_end
def test_a_rule_with_an_option_refuses_others_and_folds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", "residual=damped", "residual.power=0.25", *SMALL, f"hydra.run.dir={folder}")
    run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False)
    with pytest.raises(AssertionError, match=r"residual\.powers\. Did you mean residual\.power\?"):
        run("train", "residual=damped", "residual.powers=1", *SMALL, f"hydra.run.dir={tmp_path / 'wrong'}")


def test_options_of_a_rule_of_ones_own_are_read_from_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RULES)

    def check(*overrides: str) -> Any:
        composed = compose_config("train", list(overrides), [str(RULES / "configs")])
        validate(composed.cfg, "train", composed.sources)
        return composed.cfg.residual

    assert check("residual=damped").power == 0.5
    assert check("residual=pair") == {"_target_": "neural_rdm.residual.Residual", "rule": "pair.Pair", "gamma": 0.0}
    for overrides, said in (
        (["residual=damped", "residual.power=-1"], r"residual\.power=-1 must be at least 0"),
        (["residual=damped", "residual.rule=damped_.Damped"], "The package has to be importable"),
        (["residual=damped", "residual.rule=damped.Dampd"], r"Did you mean damped\.Damped\?"),
        (["residual=pair", "gamma=0.35"], "how B scales its gain is not known"),
        (["exp=digits_unet_gated", "residual=pair"], "stream is several tensors"),
    ):
        with pytest.raises(ConfigError, match=said):
            check(*overrides)


@pytest.mark.end_to_end
def test_a_network_of_ones_own_trains_samples_grows_and_leaves(tmp_path: Path) -> None:
    small = ["exp=digits_mixer", "backbone.depth=2", "backbone.width=16", *SMALL[3:]]
    folder = tmp_path / "run"
    small[small.index("~metric")] = "metric.per_class=2"
    trained = run("train", *small, f"hydra.run.dir={folder}", package=NETWORKS)
    assert "Mixer, " in trained
    assert (folder / "report" / "metrics.md").is_file()  # drawn and measured
    run("sample", f"run={folder}", "per_class=1", "sampler.steps=2", f"hydra.run.dir={tmp_path / 'samples'}",
        folders=False, package=NETWORKS)  # fmt: skip
    assert (tmp_path / "samples" / "grid.png").is_file()
    deep = tmp_path / "deep"
    grown = run("deepen", f"checkpoint={folder}", "depth=3", f"hydra.run.dir={deep}", folders=False, package=NETWORKS)
    assert "2 blocks -> 3; the output moved by at most 0\n" in grown
    assert "depth: 3" in (deep / "config.yaml").read_text()
    run("convert", f"run={folder}", "to=official", f"hydra.run.dir={tmp_path / 'out'}", folders=False, package=NETWORKS)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["network"] == "Mixer"


def test_its_blocks_compile_without_a_graph_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(NETWORKS))
    from mixer import Mixer
    from neural_rdm.backbones.contract import blocks_of

    torch._dynamo.reset()
    net = Mixer(num_classes=3)
    nn.init.normal_(net.out.weight)
    shown = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 3])
    expected = net(*shown)
    for block in blocks_of(net, "compiled"):
        block.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(net(*shown), expected)


def shapes(root: Path) -> Path:
    """What `examples/data/shapes.py` reads: 24 pictures for training and 12 for validation, of three shapes."""
    (root / "pictures").mkdir(parents=True)
    with (root / "shapes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "shape", "split"))
        for i in range(36):
            shape, picture = ("disc", "square", "wedge")[i % 3], Image.new("RGB", (20 + i % 5, 24), (30, 40, 5 * i))
            sides = {"disc": 40, "square": 4, "wedge": 3}[shape]
            ImageDraw.Draw(picture).regular_polygon((9, 10, 6), sides, fill=(250, 5 * i, 90))
            picture.save(root / "pictures" / f"{i:02}.png")
            table.writerow((f"{i:02}.png", shape, "train" if i < 24 else "val"))
    return root


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.end_to_end
def test_a_data_set_of_ones_own_is_prepared_seen_and_trained_on_as_advised(tmp_path: Path) -> None:
    own = ["data=shapes", f"data.root={shapes(tmp_path / 'set')}"]
    part, out = tmp_path / "part", tmp_path / "out"
    run("prepare", *own, "subset=4", f"subset_dir={part}", f"hydra.run.dir={out / 'prepare'}", package=DATA)
    found = read(out / "prepare" / "report.json")
    assert [row["found"] for row in found["splits"]] == [12, 12]
    assert len((part / "shapes.csv").read_text().splitlines()) == 1 + 24
    run("preview", *own, "count=5", f"hydra.run.dir={out / 'preview'}", package=DATA)
    assert read(out / "preview" / "preview.json")["classes"] == 3
    assert (out / "preview" / "grid.png").is_file()
    advised = shlex.split(re.search("`python -m neural_rdm.train (.*?)`", " ".join(found["advice"]))[1])  # type: ignore[index]
    assert advised[:2] == ["--config-dir", str(DATA / "configs")]
    small = [text for text in SMALL if text not in ("data.limit=64", "~metric")] + ["~callbacks.sensitivity"]
    trained = run("train", *advised, *small, f"hydra.run.dir={out / 'run'}", folders=False)
    assert "12 training samples" in trained
    drawn = [f"run={out / 'run'}", "sampler.steps=2"]
    run("evaluate", *drawn, "metric=smoothness", "metric.count=6", f"hydra.run.dir={out / 'evaluate'}", package=METRICS)
    rows = read(out / "evaluate" / "report" / "metrics.json")["rows"]
    assert [row["name"] for row in rows] == ["generated", "real"]
    assert rows[1]["total_variation"] > 0
    part.rename(tmp_path / "away")  # drawing needs no data
    run("sample", *drawn, "per_class=1", f"hydra.run.dir={out / 'samples'}", folders=False)
    assert (out / "samples" / "grid.png").is_file()


@pytest.mark.end_to_end
def test_a_data_set_of_ones_own_is_encoded_and_trained_on_without_its_pictures(tmp_path: Path) -> None:
    root, out = shapes(tmp_path / "set"), tmp_path / "out"
    vae = tiny_autoencoder(tmp_path / "vae")
    stage = [f"first_stage.path={vae}", "first_stage.downsample=2", "first_stage.scale=1"]
    own = ["data=shapes", f"data.root={root}", "data.image_size=16", "first_stage=kl_f8", *stage]
    latents = [f"data.latents={out / 'latents'}", "data.source=latents"]
    run("encode", *own, "shard_size=10", f"hydra.run.dir={out / 'latents'}", package=DATA)
    manifest = read(out / "latents" / "manifest.json")
    assert (manifest["class_names"], manifest["splits"]["train"]["flipped"]) == (["disc", "square", "wedge"], True)
    assert sorted(manifest["data"]) == ["_target_", "flip", "image_size", "limit"]
    run("stats", *own[:3], "features=efficientnet_lite0", f"hydra.run.dir={out / 'stats'}", package=DATA)
    told = read(out / "stats" / "statistics.json")
    assert (told["count"], told["samples_of_a_class"], told["crop"][:10]) == (24, [8, 8], "short side")
    root.rename(tmp_path / "away")
    network = ["exp=digits_gated", "backbone.num_classes=3", "backbone.in_channels=4", *SMALL, "~callbacks.sensitivity"]
    run("train", *network, *own, *latents, f"hydra.run.dir={out / 'run'}", package=DATA)
    evaluation = ["metric=smoothness", "metric.count=3", "sampler.steps=2", f"hydra.run.dir={out / 'evaluate'}"]
    run("evaluate", f"run={out / 'run'}", *evaluation, package=METRICS)
    assert [row["name"] for row in read(out / "evaluate" / "report" / "metrics.json")["rows"]] == ["generated"]


def test_what_the_data_set_of_ones_own_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DATA))
    from neural_rdm.cli.datasets import check_layout
    from neural_rdm.prepare import examine

    def composed(root: Path) -> Any:
        made = compose_config("prepare", ["data=shapes", f"data.root={root}"], [str(DATA / "configs")])
        validate(made.cfg, "prepare", made.sources)
        return made.cfg

    from neural_rdm.data.folder import FolderModule

    class Checked(FolderModule):
        @staticmethod
        def check(root: Path, absent: object) -> None:
            raise DataError(f"{root.name} is no good, {absent}")

    with pytest.raises(DataError, match=r"no good, None"):  # a check beside its class is asked when it is set up
        Checked(tmp_path, batch_size=1).setup()
    with pytest.raises(DataError, match=r"(?s)no folder .*ROOT/shapes\.csv .*Shapes comes from https://example\.org"):
        check_layout(composed(tmp_path / "nowhere").data)
    root = shapes(tmp_path / "set")
    assert examine(composed(root))[1].warnings == ["36 of 36 are smaller than data.image_size=32 and will be enlarged"]
    (root / "pictures" / "07.png").unlink()
    (root / "pictures" / "08.png").write_bytes(b"no picture")
    _, found = examine(composed(root))
    assert found.missing == ["pictures/07.png"]
    assert any(text.startswith("1 of 24 named in") for text in found.warnings)
    assert set(found.broken) == {str(root / "pictures" / name) for name in ("07.png", "08.png")}
    (root / "shapes.csv").write_text("file,split\n")
    assert examine(composed(root))[1].problem.startswith("data.root: ")  # type: ignore[union-attr]


PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
TYPED = re.findall(r"(?m)^python -m neural_rdm\.(\w+) (.*)$", PAGE)


@pytest.mark.parametrize(("command", "typed"), TYPED)
def test_every_command_of_the_page_composes(command: str, typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in (RULES, NETWORKS, DATA, METRICS):
        monkeypatch.syspath_prepend(str(package))
    option, folder, *overrides = shlex.split(typed)
    assert option == "--config-dir"
    composed = compose_config(command, [o for o in overrides if o != "run=DIR"], [str(ROOT / folder)])
    if command not in ("encode", "evaluate"):  # which need the choices of an experiment, or of a run
        validate(composed.cfg, command, composed.sources)


def test_the_code_of_the_page_is_that_of_the_examples() -> None:
    shown = re.findall(r"```(?:python|yaml)\n# (examples/\S+)\n(.*?)```", PAGE, re.S)
    assert {name.split("/")[1] for name, _ in shown} == {"rules", "networks", "data", "metrics"}
    for name, code in shown:
        for part in code.split("...\n"):  # what is left out
            lines = [line for line in part.splitlines() if line.strip()]
            whole = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line.strip()]
            found = any(whole[i : i + len(lines)] == lines for i in range(len(whole)))
            assert found, f"{name} does not say {part}"
