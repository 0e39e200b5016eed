"""Clips through the commands: the embedded video default, real frame folders, joint training, text-to-image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.data.images.test_captions import coco
from tests.data.videos.test_datasets import frames
from tests.end_to_end.commands import BARE, checkpoint, run
from tests.helpers import save_word_tokenizer

pytestmark = pytest.mark.end_to_end

SMALL = (
    "backbone.depth=2", "backbone.hidden_size=32", "backbone.num_heads=4", "backbone.in_channels=3",
    "backbone.input_size=16", "backbone.patch_size=4", "data.image_size=16", "data.batch_size=4", "data.num_workers=0",
    "first_stage=identity", "trainer=cpu", "sampler=dpm", "sampler.steps=2", "logger=csv", "trainer.max_steps=2",
    "callbacks.samples.every_n_steps=2", "callbacks.samples.per_class=2", "callbacks.samples.max_classes=2",
    "~callbacks.sensitivity",
)  # fmt: skip


def report(folder: Path) -> dict[str, dict[str, float]]:
    return {row["name"]: row for row in json.loads((folder / "report" / "metrics.json").read_text())["rows"]}


def test_the_video_default_learns_in_twenty_seconds(tmp_path: Path) -> None:
    """Cut to clips of two frames and a seventh of the steps: better than the mean picture, the best without looking."""
    code, output = run(
        "exp=digits_video_gated", "trainer.max_steps=150", "backbone.num_frames=2", "data.batch_size=32",
        "sampler.steps=10", "metric.per_class=4", "callbacks.samples.per_class=1", "~callbacks.sensitivity",
        "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    rows = report(tmp_path / "run")
    assert rows["generated"]["frechet_pixels"] < 17  # 14 when this was written; the mean picture: 20, noise: 41
    assert rows["generated"]["motion"] > 0.3
    assert rows["real, held out"]["accuracy"] > 0.97
    gif = Image.open(tmp_path / "run/samples/final.gif")
    assert gif.n_frames == 2
    assert "final.gif" in output
    code, output = run("run=run", "per_class=2", "classes=[3,7]", "hydra.run.dir=drawn", cwd=tmp_path, module="sample")
    assert code == 0, output
    assert Image.open(tmp_path / "drawn/grid.gif").n_frames == 2
    assert (tmp_path / "drawn/grid.png").is_file()


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_video_default_shows_the_digits_that_are_asked_for(tmp_path: Path) -> None:
    code, output = run("exp=digits_video_gated", "hydra.run.dir=run", cwd=tmp_path, timeout=1500)
    assert code == 0, output
    rows = report(tmp_path / "run")
    assert rows["generated"]["accuracy"] >= 0.75
    assert rows["generated"]["motion"] > 0.6
    assert rows["generated"]["frechet_pixels"] < 4


@pytest.mark.parametrize(
    "more", [pytest.param((), marks=pytest.mark.full, id="clips"), pytest.param(("data.image_frames=2",), id="joint")]
)
def test_frame_folders_train_a_latte(tmp_path: Path, more: tuple[str, ...]) -> None:
    for i in range(3):
        frames(tmp_path / "sky/sky_train" / f"v{i}" / "1", 12)
    code, output = run(
        "exp=latte_s_gated", *SMALL, "backbone.num_frames=4", "data.root=sky", *more, "hydra.run.dir=run", cwd=tmp_path
    )
    assert code == 0, output
    assert Image.open(tmp_path / "run/samples/step=000000002.gif").n_frames == 4
    assert checkpoint(tmp_path / "run")["global_step"] == 2


@pytest.mark.full
def test_captions_train_a_text_to_image_network(tmp_path: Path) -> None:
    coco(coco(tmp_path / "coco"), "val2017", 3)
    code, output = run(
        "exp=dit_xl_gated_t2i", *SMALL, "data.root=coco", f"condition.path={encoder(tmp_path / 'clip')}",
        "condition.dim=16", "condition.max_length=12", "sampler.cfg_scale=2", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    state = checkpoint(tmp_path / "run")["state_dict"]
    assert "net.blocks.0.cross_unit.alpha" in state
    assert not any("text_model" in name for name in state)
    assert (tmp_path / "run/samples/step=000000002.png").is_file()
    code, output = run(
        "run=run", "prompts=['a red kite','a dog']", "per_class=1", "hydra.run.dir=drawn", cwd=tmp_path, module="sample"
    )
    assert code == 0, output
    assert json.loads((tmp_path / "drawn/sampling.json").read_text())["prompts"] == ["a red kite", "a dog"]


def encoder(folder: Path) -> Path:
    """A tiny CLIP text encoder in transformers' layout."""
    transformers = pytest.importorskip("transformers", reason="text needs the extra `text`")
    save_word_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "kite", "dog", "picture"])
    torch.manual_seed(0)
    transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=9, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=12, eos_token_id=3, bos_token_id=2, pad_token_id=0,
        )
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_pretrained_weights_gates_alone_and_supervision(tmp_path: Path) -> None:
    from neural_rdm import DiT

    torch.manual_seed(1)
    plain = DiT(8, 4, 1, 32, 2, 4, num_classes=10, residual="resnet")
    for p in plain.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.1)
    torch.save({"model": {}, "ema": plain.state_dict()}, tmp_path / "official.pt")
    code, output = run(
        *BARE, "pretrained.path=official.pt", "train_only=gates", "gamma=0.35", "trainer.max_steps=3",
        "log_every_n_steps=1", "hydra.run.dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert code == 0, output
    assert f"starting from {tmp_path / 'official.pt'}" in output
    assert "256 trained" in output
    state = checkpoint(tmp_path / "run")["state_dict"]
    for name, value in plain.state_dict().items():
        assert torch.equal(state[f"net.{name}"], value), name
    assert not torch.equal(state["net.blocks.0.attn_unit.alpha"], torch.ones(32))
    assert "train/sens_loss" in (tmp_path / "run/metrics.csv").read_text()
    (tmp_path / "official.pt").unlink()  # a run that goes on needs it no more
    code, output = run("resume=run", cwd=tmp_path)
    assert code == 0, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pretrained.path=absent.pt",), ("no such file or folder",)),
        (("train_only=gates", "residual=resnet"), ("has no gates", "train_only=all")),
        (("gamma=0.35", "residual=adaln"), ("not supervised", "gamma=0")),
        (("gamma=0.35", "residual=resnet"), ("gamma=0",)),
        (("pretrained.reinit=[y_embedder]",), ("without pretrained.path",)),
        (("backbone.context_dim=16",), ("needs both an encoder", "condition=clip")),
        (("exp=dit_xl_gated_finetune", "data=synthetic"), ("pretrained.path=DiT-XL-2-256x256.pt", "no such file")),
        (("exp=digits_video_gated", "data.num_frames=4"), ("backbone.num_frames=8",)),
        (("exp=digits_video_gated", "backbone.depth=3"), ("odd",)),
        (("exp=latte_s_gated", "data.root=absent"), ("no folder",)),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_message(
    tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, output = run(*arguments, cwd=tmp_path)
    assert code == 2, output
    assert "Traceback" not in output
    for word in words:
        assert word in output
