"""Strategies train what one process trains, and checkpoints fit any of them and any number of ranks."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from neural_rdm.core.errors import CheckpointError, WriteError
from neural_rdm.core.files import load_tensors, sweep
from neural_rdm.core.ranks import parts
from neural_rdm.core.sharded import mapped
from neural_rdm.core.weights import read_weights
from neural_rdm.training import parallel
from neural_rdm.training import precision as precisions
from neural_rdm.training.callbacks.checkpoints import (
    Checkpoints,
    StreamedCheckpointIO,
    lay_out,
    newest_readable,
    path_of,
)
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.steps import Order
from neural_rdm.training.callbacks.supervision import Supervision
from tests.helpers import two_processes
from tests.training.ranks import one_cannot_write, trained_by_all
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

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found: Any = pl_module.all_gather({"positions": batch["position"], "loss": outputs["loss"].detach()})
        together = trainer.world_size // parts(trainer)[0]
        shown = found["positions"].reshape(-1, together, len(batch["position"]))
        assert bool((shown == shown[:, :1]).all())
        self.rows["positions"].append(shown[:, 0].flatten().sort().values)
        self.rows["loss"].append(found["loss"].mean())


def train(
    folder: Path,
    name: str,
    strategy: str,
    steps: int = STEPS,
    resume: str | None = None,
    sharded: bool = False,
    background: bool = False,
    network: str = "dit",
    share: dict[str, int] | None = None,
    precision: Any = "32-true",
    **options: Any,
) -> None:
    """Train on all ranks of this process's group, saving at half and at the end; from the half of the run `resume` on
    where there is one. The first rank writes what was seen into `folder/NAME.pt`.

    Args:
        network: of `tests.training.trainer.NETWORKS`.
        share: further arguments of the strategy.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    supervision, plugin = Supervision(0.35), precisions.plugin(precision, "cpu")
    seen = Seen(supervision)
    trainer = fit(
        tiny_module(lr=1e-3, network=network),
        folder / name,
        EMA(0.5, further=(0.9,)),
        supervision,
        seen,
        Checkpoints(folder / name, steps // 2, keep=2),
        steps=steps,
        ckpt=None if resume is None else path_of(folder / resume, steps // 2),
        strategy=getattr(parallel, strategy)(
            devices=world, **(share or ({"replicas": 2} if strategy == "hsdp" else {}))
        ),
        devices=world,
        gradient_clip_val=1.0,
        plugins=[StreamedCheckpointIO(sharded, background), *([] if plugin is None else [plugin])],
        **options,
    )
    if trainer.is_global_zero:
        torch.save({key: torch.stack(rows) for key, rows in seen.rows.items()}, folder / f"{name}.pt")


def job(name: str, **more: Any) -> dict[str, Any]:
    """Arguments of `train`; the strategy is what its name begins with."""
    return {"name": name, "strategy": name.split("-")[0], **more}


def run_all(folder: Path, jobs: list[dict[str, Any]], count: int = 2, killed: bool = False) -> None:
    """Do jobs of `train` in `count` processes."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    two_processes(trained_by_all, folder, count, killed)


def assert_equal(folder: Path, name: str, other: str, steps: int = STEPS, rounding: float = 1e-6) -> None:
    """What `name` has seen is what `other` has seen in its last steps, and both end with the same state."""
    a, b = (torch.load(folder / f"{n}.pt", weights_only=True) for n in (name, other))
    last = len(a["loss"])
    assert torch.equal(a["positions"], b["positions"][-last:])
    torch.testing.assert_close(a["loss"], b["loss"][-last:], rtol=rounding, atol=0)
    torch.testing.assert_close(a["probe"], b["probe"][-last:], rtol=0, atol=10 * rounding * b["probe"].max().item())
    one, two = (load_tensors(path_of(folder / n, steps), verify=True) for n in (name, other))
    assert one["global_step"] == two["global_step"] == steps
    for key in ("state_dict", "ema", "optimizer_states"):
        left, right = dict(tensors(one[key])), dict(tensors(two[key]))
        assert left.keys() == right.keys()
        for where, tensor in left.items():
            torch.testing.assert_close(tensor, right[where], rtol=0, atol=20 * rounding, msg=lambda m, w=where: w + m)


def tensors(value: Any, where: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested dicts and lists."""
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, (dict, list)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(part, f"{where}/{key}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, and runs of two from the beginning and from its half."""
    made = tmp_path_factory.mktemp("strategies")
    train(made, "single", "single")
    shards = {"sharded": True, "background": True}
    bf16 = [job(f"{name}-bf16", precision="bf16-mixed", steps=2) for name in ("ddp", "fsdp2")]
    run_all(made, [job("hsdp", **shards), job("fsdp2-resumed", resume="single"), *bf16])
    return made


@pytest.mark.parametrize("name", ["hsdp", "fsdp2-resumed"])
def test_two_processes_train_what_one_trains(name: str, folder: Path) -> None:
    assert_equal(folder, name, "single")


def test_matrices_that_travel_as_bfloat16_change_nothing_that_autocast_does_not(folder: Path) -> None:
    assert_equal(folder, "fsdp2-bf16", "ddp-bf16", steps=2, rounding=1e-8)
    losses = [torch.load(folder / f"{name}.pt", weights_only=True)["loss"] for name in ("fsdp2-bf16", "single")]
    assert (losses[0] - losses[1][:2]).abs().max() > 1e-6  # the rounding is there


def test_shards_of_two_processes_are_resumed_by_one(folder: Path) -> None:
    train(folder, "single-resumed", "single", resume="hsdp", sharded=True)
    assert_equal(folder, "single-resumed", "single")


def test_moments_have_the_memory_format_of_their_weights() -> None:
    """Those of sharded training are contiguous; a fused step would read them in the order of the weights."""
    results = []
    for saved_as in (torch.channels_last, torch.contiguous_format):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last))
        optimizer = torch.optim.AdamW([weight], lr=0.01, fused=True)
        for step in range(4):
            weight.grad = torch.randn(8, 6, 3, 3).to(memory_format=torch.channels_last)
            if step == 2:
                state = optimizer.state_dict()
                state["state"] = mapped(
                    state["state"], lambda _, t, f=saved_as: t.clone(memory_format=f) if t.ndim else t
                )
                optimizer.load_state_dict(state)
                lay_out(optimizer)
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


def test_a_folder_of_shards_is_a_checkpoint_as_a_file_is(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "hsdp", run, symlinks=True)
    assert sorted(p.name for p in run.iterdir()) == ["last.ckpt", "step=000000003.ckpt", "step=000000006.ckpt"]
    assert os.path.samefile(run / "last.ckpt", path_of(run, 6))
    assert newest_readable(run) == path_of(run, 6)
    content = load_tensors(run / "last.ckpt")
    weights, averages = read_weights(run / "last.ckpt"), content["ema"]["weights"]
    assert all(torch.equal(weights[name], average) for name, average in averages.items())
    part = max(path_of(run, 6).glob("*.safetensors"))
    whole = bytearray(part.read_bytes())
    whole[-5] ^= 1  # one bit
    part.write_bytes(whole)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_tensors(path_of(run, 6), verify=True)
    assert newest_readable(run) == path_of(run, 3)
    (path_of(run, 3) / "rest.pt").unlink()
    with pytest.raises(CheckpointError, match="none of the 3"):
        newest_readable(run)


def test_a_copy_is_saved_while_training_goes_on(tmp_path: Path) -> None:
    """What is written in the background is what the step had, although the weights have changed since."""
    path, gate = tmp_path / "a.ckpt", threading.Event()
    io = StreamedCheckpointIO(background=True)
    weight = torch.zeros(3)
    io.then(gate.wait)
    io._jobs.clear()  # what comes next need not wait for this
    io.save_checkpoint({"state_dict": {"w": weight}}, path)
    weight += 1
    assert not path.exists()
    gate.set()
    io.wait()
    assert load_tensors(path)["state_dict"]["w"].tolist() == [0, 0, 0]
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    io.save_checkpoint({"state_dict": {"w": weight}}, blocked / "b.ckpt")
    with pytest.raises(WriteError, match="cannot write"):
        io.wait()


def test_a_rank_that_cannot_write_stops_all_with_one_sentence(tmp_path: Path) -> None:
    two_processes(one_cannot_write, tmp_path)
    for name in ("fsdp2-other", "fsdp2-first", "ddp-first"):
        assert newest_readable(tmp_path / name) == path_of(tmp_path / name, 3)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["last.ckpt", "step=000000003.ckpt"]


@pytest.mark.full
@pytest.mark.parametrize("dying", [[1], [0, 1]])
def test_ranks_that_are_killed_while_they_save_lose_nothing(dying: list[int], folder: Path, tmp_path: Path) -> None:
    shards = {"sharded": True, "background": True}
    run_all(tmp_path, [job("fsdp2", dying=dying, **shards)], killed=True)
    run = tmp_path / "fsdp2"
    assert newest_readable(run) == path_of(run, 3)
    assert [p.name for p in run.glob("step=*")] == ["step=000000003.ckpt"]
    assert bool(list(run.glob(".*.tmp"))) == (0 in dying)  # else the first rank has cleared it away
    sweep(run)
    assert not list(run.glob(".*.tmp"))
    run_all(tmp_path, [job("fsdp2-whole", **shards), job("fsdp2-resumed", resume="fsdp2", **shards)])
    assert_equal(tmp_path, "fsdp2-resumed", "fsdp2-whole", rounding=0)


@pytest.mark.full
def test_weights_that_are_rounded_at_random_are_rounded_alike_on_shards(tmp_path: Path) -> None:
    """Gradients are rounded to bfloat16 on each rank, and so differ from those of one process by up to a 512th: now and
    then that rounds an entry otherwise (of these 1 in 40 after 6 steps); draws of their own would most of them.
    """
    train(tmp_path, "single", "single", precision="bf16-true")
    true = {"precision": "bf16-true", "sharded": True}
    run_all(tmp_path, [job("fsdp2", **true), job("fsdp2-resumed", resume="fsdp2", **true)])
    one, two = (load_tensors(path_of(tmp_path / name, STEPS))["state_dict"] for name in ("single", "fsdp2"))
    narrow = [name for name, weight in one.items() if weight.dtype == torch.bfloat16]
    differ = sum(int((one[name] != two[name]).sum()) for name in narrow) / sum(one[name].numel() for name in narrow)
    assert narrow
    assert differ < 0.1
    assert_equal(tmp_path, "fsdp2-resumed", "fsdp2", rounding=0)


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_any_strategy_on_any_number_of_processes_goes_on_from_any_other(tmp_path: Path) -> None:
    """Saved on 2 and loaded on 1 and 4, saved on 4 and loaded on 2, from files and from shards; 20 steps."""
    names, steps = ("ddp", "fsdp2", "hsdp"), 20
    train(tmp_path, "single", "single", steps)

    def begun(count: int) -> list[dict[str, Any]]:
        return [job(f"{name}-{count}", steps=steps, sharded=name != "ddp") for name in names]

    def resumed(count: int, other: int) -> list[dict[str, Any]]:
        pairs = itertools.product(names, names)
        return [job(f"{a}-{count}-of-{b}-{other}", steps=steps, resume=f"{b}-{other}") for a, b in pairs]

    run_all(tmp_path, [*begun(2), job("fsdp2-file", steps=steps)])
    run_all(tmp_path, [*begun(4), *resumed(4, 2), job("hsdp-4-of-file", steps=steps, resume="fsdp2-file")], count=4)
    run_all(tmp_path, resumed(2, 4))
    for name in names:
        train(tmp_path, f"single-of-{name}", "single", steps, resume=f"{name}-2")
    ended = sorted(p.stem for p in tmp_path.glob("*.pt") if p.stem != "single")
    assert len(ended) == 3 + 1 + 3 + 9 + 1 + 9 + 3
    for name in ended:
        assert_equal(tmp_path, name, "single", steps, rounding=5e-6)
