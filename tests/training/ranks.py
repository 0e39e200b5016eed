"""What each of several processes runs in tests of ranks; only the standard library at the top, since a spawned
process imports this file before anything else, and `import neural_rdm` has to be its first heavy import.
"""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path


def _join(rank: int, port: int) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0",
        LOCAL_WORLD_SIZE=os.environ["WORLD_SIZE"], TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    import neural_rdm  # noqa: F401, I001
    import torch

    torch.set_num_threads(1)


def two_ranks(rank: int, port: int, folder: Path) -> None:
    """Train under DDP and FSDP2; the first rank saves the gradients of the gates."""
    _join(rank, port)
    import torch

    from neural_rdm.training import parallel
    from tests.training.callbacks.test_supervision import gradients

    for name, residual in product(("ddp", "fsdp2"), ("gated", "skip")):
        strategy = getattr(parallel, name)(devices=2)
        label = f"{name}-{residual}"
        found = gradients(folder / label, residual=residual, strategy=strategy, devices=2, accumulate=2)
        if rank == 0:
            torch.save(found, folder / f"{label}.pt")


def two_ranks_one_sick(rank: int, port: int, folder: Path) -> None:
    """Under DDP and FSDP2 one rank alone meets a gradient that is not finite: in step 2, which is left out, and in
    step 4, which stops both. Then the run goes on from step 2, so that its file of step 3 can be compared.
    """
    _join(rank, port)
    import pytest

    from neural_rdm.core.errors import UserError
    from neural_rdm.training import parallel
    from neural_rdm.training.callbacks.checkpoints import Checkpoints, path_of
    from neural_rdm.training.callbacks.ema import EMA
    from neural_rdm.training.callbacks.guards import FiniteSteps
    from tests.training.callbacks.test_guards import Poison
    from tests.training.trainer import fit, tiny_module

    for name in ("ddp", "fsdp2"):
        own, again = folder / name, folder / f"{name}-resumed"
        steps, strategy = FiniteSteps(1, allowed=1), getattr(parallel, name)(devices=2)
        callbacks = (EMA(0.5), Poison(2, rank=1), Poison(4, rank=0), steps, Checkpoints(own, 1, keep=9))
        with pytest.raises(UserError if rank == 0 else SystemExit, match="step 4 was left out" if rank == 0 else "2"):
            fit(tiny_module(), own, *callbacks, steps=5, strategy=strategy, devices=2)
        assert steps.left_out == 2
        callbacks = (EMA(0.5), FiniteSteps(1, allowed=1), Checkpoints(again, 1, keep=9))
        strategy = getattr(parallel, name)(devices=2)
        fit(tiny_module(), again, *callbacks, steps=3, ckpt=path_of(own, 2), strategy=strategy, devices=2)


def trained_by_all(rank: int, port: int, folder: Path) -> None:
    """Do what `folder/jobs.json` lists, see `tests.training.test_sharding.train`; in a job that says so, some ranks are
    killed when their parts of the second checkpoint are written, but nothing has been renamed yet.
    """
    _join(rank, port)
    import json

    from tests.training.test_sharding import train

    for job in json.loads((folder / "jobs.json").read_text()):
        if rank in job.pop("dying", ()):
            _die_in_the_second_checkpoint()
        train(folder, **job)


def tracked_by_all(rank: int, port: int, folder: Path) -> None:
    """What a step really holds on this rank, alone and in a group of two, beside what was planned; the first rank
    writes it down.
    """
    _join(rank, port)
    import json

    from neural_rdm import DiT
    from neural_rdm.backbones.counting import held
    from neural_rdm.training import parallel
    from neural_rdm.training.callbacks.ema import EMA
    from neural_rdm.training.memory import memory, of_one_device
    from neural_rdm.training.together import Imagined
    from tests.training.test_memory import tracked
    from tests.training.trainer import tiny_module

    found = {}
    for name, strategy, groups in (
        ("single", parallel.ddp(devices=2), {}),
        ("tp", parallel.tp(devices=2), {"tensor": Imagined(2)}),
        ("context", parallel.ddp(devices=2, context=2), {"context": Imagined(2)}),
    ):
        module, batch = tiny_module(), 32 if name == "single" else 16
        module.net = DiT(8, 2, 1, 96, 3, 4, num_classes=10).requires_grad_(True)
        net = of_one_device(module.net, **groups)
        planned = memory(net, module.optimizer, 1, held(net, 16)).most
        seen = tracked(module, folder / name, EMA(0.9), batch_size=batch, strategy=strategy, devices=2)
        found[name] = planned, seen
    if rank == 0:
        (folder / "memory.json").write_text(json.dumps(found))


def refused_by_all(rank: int, port: int, folder: Path) -> None:
    """Four heads among three devices: the first rank says so, and the others end with the same code and no word."""
    _join(rank, port)
    import pytest

    from neural_rdm.core.errors import ConfigError
    from neural_rdm.training import parallel
    from tests.training.trainer import fit, tiny_module

    kind, said = (SystemExit, r"^2$") if rank else (ConfigError, r"4 heads do not divide among strategy\.tensor=3")
    with pytest.raises(kind, match=said):
        fit(tiny_module(), folder, steps=1, batch_size=3, strategy=parallel.tp(devices=3), devices=3)


def _die_in_the_second_checkpoint() -> None:
    import signal

    from neural_rdm.core import sharded

    hashed, files = sharded.sha256_of, []

    def dying(path: Path) -> str:
        files.append(path)
        if sum(file.suffix == ".safetensors" for file in files) > 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return hashed(path)

    sharded.sha256_of = dying


def one_cannot_write(rank: int, port: int, folder: Path) -> None:
    """The disk of one rank is full in the second checkpoint, of shards or (the first rank's) of a file: the first rank
    says so, and both stop.
    """
    _join(rank, port)
    from typing import Any

    import pytest

    from neural_rdm.core import sharded
    from neural_rdm.core.errors import WriteError
    from neural_rdm.training.callbacks import checkpoints
    from tests.training.test_sharding import train

    def full(real: Any, when: int) -> Any:
        calls = []

        def write(path: Path, *more: Any) -> Any:
            calls.append(path)
            if len(calls) > when:
                error = OSError(28, "No space left on device", str(path))
                raise error if real.__name__ == "sha256_of" else WriteError(f"cannot write {path}: {error}")
            return real(path, *more)

        return write

    said = {0: (WriteError, "cannot write .*No space left on device"), 1: (SystemExit, "2")}[rank]
    for name, who, module, place, when in (
        ("fsdp2-other", 1, sharded, "sha256_of", 1),
        ("fsdp2-first", 0, sharded, "save_tensors", 1),
        ("ddp-first", 0, checkpoints, "save_tensors", 1),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if rank == who:
                real = getattr(module, place)
                patch.setattr(module, place, full(real, when))
            with pytest.raises(said[0], match=said[1]):
                train(folder, name, name.split("-")[0], sharded=name != "ddp-first", background=name == "fsdp2-first")
