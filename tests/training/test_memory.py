"""What a step is said to hold beside what torch's own tracker sees while it really trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from neural_rdm import DiT
from neural_rdm.backbones.counting import Held, held
from neural_rdm.backbones.layers import Float32Linear
from neural_rdm.core.errors import ConfigError
from neural_rdm.training.callbacks import logging
from neural_rdm.training.callbacks.ema import EMA
from neural_rdm.training.callbacks.logging import Throughput
from neural_rdm.training.memory import Memory, check_room, memory, room
from neural_rdm.training.optim import Optimizer
from neural_rdm.training.recompute import recompute
from tests.training.trainer import fit, tiny_module


@pytest.mark.parametrize(
    ("how", "batch", "averages", "options"),
    [
        ("none", 64, 1, {}),
        ("full", 64, 2, {}),
        ("none", 2, 0, {"name": "muon"}),  # weights, not activations, are most of it
    ],
)
def test_a_real_run_is_within_a_tenth(tmp_path: Path, how: Any, batch: int, averages: int, options: Any) -> None:
    module = tiny_module(**options)
    module.net = DiT(8, 2, 1, 96, 3, 4, num_classes=10).requires_grad_(True)  # the tracker wants every gradient
    recompute(module.net, how)
    expected = memory(module.net, module.optimizer, averages, held(module.net, batch))
    ema = [EMA(0.9, further=[0.5] * (averages - 1))] if averages else []
    tracker = MemTracker()
    tracker.track_external(module.net)
    anew = pl.callbacks.LambdaCallback(on_train_batch_start=lambda *_: tracker.reset_mod_stats())
    with tracker:
        fit(module, tmp_path, *ema, anew, steps=3, batch_size=batch)
    seen = sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
    assert expected.most == pytest.approx(seen, rel=0.1)


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
