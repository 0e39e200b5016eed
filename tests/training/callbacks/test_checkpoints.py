"""Writing, naming, pruning and finding checkpoints."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from neural_rdm.core.errors import CheckpointError
from neural_rdm.training.callbacks.checkpoints import Checkpoints, StreamedCheckpointIO, newest_readable, path_of
from neural_rdm.training.callbacks.ema import EMA
from tests.training.trainer import fit, tiny_module


def test_names_pruning_and_last(tmp_path: Path) -> None:
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=2), steps=7)
    assert sorted(p.name for p in tmp_path.glob("*.ckpt")) == [
        "last.ckpt",
        "step=000000006.ckpt",
        "step=000000007.ckpt",
    ]
    assert os.path.samefile(tmp_path / "last.ckpt", path_of(tmp_path, 7))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 7


def test_pruning_goes_by_what_lies_there_not_by_memory(tmp_path: Path) -> None:
    path_of(tmp_path, 1).write_bytes(b"left over from a run that was killed")
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=1), steps=4)
    assert [p.name for p in tmp_path.glob("step=*.ckpt")] == ["step=000000004.ckpt"]


def test_a_damaged_file_does_not_count_as_kept(tmp_path: Path) -> None:
    """It was passed over when the run went on from an earlier step."""
    path_of(tmp_path, 9).write_bytes(b"damaged")
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=1), steps=4)
    assert [p.name for p in tmp_path.glob("step=*.ckpt")] == ["step=000000004.ckpt"]
    assert newest_readable(tmp_path) == path_of(tmp_path, 4)


def test_last_is_tried_when_all_others_are_damaged(tmp_path: Path) -> None:
    StreamedCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    path_of(tmp_path, 1).write_bytes(b"damaged")
    assert newest_readable(tmp_path) == tmp_path / "last.ckpt"


def test_only_whole_optimizer_steps_are_saved(tmp_path: Path) -> None:
    fit(tiny_module(), tmp_path, EMA(), Checkpoints(tmp_path, every_n_steps=1, keep=9), steps=3, accumulate=4)
    assert [torch.load(path_of(tmp_path, s), weights_only=True)["ema"]["updates"] for s in (1, 2, 3)] == [1, 2, 3]


def test_newest_readable_passes_over_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    io = StreamedCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint({"global_step": step, "w": torch.arange(4096.0)}, path_of(tmp_path, step))
    assert newest_readable(tmp_path) == path_of(tmp_path, 3)
    whole = path_of(tmp_path, 3).read_bytes()
    path_of(tmp_path, 3).write_bytes(whole[:-200])
    flipped = bytearray(path_of(tmp_path, 2).read_bytes())
    flipped[len(flipped) // 2] ^= 0x01  # one bit, in the middle of the tensor
    path_of(tmp_path, 2).write_bytes(bytes(flipped))
    with caplog.at_level(logging.WARNING):
        assert newest_readable(tmp_path) == path_of(tmp_path, 1)
    assert [m.count("Falling back") for m in caplog.messages] == [1, 1]
    path_of(tmp_path, 1).write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):
        newest_readable(tmp_path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest_readable(tmp_path / "nowhere") is None


def test_unfinished_files_are_not_taken_for_checkpoints(tmp_path: Path) -> None:
    (tmp_path / ".step=000000009.ckpt.123.tmp").write_bytes(b"half")
    assert newest_readable(tmp_path) is None


@pytest.mark.parametrize("linked", [2, 4])
def test_what_a_kill_behind_the_last_checkpoint_has_left_undone_is_done_by_the_resumed_run(
    linked: int, tmp_path: Path
) -> None:
    """Found by `benchmarks soak`: nothing more is trained or saved then, so that old ones and `last.ckpt` stayed."""
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=3), steps=4)
    path_of(tmp_path, 6).write_text("passed over: damaged")
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").hardlink_to(path_of(tmp_path, linked))
    resumed = Checkpoints(tmp_path, every_n_steps=2, keep=1)
    trainer = fit(tiny_module(), tmp_path, resumed, steps=4, ckpt=path_of(tmp_path, 4))
    assert trainer.global_step == 4
    assert os.path.samefile(tmp_path / "last.ckpt", path_of(tmp_path, 4))
    assert sorted(path.name for path in tmp_path.glob("step=*")) == ["step=000000004.ckpt", "step=000000006.ckpt"]


def test_a_damaged_last_step_does_not_become_the_last_checkpoint(tmp_path: Path) -> None:
    """A run goes on from a whole `last.ckpt` then, which in a copied folder is a file of its own."""
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=1), steps=4)
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "last.ckpt").write_bytes(whole)
    path_of(tmp_path, 4).write_bytes(whole[:-200])
    newest = newest_readable(tmp_path)
    assert newest == tmp_path / "last.ckpt"
    fit(tiny_module(), tmp_path, Checkpoints(tmp_path, every_n_steps=2, keep=1), steps=4, ckpt=newest)
    assert newest_readable(tmp_path) == newest
