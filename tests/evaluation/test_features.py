"""metric=images and metric=videos: what is drawn, how it is rounded, and what its numbers are compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.core.errors import CheckpointError, ConfigError, DataError
from neural_rdm.core.files import sha256_of
from neural_rdm.diffusion.samplers import Sampler
from neural_rdm.evaluation.features import FeatureReport
from neural_rdm.evaluation.measuring import Subject
from neural_rdm.evaluation.sample_files import open_samples
from neural_rdm.media.images import to_bytes
from neural_rdm.metrics import clip_score, inception_score, networks
from neural_rdm.metrics.frechet import frechet_distance
from neural_rdm.metrics.networks.base import FeatureNetwork
from neural_rdm.metrics.networks.c3d import Layers
from neural_rdm.metrics.networks.text_image import CLIP
from neural_rdm.metrics.reference import write_reference
from neural_rdm.stats import complete, stats
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.recording import EvaluationLog
from tests.helpers import save_word_tokenizer
from tests.training.trainer import fit, tiny_module


class Means(FeatureNetwork):
    """Four means of an image: one for each quarter; of a clip also one that its motion moves."""

    name = "efficientnet_lite0"  # a name that the configuration knows
    outputs = {"pool": 4}
    weights = networks.EfficientNetLite0.weights

    def __init__(self, path: Any = None, sha256: Any = None) -> None:
        super().__init__()
        self.weights_hash = self.weights.sha256
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"pool": nn.functional.adaptive_avg_pool2d(images.float().mean(-3, keepdim=True), 2).flatten(1)}


class Motions(Means):
    name = "efficientnet_lite0_video"
    outputs = {"motion": 4}
    takes_clips = True
    min_frames = 2

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"motion": Means.features(self, images.float().diff(dim=1).mean(1))["pool"]}


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for network in (Means, Motions):
        monkeypatch.setitem(networks.NETWORKS, network.name, network)


def statistics(path: Path, network: type[Means], samples: Tensor) -> Path:
    """A file of the statistics of uint8 samples."""
    (rows,) = network()(samples).values()
    rows = rows.double()
    return write_reference(path, network(), {network.main(): (rows.mean(0), rows.T.cov())}, len(rows))


def picture(position: int) -> Tensor:
    """The sample of a position, in [-1, 1] and a little beyond."""
    generator = torch.Generator().manual_seed(position)
    return torch.empty(1, 8, 8).uniform_(-1.2, 1.2, generator=generator)


def subject(shape: tuple[int, ...] = (1, 8, 8), asked: list[Any] | None = None, **more: Any) -> Subject:
    """Something that draws `picture`s, in batches of three, and remembers what it was asked for."""

    def draws(sampler: Sampler, condition: dict[str, Tensor], positions: range, use: Any = None) -> Tensor:
        if asked is not None:
            asked.append((positions, condition))
        for start in range(0, len(positions), 3):
            batch = positions[start : start + 3]
            use(torch.stack([picture(p).expand(shape) for p in batch]), batch)
        return torch.empty(0)

    facts: dict[str, Any] = {
        "net": SimpleNamespace(num_classes=4),
        "text": None,
        "data": None,
        "draws": draws,
        "sampler": Sampler(),
        "weights": "ema",
        "step": 7,
        "seed": 3,
        "decode": None,
        "device": torch.device("cpu"),
        "first_stage": "none",
    }
    return Subject(**facts | more)


@pytest.fixture
def real() -> Tensor:
    return torch.randint(0, 256, (40, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_the_distance_is_that_of_the_rounded_samples(real: Tensor, tmp_path: Path) -> None:
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=11)
    asked: list[Any] = []
    rows, protocol, _ = report.rows(subject(asked=asked))
    drawn = torch.stack([to_bytes(picture(i)) for i in range(11)]).expand(-1, 3, -1, -1)
    sets = [Means()(x)["pool"].double() for x in (real, drawn)]
    wanted = frechet_distance(*(m for rows in sets for m in (rows.mean(0), rows.T.cov())))
    assert rows[0]["name"] == "generated"
    assert rows[0]["frechet_efficientnet_lite0"] == pytest.approx(wanted, rel=1e-9)
    assert rows[0]["count"] == 11
    assert [positions for positions, _ in asked] == [range(11)]
    assert asked[0][1]["y"].tolist() == [i % 4 for i in range(11)]
    assert "11 samples, 4 classes equally often, the first ones once more; weights ema; step 7; seed 3." in protocol
    assert "uint8" in protocol
    again, _, _ = report.rows(subject())
    assert again == rows  # nothing is left of what was measured before


def test_a_network_without_classes_is_asked_for_nothing(real: Tensor, tmp_path: Path) -> None:
    asked: list[Any] = []
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=8)
    _, protocol, _ = report.rows(subject(asked=asked, net=SimpleNamespace(num_classes=0)))
    assert asked[0][1] == {}
    assert "8 unconditional samples" in protocol


def test_texts_are_encoded_in_parts(real: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neural_rdm.evaluation.features.TEXTS", 4)
    asked: list[Any] = []
    remembered: list[str] = []
    text = SimpleNamespace(
        encode=lambda said: (torch.tensor([[[float(s)]] for s in said]), torch.ones(len(said), 1)),
        remember=remembered.extend,
    )
    data = SimpleNamespace(
        prompts=lambda count: [str(i) for i in range(min(count, 6))],
        prompts_of="validation",
        tokens=lambda texts: dict.fromkeys(texts),
    )
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=9)
    _, protocol, facts = report.rows(subject(asked=asked, text=text, data=data))
    assert [positions for positions, _ in asked] == [range(4), range(4, 8), range(8, 9)]
    assert [c["context"].flatten().tolist() for _, c in asked] == [[0, 1, 2, 3], [4, 5, 0, 1], [2]]
    assert "9 samples of 6 different captions (validation), up to 2 of each, for there are no more" in protocol
    assert facts["captions"] == 6
    assert set(remembered) == set("012345")  # what the data hold ready is not encoded again
    _, protocol, facts = report.with_count(6).rows(subject(asked=asked, text=text, data=data))
    assert "6 samples of 6 different captions (validation); weights" in protocol


def test_latents_are_decoded_before_they_are_rounded(real: Tensor, tmp_path: Path) -> None:
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=8)
    plain, _, _ = report.rows(subject())
    scaled, _, _ = report.rows(subject(decode=lambda z: z.expand(-1, 3, -1, -1) * 0.5))
    assert scaled[0]["frechet_efficientnet_lite0"] != plain[0]["frechet_efficientnet_lite0"]
    with pytest.raises(ConfigError, match="4 channels are no pictures"):
        report.rows(subject(shape=(4, 8, 8)))


def test_clips_and_their_frames(real: Tensor, tmp_path: Path) -> None:
    clips = real.unflatten(0, (10, 4))
    report = FeatureReport(
        "efficientnet_lite0_video",
        str(statistics(tmp_path / "clips.npz", Motions, clips)),
        count=6,
        frame_features="efficientnet_lite0",
        frame_reference=str(statistics(tmp_path / "frames.npz", Means, real)),
    )
    rows, protocol, _ = report.rows(subject(shape=(4, 1, 8, 8)))
    names = {"frechet_efficientnet_lite0_video", "frechet_efficientnet_lite0_frames"}
    assert names < rows[0].keys()
    assert (rows[0]["count"], rows[0]["count_frames"]) == (6, 24)
    assert "Frames: features efficientnet_lite0" in protocol
    drawn = torch.stack([to_bytes(picture(i)) for i in range(6)]).expand(-1, 3, -1, -1).repeat_interleave(4, 0)
    sets = [Means()(x)["pool"].double() for x in (real, drawn)]
    wanted = frechet_distance(*(m for rows in sets for m in (rows.mean(0), rows.T.cov())))
    assert rows[0]["frechet_efficientnet_lite0_frames"] == pytest.approx(wanted, rel=1e-9)


def test_samples_on_disk_are_measured_as_those_that_are_drawn(real: Tensor, tmp_path: Path) -> None:
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=9)
    drawn, _, _ = report.rows(subject())
    images = torch.stack([to_bytes(picture(i)) for i in range(9)]).movedim(1, -1).numpy()
    np.savez(tmp_path / "samples.npz", arr_0=images)
    files = open_samples(tmp_path / "samples.npz")
    rows, protocol, _ = report.rows_of_files(files, 4, torch.device("cpu"), "made up.")
    assert rows[0] == pytest.approx({**drawn[0], "name": "generated"})
    assert "9 samples" in protocol
    assert protocol.endswith("made up.")
    assert "npz, gray (exact)" in protocol
    (tmp_path / "jpeg").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "jpeg" / f"{i}.jpg")
    rows, protocol, facts = report.rows_of_files(open_samples(tmp_path / "jpeg"), 4, torch.device("cpu"), "made up.")
    assert rows[0]["container"] == "jpg, jpeg, L (lossy)", "a mark beside the number in every table"
    assert (facts["container"], facts["codec"], facts["lossless"]) == ("jpg", "jpeg", False)
    assert "whose loss is a part of these numbers" in protocol
    np.savez(tmp_path / "one.npz", arr_0=images[:1])
    with pytest.raises(DataError, match="at least"):
        report.rows_of_files(open_samples(tmp_path / "one.npz"), 4, torch.device("cpu"), "")
    np.savez(tmp_path / "clips.npz", arr_0=np.repeat(images[:, None], 4, axis=1))
    with pytest.raises(ConfigError, match="holds clips; choose metric"):
        report.rows_of_files(open_samples(tmp_path / "clips.npz"), 4, torch.device("cpu"), "")


def test_what_cannot_be_measured_is_refused_before_training(real: Tensor, tmp_path: Path) -> None:
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=9)
    image, clip = SimpleNamespace(sample_shape=(1, 8, 8)), SimpleNamespace(sample_shape=(4, 1, 8, 8))
    report.check(image, None, pixels=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no first_stage decodes them"):
        report.check(image, None, pixels=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not take clips"):
        report.check(clip, None, pixels=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="goes with frame_reference"):
        FeatureReport("efficientnet_lite0_video", "x", 9, frame_features="efficientnet_lite0")
    with pytest.raises(ConfigError, match="measures the frames of clips"):
        FeatureReport("efficientnet_lite0", "x", 9, frame_features="efficientnet_lite0", frame_reference="y")


def tiny_clip(folder: Path) -> Path:
    """A CLIP of random weights, saved as a hub's is."""
    transformers = pytest.importorskip("transformers", reason="the CLIP score needs the extra `text`")
    save_word_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(str(i) for i in range(6))])
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config=sizes | ids, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=12
        )
    ).save_pretrained(folder)
    sides = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    transformers.CLIPImageProcessor(**sides).save_pretrained(folder)
    return folder


def test_the_clip_score_pairs_every_image_with_its_own_text(real: Tensor, tmp_path: Path) -> None:
    folder = tiny_clip(tmp_path / "Tiny-CLIP")
    text = SimpleNamespace(
        encode=lambda said: (torch.zeros(len(said), 1, 1), torch.ones(len(said), 1)), remember=lambda known: None
    )
    data = SimpleNamespace(
        prompts=lambda count: [str(i) for i in range(6)], prompts_of="validation", tokens=lambda texts: {}
    )
    report = FeatureReport(
        "efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=8, clip=str(folder)
    )
    rows, protocol, _ = report.rows(subject(text=text, data=data))
    images = torch.stack([to_bytes(picture(i)) for i in range(8)]).expand(-1, 3, -1, -1)
    model = CLIP(str(folder))
    wanted = clip_score(*model(images, [str(i % 6) for i in range(8)]))
    assert rows[0]["clip_score_tiny_clip"] == pytest.approx(wanted, rel=1e-5)
    assert wanted != pytest.approx(clip_score(*model(images, ["0"] * 8)), rel=1e-3)
    assert "CLIP score: tiny_clip" in protocol
    with pytest.raises(ConfigError, match="reads none"):
        report.check(SimpleNamespace(sample_shape=(1, 8, 8)), SimpleNamespace(context_dim=None), pixels=True)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="cannot load a CLIP model"):
        CLIP(str(tmp_path))
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot load a CLIP model"):
        CLIP(str(folder))


def test_evaluations_while_training(real: Tensor, tmp_path: Path) -> None:
    report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=500)
    log = EvaluationLog(every_n_steps=2, count=12)
    log.report, log.sampler = report, Sampler(steps=2, cfg_scale=3.0)
    module = tiny_module()
    fit(module, tmp_path, EMA(decay=0.5), log, steps=5)
    lines = (tmp_path / "evaluations.csv").read_text().splitlines()
    header, rows = (
        lines[0].split(","),
        [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]],
    )
    assert header[:4] == ["step", "images", "weights", "cfg_scale"]
    assert [(r["step"], r["images"], r["weights"], float(r["cfg_scale"]), r["count"]) for r in rows] == [
        (str(step), str(step * 16), "ema", 1.0, "12") for step in (2, 4)
    ]
    assert len({r["frechet_efficientnet_lite0"] for r in rows}) == 2
    assert report.count == 500
    without = EvaluationLog(every_n_steps=1)
    fit(tiny_module(), tmp_path / "without", without, steps=1)
    assert not (tmp_path / "without" / "evaluations.csv").exists()


def test_an_evaluation_does_not_touch_the_training(real: Tensor, tmp_path: Path) -> None:
    log = EvaluationLog(every_n_steps=1, count=4)
    log.report = FeatureReport("efficientnet_lite0", str(statistics(tmp_path / "s.npz", Means, real)), count=4)
    log.sampler = replace(Sampler(), steps=1)
    watched, plain = tiny_module(), tiny_module()
    fit(watched, tmp_path / "watched", EMA(decay=0.5), log, steps=3)
    fit(plain, tmp_path / "plain", EMA(decay=0.5), steps=3)
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_score_of_clips_is_c3ds_in_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """stats, evaluate and metric=videos take a C3D by path and hash, and say whose score it is."""

    def cheap(self: Any, clips: Tensor) -> dict[str, Tensor]:
        return {"logits": clips.float().mean((1, 2, 4)).repeat(1, 15)[:, :101] / 9}

    monkeypatch.setattr(networks.C3D, "features", cheap)
    with torch.device("meta"):
        layout = Layers(ends=False).state_dict()
    torch.save({name: torch.zeros(()).expand(value.shape) for name, value in layout.items()}, tmp_path / "c3d.pth")
    clips = np.random.default_rng(0).integers(0, 256, (24, 16, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", arr_0=clips)
    named = [f"features_path={tmp_path / 'c3d.pth'}", f"features_sha256={sha256_of(tmp_path / 'c3d.pth')}"]

    def composed(command: str, *overrides: str) -> Any:
        found = compose_config(command, list(overrides))
        validate(found.cfg, command, found.sources)
        return found.cfg

    asked = complete([f"samples={tmp_path / 'clips.npz'}", "features=c3d", "accelerator=cpu"])
    with pytest.raises(ConfigError, match=r"features=c3d has no published file .* pass features_path=FILE"):
        composed("stats", *asked)
    assert stats(composed("stats", *asked, *named), tmp_path) == 0

    video = ["exp=digits_video_gated", "data.num_frames=16", "backbone.num_frames=16", "metric=videos"]
    video += ["metric.features=c3d", f"metric.reference={tmp_path / 'statistics.npz'}"]
    with pytest.raises(
        ConfigError, match=r"metric.features=c3d has no published file .* pass metric.features_path=FILE"
    ):
        composed("train", *video)
    metric = composed("train", *video, *(f"metric.{name}" for name in named)).metric
    report = FeatureReport(**{str(key): value for key, value in metric.items() if key != "_target_"})
    rows, protocol, facts = report.rows_of_files(open_samples(tmp_path / "clips.npz"), 8, torch.device("cpu"), "")
    expected = cheap(None, torch.from_numpy(clips).movedim(-1, 2))["logits"].double().softmax(1)
    assert 1 < rows[0]["inception_score_c3d"] < inception_score(expected, 1)[0]
    assert rows[0]["frechet_c3d"] == pytest.approx(0, abs=1e-6)
    assert facts["features"] == "c3d"
    assert "Features c3d (weights " in protocol
    assert "no published ones are known" in protocol
    with pytest.raises(ConfigError, match="frame_features"):
        FeatureReport("i3d", "x.npz", frame_features="c3d", frame_reference="x.npz")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="holds clips"):
        FeatureReport("inception", "x.npz").rows_of_files(
            open_samples(tmp_path / "clips.npz"), 8, torch.device("cpu"), ""
        )
    short = SimpleNamespace(sample_shape=(8, 3, 8, 8))
    with pytest.raises(ConfigError, match=r"features=c3d wants 16 frames a clip"):
        report.check(short, SimpleNamespace(context_dim=None), True)  # type: ignore[arg-type]
