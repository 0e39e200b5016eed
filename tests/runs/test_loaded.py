"""A run in Python: its samples, numbers and sensitivities are those of the commands."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import neural_rdm
from neural_rdm.core.errors import UserError
from neural_rdm.media.images import to_bytes
from neural_rdm.residual import units
from neural_rdm.runs import shared
from neural_rdm.runs.loaded import LoadedRun
from tests.end_to_end.commands import TINY, run
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run with a metric."""
    here = tmp_path_factory.mktemp("python")
    more = (
        "~callbacks.sensitivity",
        "metric.per_class=2",
        "sampler.steps=4",
        "trainer.max_steps=4",
        "hydra.run.dir=run",
    )
    code, output = run("exp=digits_gated", *TINY, *more, "hydra.run.dir=outputs/train/digits_gated/run", cwd=here)
    assert code == 0, output
    return here / "outputs" / "train" / "digits_gated" / "run"


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedRun:
    return neural_rdm.load_run(str(folder), accelerator="cpu")


def test_samples_are_those_of_the_command(folder: Path, loaded: LoadedRun, tmp_path: Path) -> None:
    command = (f"run={folder}", "classes=[3,7]", "per_class=2", "accelerator=cpu", "hydra.run.dir=s")
    code, output = run(*command, cwd=tmp_path, module="sample")
    assert code == 0, output
    written = np.load(tmp_path / "s" / "samples.npz")
    drawn = loaded.sample(classes=[3, 3, 7, 7])
    assert drawn.shape == (4, 1, 8, 8)
    assert np.array_equal(to_bytes(drawn).movedim(1, -1).numpy(), written["arr_0"])
    # any part of them is the same again, and another sampler is not
    assert torch.equal(loaded.sample(classes=[3, 3]), drawn[:2])
    assert not torch.equal(loaded.sample(classes=[3, 3], cfg_scale=4.0), drawn[:2])
    assert loaded.sample(count=3, classes=[5]).shape[0] == 3
    assert loaded.sample().shape[0] == loaded.net.num_classes
    assert torch.equal(loaded.sample(classes=torch.tensor([3, 3])), drawn[:2])


def test_numbers_are_those_at_the_end_of_training(folder: Path, loaded: LoadedRun) -> None:
    held = json.loads((folder / "report" / "metrics.json").read_text(encoding="utf-8"))
    first = held["rows"][0] if "rows" in held else held
    found = loaded.evaluate()
    assert found["count"] == 20
    for name, value in found.items():
        assert first[name] == pytest.approx(value, rel=1e-4), name
    assert loaded.evaluate(seed=1) != found


def test_sensitivity_is_the_gradient_where_the_stream_enters_a_unit(loaded: LoadedRun) -> None:
    """Against the definition: the gradient of the same loss in a tensor that is the stream, caught by hooks."""
    from neural_rdm.runs import build

    found = loaded.sensitivity(samples=16)
    assert [row.name for row in found] == [name for name, _ in units(loaded.net)]
    module = build.module(loaded.config, "pixels", begins=False, net=loaded.net).eval()
    entered: list[Tensor] = []

    def enter(_: object, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        z = arguments[0].detach().requires_grad_() if not entered else arguments[0]
        z.retain_grad()
        entered.append(z)
        return z, *arguments[1:]

    hooks = [unit.register_forward_pre_hook(enter) for _, unit in units(loaded.net)]
    try:
        (batch,) = loaded.batches(16, 16)
        module.losses(batch, "val", drop=False)["loss"].mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    wanted = [float(z.grad.norm()) for z in entered if z.grad is not None]
    assert [row.norm for row in found] == pytest.approx(wanted, rel=1e-4)
    assert not any(p.requires_grad or p.grad is not None for p in loaded.net.parameters())


def test_the_example_of_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "load_run" in block)
    monkeypatch.chdir(folder.parents[3])
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["images"].shape == (2, 1, 8, 8)
    assert names["numbers"].keys() >= {"accuracy", "count"}
    assert len(names["gains"]) == 4
    assert names["batch"]["x"].shape == (32, 1, 8, 8)


def test_what_a_run_cannot_draw_is_said_in_one_sentence(loaded: LoadedRun, tmp_path: Path) -> None:
    for wrong, said in (
        ({"classes": [10]}, "this network has 10 classes"),
        ({"prompts": ["a seven"]}, "reads no text"),
        ({"sigma": 1.0}, "a sampler has no 'sigma'"),
        ({"step": 4}, "Did you mean steps"),
        ({"classes": []}, "nothing to draw"),
        ({"classes": [1.5]}, "whole numbers"),
        ({"classes": 3}, "whole numbers"),
        ({"seed": 1.5}, "seed"),
        ({"count": "3"}, "count"),
        ({"steps": 0}, "steps"),
        ({"count": 0}, "count"),
    ):
        with pytest.raises(UserError, match=said):
            loaded.sample(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the choices are auto, cpu, gpu"):
        neural_rdm.load_run(loaded.folder, accelerator="tpu")
    with pytest.raises(UserError, match="no such folder"):
        neural_rdm.load_run(tmp_path / "none")


def test_a_shared_run_is_the_run(loaded: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = loaded.share(tmp_path / "shared")
    again = neural_rdm.load_run(tmp_path / "shared", accelerator="cpu")
    assert (again.step, again.weights) == (loaded.step, "ema")
    assert torch.equal(again.sample(classes=[3, 7]), loaded.sample(classes=[3, 7]))
    texts = [path.read_text("utf-8") for path in paths if path.suffix in (".yaml", ".md")]
    assert not any(str(loaded.folder.parents[3]) in text for text in texts)  # no path of this machine
    card = texts[-1]
    assert "library_name: neural-rdm" in card.split("---")[1]
    for said in ("residual rule | gated", "residual.beta_form | additive", "4 of 4", "digits", "accuracy", "load_run("):
        assert said in card, card
    assert ("![samples](samples.png)" in card) == (tmp_path / "shared" / "samples.png").is_file()

    # from the hub, by the name under which it was pushed
    uploaded: dict[str, Any] = {}

    class Api:
        endpoint = "https://hub.invalid"

        def create_repo(self, name: str, exist_ok: bool) -> None:
            uploaded["name"] = name

        def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
            uploaded["folder"] = folder_path

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: str(uploaded["folder"]))
    monkeypatch.setattr(shared, "from_hub", lambda name, load: load(True))
    assert shared.push(tmp_path / "shared", "me/digits") == "https://hub.invalid/me/digits"
    assert torch.equal(neural_rdm.load_run("hub:me/digits", accelerator="cpu").sample(count=1), loaded.sample(count=1))


def test_a_link_among_the_pictures_of_a_run_is_not_handed_on(loaded: LoadedRun, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine")
    folder = tmp_path / "theirs"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "final.png").symlink_to(tmp_path / "private")
    paths = replace(loaded, folder=folder).share(tmp_path / "shared")
    assert not (tmp_path / "shared" / "samples.png").exists()
    assert "samples.png" not in "".join(path.read_text() for path in paths if path.suffix == ".md")


def test_a_shared_run_that_is_not_whole_is_refused(loaded: LoadedRun, tmp_path: Path) -> None:
    loaded.share(tmp_path)
    with pytest.raises(UserError, match="holds the weights ema alone"):
        neural_rdm.load_run(tmp_path, weights="raw")
    config = (tmp_path / "config.yaml").read_text("utf-8")
    (tmp_path / "config.yaml").write_text(config.replace("gamma: 0.0", "gamma: 0.1"), "utf-8")
    with pytest.raises(UserError, match="does not belong to"):
        neural_rdm.load_run(tmp_path)
    (tmp_path / "config.yaml").write_text(config, "utf-8")
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError, match="its weights are not as they were written"):
        neural_rdm.load_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content.replace(b'"sha256"', b'"sha25v"'))  # a bit of its name
    with pytest.raises(UserError, match="its weights are not as they were written"):
        neural_rdm.load_run(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        neural_rdm.load_run(tmp_path)
    with pytest.raises(UserError, match="run=hub:nobody/nothing"):
        neural_rdm.load_run("hub:nobody/nothing")
