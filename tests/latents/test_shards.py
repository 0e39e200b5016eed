"""Shards: what is written is what is read, at random, from a mapped file."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from neural_rdm.core.errors import CheckpointError, DataError, UserError
from neural_rdm.latents.shards import Moments, Shard, ShardedSet, Shards, write_shard


def sample(index: int, frames: int = 1, captions: list[str] | None = None, dtype: str = "float16") -> Moments:
    generator = torch.Generator().manual_seed(index)
    moments = torch.randn(frames, 4, 2, 3, generator=generator).to(getattr(torch, dtype))
    tokens = [torch.full((1 + len(text), 5), float(index)).half() for text in captions or []]
    y = None if captions else index % 3
    return Moments(index, moments, moments.flip(-1), y, captions or (), tokens)


@settings(max_examples=25, deadline=None)
@given(
    frames=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    captions=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3), min_size=5, max_size=5
    ),
    dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)
def test_samples_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int], captions: list[list[str]], dtype: str
) -> None:
    path = tmp_path_factory.mktemp("shard") / "0.safetensors"
    written = [sample(i, n, captions[i], dtype) for i, n in enumerate(frames)]
    write_shard(path, written, {7: ("a/ü.jpg", "cut short")})
    read = Shard(path)
    assert len(read) == len(written)
    assert read.bad == {7: ("a/ü.jpg", "cut short")}
    for place in reversed(range(len(written))):
        back, kept = read[place], written[place]
        assert (back.index, back.y, list(back.captions)) == (kept.index, None, kept.captions)
        assert back.moments.dtype == getattr(torch, dtype)
        assert torch.equal(back.moments, kept.moments)
        assert back.flipped is not None
        assert kept.flipped is not None
        assert torch.equal(back.flipped, kept.flipped)
        assert all(torch.equal(a, b) for a, b in zip(back.tokens, kept.tokens, strict=True))


def test_equal_samples_are_equal_bytes(tmp_path: Path) -> None:
    bad = {2: ("x", "y"), 1: ("z", "w")}
    for name, order in (("a", bad), ("b", dict(sorted(bad.items())))):
        write_shard(tmp_path / name, [sample(0), sample(3)], order)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_set_reads_any_sample_of_any_shard(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 7, 3)
    assert [list(shards.indices(n)) for n in shards.numbers] == [[0, 1, 2], [3, 4, 5], [6]]
    assert shards.missing() == [0, 1, 2]
    write_shard(shards.path(0), [sample(0), sample(2)], {1: ("p", "broken")})
    with pytest.raises(DataError, match=r"0000001\.safetensors is missing"):
        ShardedSet(tmp_path, [2, 0, 1])
    write_shard(shards.path(1), [], dict.fromkeys((3, 4, 5), ("p", "broken")))
    write_shard(shards.path(2), [sample(6)], {})
    assert shards.missing() == []
    held = ShardedSet(tmp_path, [2, 0, 1])
    assert len(held) == 3
    assert [held[i].index for i in (2, 0, 1)] == [6, 0, 2]
    assert held[2].y == 0
    for wrong in (-1, 3):
        with pytest.raises(IndexError):
            held[wrong]
    again = pickle.loads(pickle.dumps(held))  # noqa: S301 (a worker that is spawned gets it so)
    assert torch.equal(again[1].moments, held[1].moments)


def test_a_shard_is_mapped_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    write_shard(path, [Moments(0, torch.zeros(1, 8, 1024, 2048))], {})  # 64 MiB

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").is_file():
        pytest.skip("resident memory is read from /proc, which this system has not")
    before = resident()
    held = Shard(path)[0]
    assert held.moments[0, 3, 5, 7] == 0
    assert resident() - before < 32 << 20


def test_a_damaged_shard_is_one_message(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    write_shard(path, [sample(0)], {})
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"cannot read the latents in .*0\.safetensors"):
        Shard(path)


def content_of(path: Path) -> dict[str, range]:
    """Where each tensor of a safetensors file lies in it."""
    data = path.read_bytes()
    head = int.from_bytes(data[:8], "little")
    rows = json.loads(data[8 : 8 + head])
    return {k: range(*(8 + head + place for place in v["data_offsets"])) for k, v in rows.items() if "dtype" in v}


def read_all(path: Path) -> list[tuple[object, ...]]:
    shard = Shard(path)
    held = [shard[i] for i in range(len(shard))]
    rows = [(h.rows(), h.rows(True), *(h.said(i) for i in range(len(h.tokens)))) for h in held]
    return [(h.index, h.y, *h.captions, *(t.tolist() for t in each)) for h, each in zip(held, rows, strict=True)]


def test_a_bit_that_has_flipped_is_refused_wherever_it_is(tmp_path: Path) -> None:
    """Found by `benchmarks fuzz`: safetensors have no checksum, and another latent was read without a word."""
    path = tmp_path / "0.safetensors"
    write_shard(path, [sample(0, 2, ["a kite", "ein Drachen"]), sample(3, 1, ["sky"])], {})
    whole, expected = path.read_bytes(), read_all(path)
    refused, harmless = 0, set[str]()
    for name, places in content_of(path).items():
        for place in (places[0], places[len(places) // 2], places[-1]):
            path.unlink()  # what is mapped must not change
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
            try:
                read = read_all(path)
            except CheckpointError:
                refused += 1
            else:
                assert read == expected, name  # an end behind the last end is the last one
                harmless.add(name)
    assert refused > 20
    assert harmless <= {"rows", "token_ends", "caption_ends", "caption_rows"}
    path.unlink()
    path.write_bytes(whole)
    content = load_file(path)
    for name in content:  # a bit of a name: what is missing then is not taken for what was never there
        save_file({k + "_" * (k == name): v for k, v in content.items()}, tmp_path / "renamed", {"bad": "{}"})
        with pytest.raises(CheckpointError, match="cannot read the latents in"):
            read_all(tmp_path / "renamed")
    save_file({k: v for k, v in content.items() if k != "crc"}, tmp_path / "renamed", {"bad": "{}"})
    with pytest.raises(CheckpointError, match="there is no 'crc'"):
        read_all(tmp_path / "renamed")
    some = Shard(path)[0].rows(which=np.array([1]))
    assert torch.equal(some, sample(0, 2, ["a kite", "ein Drachen"]).moments[1:])


def test_a_set_that_was_not_copied_whole_is_refused_at_once(tmp_path: Path) -> None:
    shards = Shards(tmp_path, 4, 2)
    for number in shards.numbers:
        write_shard(shards.path(number), [sample(i) for i in shards.indices(number)], {})
    with pytest.raises(DataError, match=r"0000001\.safetensors holds 2 samples, but 1 in the manifest"):
        ShardedSet(tmp_path, [2, 1])
    shards.path(1).write_bytes(shards.path(1).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"cannot read the latents in .*0000001\.safetensors.*Copy it again"):
        ShardedSet(tmp_path, [2, 2])


def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*Free some disk space"):
        write_shard(tmp_path / "0.safetensors", [sample(0)], {})
    assert list(tmp_path.iterdir()) == []
