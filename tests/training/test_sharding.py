"""Strategies train what one process trains, and checkpoints fit any of them and any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from neural_rdm.core.files import load_tensors
from neural_rdm.training import parallel
from neural_rdm.training.callbacks.checkpoints import Checkpoints, StreamedCheckpointIO, path_of
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.steps import Order
from neural_rdm.training.callbacks.supervision import Supervision
from tests.helpers import two_processes
from tests.training.ranks import trained_by_all
from tests.training.trainer import fit, tiny_module

pytestmark = pytest.mark.timeout(600)
STEPS = 6


class Seen(pl.Callback):
    """What the whole global batch says in each step: positions, mean loss, squared norms of the probe."""

    order = Order.MEASURE

    def __init__(self, supervision: Supervision) -> None:
        self.supervision = supervision
        self.rows: dict[str, list[torch.Tensor]] = {"positions": [], "loss": [], "probe": []}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rows["probe"].append(self.supervision.squared(trainer).clone())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found: Any = pl_module.all_gather({"positions": batch["position"], "loss": outputs["loss"].detach()})
        self.rows["positions"].append(found["positions"].flatten().sort().values)
        self.rows["loss"].append(found["loss"].mean())


def train(
    folder: Path,
    name: str,
    strategy: str,
    steps: int = STEPS,
    resume: str | None = None,
    at: int = STEPS // 2,
    sharded: bool = False,
    background: bool = False,
    **options: Any,
) -> None:
    """Train on all ranks of this process's group, from step `at` of the run `resume` where there is one; the first rank
    writes what was seen into `folder/NAME.pt`."""
    world = parallel.processes() if parallel.processes() > 1 else int(__import__("os").environ.get("WORLD_SIZE", "1"))
    more = {"replicas": 2} if strategy == "hsdp" else {}
    chosen = getattr(parallel, strategy)(devices=world, **more)
    supervision = Supervision(0.35)
    seen = Seen(supervision)
    trainer = fit(
        tiny_module(lr=1e-3, clip_after=0),
        folder / name,
        EMA(0.5, further=(0.9,)),
        supervision,
        seen,
        Checkpoints(folder / name, STEPS // 2, keep=2),
        steps=steps,
        ckpt=None if resume is None else path_of(folder / resume, at),
        strategy=chosen,
        devices=world,
        gradient_clip_val=1.0,
        plugins=[StreamedCheckpointIO(sharded, background)],
        **options,
    )
    if trainer.is_global_zero:
        torch.save({key: torch.stack(rows) for key, rows in seen.rows.items()}, folder / f"{name}.pt")


def run_all(folder: Path, count: int, jobs: list[dict[str, Any]]) -> None:
    """Do jobs of `train` in `count` processes."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    two_processes(trained_by_all, folder, count)


def assert_equal(folder: Path, name: str, other: str, steps: int = STEPS) -> None:
    """What `name` has seen is what `other` has seen in its last steps, and both end with the same state."""
    a, b = (torch.load(folder / f"{n}.pt", weights_only=True) for n in (name, other))
    last = len(a["loss"])
    assert torch.equal(a["positions"], b["positions"][-last:])
    for key in ("loss", "probe"):
        torch.testing.assert_close(a[key], b[key][-last:], rtol=2e-3, atol=1e-7)
    one, two = (load_tensors(path_of(folder / n, steps)) for n in (name, other))
    for key in ("state_dict", "ema", "optimizer_states"):
        left, right = dict(flat(one[key])), dict(flat(two[key]))
        assert left.keys() == right.keys()
        for where, tensor in left.items():
            torch.testing.assert_close(tensor, right[where], rtol=1e-2, atol=1e-4, msg=lambda m, w=where: f"{w}: {m}")
    assert one["global_step"] == two["global_step"] == steps


def flat(value: Any, where: str = "") -> Any:
    """The tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(part, f"{where}/{key}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and what two processes have made of its half."""
    made = tmp_path_factory.mktemp("strategies")
    train(made, "single", "single")
    run_all(
        made,
        2,
        [
            {"name": "ddp", "strategy": "ddp"},
            {"name": "fsdp2", "strategy": "fsdp2", "resume": "single"},
            {"name": "hsdp", "strategy": "hsdp", "sharded": True, "background": True},
            {"name": "ddp-again", "strategy": "ddp", "resume": "hsdp"},
            {"name": "fsdp2-again", "strategy": "fsdp2", "resume": "hsdp", "sharded": True},
        ],
    )
    return made


def test_all(folder: Path) -> None:
    for name in ("ddp", "fsdp2", "hsdp", "ddp-again", "fsdp2-again"):
        assert_equal(folder, name, "single")
