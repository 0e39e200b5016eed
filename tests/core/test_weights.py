"""Checkpoints of others hold more than tensors; none of it is imported, let alone run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.weights import digest_of, read_weights, unwrapped


class Trainer:
    """Stands for a class of somebody's training code; it tells when it is made or given a state."""

    touched = False

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Trainer.touched = True


def scream(path: str) -> None:
    Path(path).touch()


class Evil:
    """Runs a function of this module when it is unpickled as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return scream, (str(self.path),)


class Worse:
    """The same with one of the system's."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


def test_classes_of_a_trainer_are_passed_over(tmp_path: Path) -> None:
    weights = {"a.weight": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(2, dtype=torch.float16)}
    content = {
        "state_dict": weights, "callbacks": {Trainer: Trainer(best=1.0)}, "hyper_parameters": Trainer(lr=1e-4),
        "args": argparse.Namespace(model="x"), "path": Path("somewhere"),
    }  # fmt: skip
    torch.save(content, tmp_path / "model.ckpt")
    Trainer.touched = False
    state = read_weights(tmp_path / "model.ckpt")
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[k], v) for k, v in weights.items())
    assert not Trainer.touched


def test_functions_in_a_file_are_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Evil(tmp_path / "evil")}, tmp_path / "evil.ckpt")
    assert read_weights(tmp_path / "evil.ckpt").keys() == {"a"}
    torch.save({"state_dict": {"a": torch.ones(1)}, "x": Worse()}, tmp_path / "worse.ckpt")
    with pytest.raises(CheckpointError, match="more than tensors"):
        read_weights(tmp_path / "worse.ckpt")
    assert not (tmp_path / "evil").exists()


def test_a_file_of_old_torch_that_was_cut_short_is_not_said_to_hold_too_much(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert read_weights(tmp_path / "old.pt")["a"].shape == (1000,)
    content = (tmp_path / "old.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"torch before 1\.6 that is incomplete or holds more than tensors"):
        read_weights(tmp_path / "cut.pt")


PLAIN = {
    "blocks.0.attn.qkv.weight": torch.ones(3, 1),
    "x_embedder.proj.bias": torch.zeros(1),
    "pos_embed": torch.ones(2),
}


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.module.",
        "module._orig_mod.",
        "module.module.",
        "model._orig_mod.module.",
        "ema.module.",
        "net.model.",
    ],
)
def test_wrappers_go_in_whatever_order_they_stand(prefix: str, tmp_path: Path) -> None:
    wrapped = {f"{prefix}{name}": tensor for name, tensor in PLAIN.items()}
    assert unwrapped(wrapped).keys() == PLAIN.keys()
    torch.save({"model": wrapped}, tmp_path / "weights.pt")
    assert read_weights(tmp_path / "weights.pt").keys() == PLAIN.keys()


def test_a_wrapper_is_what_every_name_has_and_compiled_blocks_are_found_inside() -> None:
    blocks = {"_orig_mod.blocks.0._orig_mod.attn._checkpoint_wrapped_module.proj.bias": torch.ones(1)}
    assert list(unwrapped(blocks)) == ["blocks.0.attn.proj.bias"]
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in PLAIN.items()}}
    assert unwrapped(averaged).keys() == PLAIN.keys()
    mixed = {"model.a": torch.ones(1), "ema.a": torch.zeros(1)}
    assert unwrapped(mixed).keys() == mixed.keys()
    ldm = {"model.diffusion_model.out.0.bias": torch.ones(1), "model.diffusion_model.out.2.bias": torch.ones(1)}
    assert unwrapped({f"module.{name}": tensor for name, tensor in ldm.items()}).keys() == ldm.keys()


def test_two_names_for_one_parameter_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"hold a\.b twice"):
        unwrapped({"a.b": torch.ones(1), "a._orig_mod.b": torch.zeros(1)})


def test_the_hash_is_that_of_names_kinds_shapes_and_values_in_any_order() -> None:
    """Found by a mutant: without the values it was noticed by the tests of other rooms alone."""
    state = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    whole = digest_of(state)
    assert digest_of(dict(reversed(state.items()))) == whole
    one = torch.zeros(2, 3)
    one[1, 2] = 2**-149  # a single bit
    others = ({"a": one}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3, dtype=torch.int32)}, {"c": torch.zeros(1)})
    assert len({whole, *(digest_of(state | other) for other in others)}) == 5
