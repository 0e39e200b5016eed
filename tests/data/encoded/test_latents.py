"""Training on latents made once is training on the pixels: the same draws, the same latents, the same distribution."""

from __future__ import annotations

import json
from pathlib import Path
from traceback import clear_frames
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from neural_rdm.core.errors import CheckpointError, ConfigError, DataError
from neural_rdm.data.encoded.latents import TEXT_FILE, Latents, LatentSet, stored_tokens
from neural_rdm.latents.shards import Moments, Shard, ShardedSet, crc_of, write_shard
from neural_rdm.runs import build
from tests.data.encoding import caption_tree, clip_tree, composed, image_tree, make, picture, stage
from tests.data.tar_files import jpeg, write_shards, write_tar
from tests.helpers import save_word_tokenizer
from tests.latents.test_first_stage import tiny_autoencoder, tiny_vq

COMMON = ["exp=digits_gated", "~metric", "data.image_size=16", "data.num_workers=0", "data.batch_size=4"]
IMAGES = ["data=image_folder", "backbone.num_classes=2", "backbone.in_channels=4", "backbone.input_size=8"]
CLIPS = [
    *("data=sky", "backbone=latte", "backbone.num_frames=3", "backbone.in_channels=4", "backbone.input_size=8"),
    *("backbone.num_classes=0", "backbone.extras=1", "sampler.cfg_scale=1", "data.frame_interval=2"),
]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_autoencoder(tmp_path_factory.mktemp("autoencoder"))


def batches(cfg: DictConfig, count: int) -> list[tuple[Tensor, dict[str, Any]]]:
    """The latents that the network is trained on, and the batch that they are of, of the first steps; then of the
    validation set.
    """
    data = build.data(cfg)
    data.setup()
    module = build.module(cfg, data.space)
    assert module.encode
    loader = iter(data.train_dataloader())
    some = [next(loader) for _ in range(count)] + list(data.val_dataloader())
    return [(module.first_stage.encode(b["x"], cfg.seed, b["position"]), b) for b in some]


def both(folder: Path, overrides: list[str], count: int) -> list[tuple[Tensor, Tensor, dict[str, Any], dict[str, Any]]]:
    """(latents from pixels, from shards, batch of pixels, of moments) of the same steps."""
    of_pixels = batches(composed("train", *overrides), count)
    of_shards = batches(composed("train", *overrides, "data.source=latents", f"data.latents={folder}"), count)
    assert len(of_pixels) == len(of_shards) > count
    return [(a, b, x, y) for (a, x), (b, y) in zip(of_pixels, of_shards, strict=True)]


def test_float32_moments_of_images_give_the_latents_of_the_pixels(autoencoder: Path, tmp_path: Path) -> None:
    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    make(tmp_path / "out", *overrides, "dtype=float32", "shard_size=3")
    pairs = both(tmp_path / "out", overrides, count=8)  # more than three epochs of ten
    for pixels, shards, b, c in pairs:
        torch.testing.assert_close(shards, pixels, rtol=1e-5, atol=1e-6)
        assert torch.equal(b["y"], c["y"])
        assert torch.equal(b["position"], c["position"])
    # every epoch draws anew: no two latents of a training sample are equal
    drawn = torch.cat([z for _, z, _, _ in pairs[:8]])
    assert len({tuple(z.flatten()[:4].tolist()) for z in drawn}) == len(drawn)


def test_clips_are_drawn_of_whole_videos_as_from_pixels(autoencoder: Path, tmp_path: Path) -> None:
    overrides = [*COMMON, *CLIPS, f"data.root={clip_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    make(tmp_path / "out", *overrides, "dtype=float32", "shard_size=2")
    for more in ([], ["data.image_frames=2"], ["data.frame_interval=1"]):  # one encoding serves them all
        for pixels, shards, *_ in both(tmp_path / "out", [*overrides, *more], count=4):
            assert pixels.shape[1] in (3, 5)
            torch.testing.assert_close(shards, pixels, rtol=1e-5, atol=1e-6)


def test_labels_of_joint_training_follow_their_frames(autoencoder: Path, tmp_path: Path) -> None:
    from neural_rdm.data.encoded.latents import Clip, LatentSet
    from neural_rdm.latents.shards import Moments, ShardedSet, Shards, write_shard

    shards = Shards(tmp_path, 4, 4)
    write_shard(shards.path(0), [Moments(i, torch.full((5, 2, 1, 1), float(i)), y=10 + i) for i in range(4)], {})
    source = LatentSet(ShardedSet(tmp_path, [4]), True, False, 0, Clip(3, 1, image_frames=2), None)
    for key in range(20):
        sample = source.load(key % 4, key)
        assert sample["y"].tolist() == [10 + int(frame[0]) for frame in sample["x"][2:].flatten(1)]


def test_half_precision_moments_have_the_distribution_of_the_pixels(autoencoder: Path, tmp_path: Path) -> None:
    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    for dtype, most in (("float16", 1e-3), ("bfloat16", 1e-2)):
        make(tmp_path / dtype, *overrides, f"dtype={dtype}")
        pairs = both(tmp_path / dtype, overrides, count=20)
        pixels, shards = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        error = (shards - pixels).std() / pixels.std()
        assert 0 < error < most, f"{dtype}: {error}"
        assert (shards.mean() - pixels.mean()).abs() < most * pixels.std()
        assert (shards.std() / pixels.std() - 1).abs() < most
        assert (shards.flatten(1).std(0) - pixels.flatten(1).std(0)).abs().max() < 3 * most * pixels.std()


def test_latents_without_a_posterior_have_no_deviation(tmp_path: Path) -> None:
    vq = ["first_stage=vq_f4", f"first_stage.path={tiny_vq(tmp_path / 'vq')}", "first_stage.subfolder=null"]
    overrides = [
        *(*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *vq),
        *("first_stage.downsample=2", "first_stage.scale=1.5", "backbone.in_channels=3"),
    ]
    manifest = make(tmp_path / "out", *overrides, "dtype=float32")
    assert (manifest["moments"], manifest["shape"]) == ("values; they are not random", [3, 8, 8])
    for pixels, shards, _, batch in both(tmp_path / "out", overrides, count=3):
        torch.testing.assert_close(shards, pixels, rtol=1e-5, atol=1e-6)
        assert batch["x"].shape[1:] == (3, 8, 8)


def test_the_scale_is_measured_as_on_pixels(autoencoder: Path, tmp_path: Path) -> None:
    from neural_rdm.latents.first_stage import measured_scale

    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    make(tmp_path / "out", *overrides, "dtype=float32")
    found = []
    for more in ([], ["data.source=latents", f"data.latents={tmp_path / 'out'}"]):
        cfg = composed("train", *overrides, "first_stage.scale=null", *more)
        data = build.data(cfg)
        data.setup()
        module = build.module(cfg, data.space)
        x, positions = data.first_batch(4)
        found.append(measured_scale(module.first_stage, x, 0, positions))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def text_encoder(folder: Path) -> list[str]:
    """Overrides for a small BERT with random weights."""
    transformers = pytest.importorskip("transformers", reason="text needs the extra `text`")
    save_word_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "kite"])
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=8, **sizes)).save_pretrained(folder)
    return ["condition=minilm", f"condition.path={folder}", "condition.dim=16", "condition.max_length=9"]


def test_all_validation_captions_are_prompts_and_their_tokens_are_stored(autoencoder: Path, tmp_path: Path) -> None:
    """However many samples are asked for: the preview's 64 are no limit; the same prompts as from pixels."""
    root = caption_tree(tmp_path / "tree")
    said = [(i, f"{word} {i}") for i in range(70) for word in ("red", "kite")[: 1 + i % 2]]
    text = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(70)],
        "annotations": [{"id": n, "image_id": i, "caption": words} for n, (i, words) in enumerate(said)],
    }
    for i in range(70):
        picture(root / "val2017" / f"{i}.jpg", i)
    (root / "val2017" / "7.jpg").write_bytes(b"broken")
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(text))
    overrides = [
        *(*COMMON, "data=coco", f"data.root={root}", "data.max_bad_fraction=0.1", *stage(autoencoder)),
        *("backbone.in_channels=4", "backbone.input_size=8", "backbone.num_classes=0", "backbone.context_dim=16"),
        *text_encoder(tmp_path / "text"),
    ]
    make(tmp_path / "out", *overrides, "dtype=float32")
    from_pixels = build.data(composed("train", *overrides)).prompts(1000)
    cfg = composed("train", *overrides, "data.source=latents", f"data.latents={tmp_path / 'out'}")
    data = build.data(cfg)
    prompts = data.prompts(1000)
    assert sorted(prompts) == sorted(words for i, words in said if i != 7)
    assert prompts == [prompt for prompt in from_pixels if not prompt.endswith(" 7")]
    assert data.prompts(80) == prompts[:80]
    tokens = data.tokens([*prompts[:80], "of somebody else"])
    assert list(tokens) == prompts[:80]
    encoder = build.text(composed("train", *overrides))
    context, mask = encoder.encode(prompts[70:80])
    for row, real, prompt in zip(context, mask, prompts[70:80], strict=True):
        torch.testing.assert_close(tokens[prompt], row[real], rtol=1e-5, atol=1e-6)


def test_tokens_of_prompts_are_refused_where_a_bit_has_flipped(tmp_path: Path) -> None:
    """Those beside the shards, and those of a shard's captions that are read for a prompt alone."""
    tokens = [torch.zeros(0, 3), torch.ones(2, 3)]  # a null prompt may have none
    whole = {"tokens": torch.cat(tokens), "token_ends": torch.tensor([0, 2])}
    sums = {"token_crc": torch.tensor([crc_of(each) for each in tokens])}
    (tmp_path / "manifest.json").write_text(json.dumps({"prompts": ["a kite"]}))
    save_file(whole | sums, tmp_path / TEXT_FILE)
    assert torch.equal(stored_tokens(tmp_path)["a kite"], tokens[1])
    save_file(whole, tmp_path / TEXT_FILE)  # as where a bit of the sums' own name has flipped
    with pytest.raises(CheckpointError, match=r"cannot read .*text\.safetensors: .*token_crc"):
        stored_tokens(tmp_path)
    whole["tokens"][1, 2] += 2**-20
    save_file(whole | sums, tmp_path / TEXT_FILE)
    with pytest.raises(CheckpointError, match=r"text\.safetensors: its tokens are not as they were written"):
        stored_tokens(tmp_path)

    write_shard(
        tmp_path / "0000000.safetensors", [Moments(0, torch.ones(1, 4, 2, 2), None, None, ["sky"], tokens[1:])], {}
    )
    source, data = LatentSet.__new__(LatentSet), Latents.__new__(Latents)
    source.shards = ShardedSet(tmp_path, [1])
    data._prompts, data.train_set, data.val_set = {"sky": (0, 0)}, source, None
    assert torch.equal(data.tokens(["sky"])["sky"], tokens[1])
    source.shards._open[0]._tensors["tokens"][0, 0] = 2.0
    with pytest.raises(CheckpointError, match="sample 0 is not as it was written"):
        data.tokens(["sky"])


def test_captions_come_with_the_tokens_of_the_text_encoder(
    autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neural_rdm.conditioning.text import TextEncoder

    overrides = [
        *(*COMMON, "data=coco", "data.flip=true", f"data.root={caption_tree(tmp_path / 'tree')}", *stage(autoencoder)),
        *("backbone.in_channels=4", "backbone.input_size=8", "backbone.num_classes=0", "backbone.context_dim=16"),
        *text_encoder(tmp_path / "text"),
    ]
    manifest = make(tmp_path / "out", *overrides, "dtype=float32")
    assert len(manifest["prompts"]) == 2
    pairs = both(tmp_path / "out", overrides, count=6)
    cfg = composed("train", *overrides, "data.source=latents", f"data.latents={tmp_path / 'out'}")
    modules = [build.module(composed("train", *overrides), "pixels"), build.module(cfg, "moments")]
    data = build.data(cfg)
    # the null prompt and those of previews are in the folder: the encoder itself is never loaded
    monkeypatch.setattr(TextEncoder, "_load", lambda self: pytest.fail("the text encoder was loaded"))
    dropped = 0
    shown = [modules[1].condition(c, drop=True) for *_, c in pairs]
    modules[1].text.encode(["", *data.prompts(8)])
    monkeypatch.undo()
    for (pixels, shards, b, c), with_shards in zip(pairs, shown, strict=True):
        torch.testing.assert_close(shards, pixels, rtol=1e-5, atol=1e-6)
        assert b["caption"] == c["caption"]
        with_pixels = modules[0].condition(b, drop=True)
        torch.testing.assert_close(with_shards["context"], with_pixels["context"], rtol=1e-5, atol=1e-6)
        assert torch.equal(with_shards["context_mask"], with_pixels["context_mask"])
        dropped += int((with_pixels["context_mask"].sum(1) == 2).sum())
    assert dropped, "no caption was dropped: the null prompt was not tried"
    assert len({said for *_, c in pairs for said in c["caption"]}) > 5  # both captions of an image are drawn
    moved = data.transfer_batch_to_device(pairs[0][3], torch.device("meta"), 0)
    assert moved["context"].is_meta
    assert moved["context_mask"].is_meta
    assert not moved["position"].is_meta


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_map_the_shards_themselves(workers: int, autoencoder: Path, tmp_path: Path) -> None:
    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    make(tmp_path / "out", *overrides)
    source = ["data.source=latents", f"data.latents={tmp_path / 'out'}", f"data.num_workers={workers}"]
    data = build.data(composed("train", *overrides, *source))
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].dtype == torch.float16
    assert batch["x"].shape == (4, 8, 8, 8)
    assert data.sample_shape == (4, 8, 8)
    assert (data.num_classes, data.class_names, data.train_size, data.val_size) == (2, ["c0", "c1"], 10, 4)


def test_a_shard_that_is_damaged_later_is_one_message_out_of_a_worker(autoencoder: Path, tmp_path: Path) -> None:
    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}", *stage(autoencoder)]
    make(tmp_path / "out", *overrides)
    data = build.data(
        composed("train", *overrides, "data.source=latents", f"data.latents={tmp_path / 'out'}", "data.num_workers=1")
    )
    data.setup()
    shard = tmp_path / "out" / "train" / "0000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"^cannot read the latents in .*0000000\.safetensors") as error:
        next(iter(data.train_dataloader()))
    assert "Traceback" not in str(error.value)
    clear_frames(error.tb)
    again = build.data(composed("train", *overrides, "data.source=latents", f"data.latents={tmp_path / 'out'}"))
    with pytest.raises(CheckpointError, match="cannot read the latents"):  # and before step 0
        again.setup()


def test_tar_shards_are_encoded_too(autoencoder: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "tars", [4, 3], "cls")
    shards = ["data=webdataset", *IMAGES[1:], f"data.root={tmp_path / 'tars'}", "backbone.num_classes=3"]
    overrides = [*COMMON, *shards, *stage(autoencoder)]
    found = make(tmp_path / "out", *overrides, "dtype=float32", "data.limit=6")
    assert (found["num_classes"], found["splits"]["train"]["count"]) == (3, 6)
    of_pixels = batches(composed("train", *overrides, "data.limit=6"), 3)
    latents = ["data.source=latents", f"data.latents={tmp_path / 'out'}", "data.limit=6"]
    for (a, x), (b, y) in zip(of_pixels, batches(composed("train", *overrides, *latents), 3), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
        assert torch.equal(x["y"], y["y"])


def test_captions_of_tar_shards_are_all_kept_and_broken_samples_named(autoencoder: Path, tmp_path: Path) -> None:
    texts = [(f"{i}.json", f'{{"said": ["picture {i}", "again {i}"]}}'.encode()) for i in range(3)]
    members = [(name.replace("json", "jpg"), jpeg(40 * i)) for i, (name, _) in enumerate(texts)]
    members[1] = ("1.jpg", b"no picture")
    write_tar(tmp_path / "tars" / "a.tar", [file for pair in zip(members, texts, strict=True) for file in pair])
    tars = ["data=webdataset", f"data.root={tmp_path / 'tars'}", "data.caption_key=said", "data.image_size=16"]
    found = make(tmp_path / "out", *tars, *stage(autoencoder), "data.max_bad_fraction=0.5")
    assert found["splits"]["train"]["bad"] == [1]
    shard = Shard(tmp_path / "out" / "train" / "0000000.safetensors")
    assert [list(shard[i].captions) for i in range(2)] == [["picture 0", "again 0"], ["picture 2", "again 2"]]
    assert "a.tar!1" in (tmp_path / "out" / "bad_samples.csv").read_text()


def test_another_autoencoder_is_refused_and_one_that_is_not_there_is_said(
    autoencoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*COMMON, *IMAGES, f"data.root={image_tree(tmp_path / 'tree')}"]
    make(tmp_path / "out", *overrides, *stage(autoencoder))
    from diffusers import AutoencoderKL

    other = AutoencoderKL.from_pretrained(autoencoder)
    source = ["data.source=latents", f"data.latents={tmp_path / 'out'}"]
    other.decoder.conv_in.weight.data += 1  # another decoder: the latents are the same
    other.save_pretrained(tmp_path / "decoder")
    build.data(composed("train", *overrides, *source, *stage(tmp_path / "decoder"))).setup()
    other.encoder.conv_in.weight.data[0] += 1
    other.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ConfigError, match=r"first_stage\.sha256.*is [0-9a-f]{12}\.\.\. there.*but [0-9a-f]{12}"):
        build.data(composed("train", *overrides, *source, *stage(tmp_path / "encoder"))).setup()
    build.data(composed("train", *overrides, *source, *stage(tmp_path / "nowhere"))).setup()
    assert "cannot compare the first stage" in capsys.readouterr().out
