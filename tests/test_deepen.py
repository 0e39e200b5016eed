"""The deepen command: a run grows, and training goes on in the grown one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from neural_rdm import deepen
from neural_rdm.core.errors import ConfigError
from neural_rdm.core.files import load_tensors
from tests.end_to_end.commands import BARE, checkpoint, run

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of a clip network, gates and averages included."""
    folder = tmp_path_factory.mktemp("deepen")
    code, output = run(
        "exp=digits_video_gated", *BARE, "trainer.max_steps=3", "optimizer.schedule=constant",
        "optimizer.warmup_steps=0", "optimizer.lr=1e-3", "hydra.run.dir=run", cwd=folder,
    )  # fmt: skip
    assert code == 0, output
    return folder


def test_a_run_grows_and_goes_on(trained: Path) -> None:
    code, output = run(
        "checkpoint=run", "depth=4", "max_steps=5", "hydra.run.dir=deep", cwd=trained, module="deepen"
    )  # fmt: skip
    assert code == 0, output
    assert "2 blocks -> 4; the output moved by at most 0" in output
    manifest = json.loads((trained / "deep/checkpoints/deepen.json").read_text())
    assert manifest["max_output_difference"] == {"raw": 0.0, "ema": 0.0}
    assert manifest["new_blocks"] == ["blocks.2", "blocks.3"]
    assert manifest["copied_from"] == ["blocks.0", "blocks.1"]
    old, new = checkpoint(trained / "run"), checkpoint(trained / "deep")
    assert new["global_step"] == old["global_step"] == 3
    assert torch.equal(
        new["ema"]["weights"]["blocks.2.attn.qkv.weight"], old["ema"]["weights"]["blocks.0.attn.qkv.weight"]
    )
    assert not new["ema"]["weights"]["blocks.2.attn_unit.alpha"].any()
    before, after = old["optimizer_states"][0], new["optimizer_states"][0]
    assert len(after["state"]) == len(before["state"])  # of the kept tensors; the new ones have none
    held = sum(len(g["params"]) for g in after["param_groups"])
    assert held == len(before["state"]) + 2 * 14  # a block: 5 layers with a bias each, and 4 gates
    moments = sorted(float(s["exp_avg"].sum()) for s in before["state"].values())
    assert moments == sorted(float(s["exp_avg"].sum()) for s in after["state"].values())

    code, output = run("resume=deep", cwd=trained)
    assert code == 0, output
    assert "continuing after step 3" in output
    grown = checkpoint(trained / "deep")
    steps = {float(s["step"]) for s in grown["optimizer_states"][0]["state"].values()}
    assert steps == {5.0, 2.0}  # kept moments go on, new ones began at 0
    lr = 1e-3
    alpha = load_tensors(trained / "deep/checkpoints/step=000000005.ckpt")["state_dict"]["net.blocks.2.attn_unit.alpha"]
    assert 0 < alpha.abs().max() <= 2 * lr * 1.01  # two of Adam's first updates, not 3.2 times that


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("depth=4",), "which network? Pass checkpoint=DIR"),
        (("checkpoint=nowhere", "depth=4"), "no such folder"),
        (("checkpoint=run", "depth=2"), "the network has 2 blocks; give more than 2, by a multiple of 2"),
        (("checkpoint=run", "depth=4", "placement=between"), "not one of interleave"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_message(trained: Path, arguments: tuple[str, ...], word: str) -> None:
    code, output = run(*arguments, cwd=trained, module="deepen")
    assert code == 2
    assert word in output
    assert "Traceback" not in output


def test_other_operators_say_how_far_they_move_the_output(trained: Path) -> None:
    code, output = run(
        "checkpoint=run/checkpoints/last.ckpt", "depth=4", "operator=duplicate", "hydra.run.dir=twice",
        cwd=trained, module="deepen",
    )  # fmt: skip
    assert code == 0, output
    assert "resume=twice trainer.max_steps=N, N above 3" in output
    moved = json.loads((trained / "twice/checkpoints/deepen.json").read_text())["max_output_difference"]
    assert moved["raw"] > 0


@pytest.mark.full
def test_a_learned_schedule_stays_as_it_is(tmp_path: Path) -> None:
    code, output = run("diffusion=learned", *BARE, "trainer.max_steps=3", "hydra.run.dir=run", cwd=tmp_path)
    assert code == 0, output
    code, output = run("checkpoint=run", "depth=4", "max_steps=4", "hydra.run.dir=deep", cwd=tmp_path, module="deepen")
    assert code == 0, output
    assert "Continue with: python -m neural_rdm.train resume=deep\n" in output
    old, new = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "deep")
    logits = old["state_dict"]["objective.learned_times.logits"]
    assert logits.abs().max() > 0
    assert torch.equal(new["state_dict"]["objective.learned_times.logits"], logits)
    before, after = (c["optimizer_states"][0] for c in (old, new))
    assert after["param_groups"][-1]["name"] == "schedule"
    (number,), (place,) = (o["param_groups"][-1]["params"] for o in (before, after))
    assert torch.equal(after["state"][place]["exp_avg"], before["state"][number]["exp_avg"])
    code, output = run("resume=deep", cwd=tmp_path)
    assert code == 0, output
    code, output = run("checkpoint=run", "depth=4", "hydra.run.dir=over", cwd=tmp_path, module="deepen")
    assert code == 0, output
    assert "deepen with max_steps=N, N above 3: the cosine schedule" in output
    assert "resume=" not in output  # which would have nothing to do


def test_the_newest_run_can_be_named_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="checkpoint=last: there is no trained run"):
        deepen.complete(["checkpoint=last", "depth=4"])
    for name in ("b_exp/2026-01-01", "a_exp/2026-01-02"):
        folder = Path("outputs/train") / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").touch()
    monkeypatch.setattr(
        deepen, "read_config", lambda folder: OmegaConf.create({"choices": {"exp": folder.parent.name}})
    )
    assert deepen.complete(["checkpoint=last", "depth=4"]) == [
        "++experiment='a_exp'", "checkpoint=last", "depth=4", "checkpoint='outputs/train/a_exp/2026-01-02'",
    ]  # fmt: skip


def test_a_widened_control_is_not_deepened(tmp_path, monkeypatch):
    monkeypatch.setattr(deepen, "read_config", lambda folder: OmegaConf.create({"control": "mlp_widened"}))
    with pytest.raises(ConfigError, match="how wide its MLPs are depends on the depth"):
        deepen.complete([f"checkpoint={tmp_path}", "depth=4"])
