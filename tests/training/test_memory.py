"""What a step is said to hold beside what torch's own tracker sees while it really trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from neural_rdm import DiT
from neural_rdm.backbones.counting import Held, held
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.core.errors import ConfigError
from neural_rdm.training import context_parallel, tensor_parallel
from neural_rdm.training.callbacks import logging
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.logging import Throughput
from neural_rdm.training.memory import Memory, check_room, memory, of_one_device, room
from neural_rdm.training.module import NeuralRDMF
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.recompute import recompute
from neural_rdm.training.together import Imagined
from tests.training.trainer import fit, tiny_module


def tracked(module: NeuralRDMF, folder: Path, *callbacks: Any, **options: Any) -> int:
    """Bytes at the fullest moment of the second and the third step, as torch's tracker sees them."""
    tracker = MemTracker()
    tracker.track_external(module.net)
    anew = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *_: tracker.reset_mod_stats())
    with tracker:
        fit(module, folder, *callbacks, anew, steps=3, **options)
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())


@pytest.mark.parametrize(
    ("how", "batch", "averages", "options", "shared"),
    [
        ("none", 64, 1, {}, {}),
        ("full", 64, 2, {}, {}),
        ("none", 2, 0, {"name": "muon"}, {}),  # weights, not activations, are most of it
        ("none", 64, 1, {}, {"context": 2}),
        ("full", 2, 1, {}, {"tensor": 4}),
    ],
)
def test_a_real_run_is_within_a_tenth(
    tmp_path: Path, how: Any, batch: int, averages: int, options: Any, shared: dict[str, int]
) -> None:
    """In one process; what others of a group would hand to it has no values, but the memory that it takes."""
    module = tiny_module(**options)
    module.net = DiT(8, 2, 1, 96, 3, 4, num_classes=10).requires_grad_(True)  # the tracker wants every gradient
    groups: Any = {which: Imagined(size) for which, size in shared.items()}
    net = of_one_device(module.net, how, **groups)
    expected = memory(net, module.optimizer, averages, held(net, batch))
    recompute(module.net, how)
    if "context" in groups:
        context_parallel.share_in(module.net, groups["context"])
    if "tensor" in groups:
        tensor_parallel.imagine(module.net, groups["tensor"])
    ema = [EMA(0.9, further=[0.5] * (averages - 1))] if averages else []
    assert expected.most == pytest.approx(tracked(module, tmp_path, *ema, batch_size=batch), rel=0.1)


@pytest.mark.parametrize(
    ("strategy", "samples"), [({}, 4), ({"together": 2, "copies": 2}, 8), ({"together": 2, "context": 2}, 8)]
)
def test_devices_that_compute_together_share_a_batch(
    strategy: dict[str, int], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four devices and 16 samples: those of a group have the samples of two, and hold a part of what one would."""
    seen: list[tuple[int, int]] = []

    def look(needed: Any, batch: int, has: int) -> str:
        seen.append((batch, needed(8).activations))
        return ""

    monkeypatch.setattr(logging, "check_room", look)
    monkeypatch.setattr(logging, "room", lambda device: 0)
    cpu, data = torch.device("cpu"), SimpleNamespace(batch_size=16)
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=cpu, **strategy), datamodule=data, world_size=4, global_rank=0,
        accumulate_grad_batches=1, precision="32-true",
    )  # fmt: skip
    module = tiny_module()
    assert Throughput._too_large(trainer, module, 1) == ""
    whole = held(module.net, 8).kept
    assert seen[0][0] == samples
    assert seen[0][1] == pytest.approx(whole, rel=0.02) if not strategy else seen[0][1] < 0.8 * whole


def test_devices_share_what_is_shared_out() -> None:
    with torch.device("meta"):
        net = DiT.named("DiT-S/2", input_size=32)
    found = Held(900, 800, 1000)
    alone, shared = (memory(net, Optimizer(), 1, found, shards) for shards in (1, 8))
    count = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    buffers = sum(4 * b.numel() for b in net.buffers())
    assert (alone.weights, alone.gradients, alone.optimizer) == (4 * count + buffers, 4 * trained, 8 * trained)
    assert (shared.weights, shared.optimizer, shared.averages) == (4 * count // 8 + buffers, trained, 4 * trained // 8)
    assert (alone.activations, alone.passing) == (shared.activations, shared.passing) == (800, 200)
    assert alone.gathered == 0 < shared.gathered < alone.weights
    assert shared.most < alone.most / 2
    heavy = sum(p.numel() for p in net.blocks[0].parameters() if p.ndim > 1)  # its gates have one axis
    rest = count - 12 * heavy
    assert shared.gathered == 8 * rest + 12 * heavy
    kept = memory(net, Optimizer(), 1, found, 8, reshards=False)  # the weights of all twelve, and one's gradients
    assert kept.gathered == 8 * rest + 4 * (12 + 1) * heavy
    island = sum(layer.weight.numel() for layer in net.blocks[0].modules() if isinstance(layer, Float32Linear))
    half = memory(net, Optimizer(), 1, found, 8, half=True)
    assert half.gathered == 8 * rest + 6 * (heavy - island) + 12 * island


def test_bytes_of_another_batch_are_on_a_line() -> None:
    net = DiT(8, 2, 1, 32, 2, 4, num_classes=10)
    two, four, nine = (held(net, batch) for batch in (2, 4, 9))
    assert two.at(9, four, (2, 4)).kept == nine.kept
    assert two.at(9, four, (2, 4)).forward == pytest.approx(nine.forward, rel=0.01)
    assert two.at(9, four, (2, 4)).backward == pytest.approx(nine.backward, rel=0.02)


def test_a_batch_that_cannot_fit_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "room", lambda device: 10_000_000)
    with pytest.raises(ConfigError, match=r"needs about 0.\d GiB on each device, which has 0.0: 1024 samples at once"):
        fit(tiny_module(), tmp_path, Throughput(), steps=1, batch_size=1024)
    fit(tiny_module(), tmp_path, Throughput(), steps=1, batch_size=16)


def test_what_is_just_too_much_is_told_and_what_fits_is_not() -> None:
    def needed(samples: int) -> Memory:
        return Memory(100, 0, 0, 0, 10 * samples, 0, 0)

    assert check_room(needed, 90, 1000) == ""
    said = check_room(needed, 100, 1000)
    assert "100 samples at once, of which about 64 fit" in said
    assert "activation_checkpointing=full" in said
    with pytest.raises(ConfigError, match="1000 samples at once"):
        check_room(needed, 1000, 1000)
    assert room(torch.device("cpu")) > 2**28


def test_bfloat16_weights_and_moments_on_the_host_take_less() -> None:
    with torch.device("meta"):
        net = DiT.named("DiT-S/2", input_size=32)
    found = Held(900, 800, 1000)
    whole = memory(net, Optimizer(), 1, found, half=True)
    less = memory(net, Optimizer(offload=True), 1, found, half=True, true=True)
    narrow = 12 * 12 * 384 * 384  # of each block: qkv, proj, fc1, fc2
    assert whole.weights - less.weights == whole.gradients - less.gradients == 2 * narrow
    assert (less.optimizer, less.averages) == (0, whole.averages)
