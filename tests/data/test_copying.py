from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from neural_rdm.data import copying


def test_only_what_is_named_moves() -> None:
    batch = {"x": torch.ones(2), "position": torch.arange(2), "caption": ["a", "b"]}
    moved = copying.moved(batch, ("x", "y"), torch.device("meta"))
    assert moved["x"].device.type == "meta"
    assert moved["position"] is batch["position"]
    assert moved["caption"] is batch["caption"]
    assert "y" not in moved
    assert batch["x"].device.type == "cpu"


def test_a_gpu_copies_on_a_stream_of_its_own_and_its_steps_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Stream:
        def __init__(self, device: torch.device | None = None) -> None:
            self.device = device

        def wait_stream(self, other: Stream) -> None:
            told.append(("waits", self, other))

    class Sent:
        def to(self, device: torch.device, non_blocking: bool) -> Sent:
            assert non_blocking
            told.append(("copies", now[-1]))
            return self

        def record_stream(self, stream: Stream) -> None:
            told.append(("is read by", stream))

    @contextmanager
    def entered(stream: Stream) -> Any:
        now.append(stream)
        yield
        now.pop()

    computes = Stream()
    now: list[Stream] = [computes]
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[-1])
    copying._copies.cache_clear()
    copying.moved({"x": Sent()}, ("x",), torch.device("cuda", 0))
    copying.moved({"x": Sent()}, ("x",), torch.device("cuda", 0))
    copying._copies.cache_clear()
    copies = told[0][1]
    assert copies is not computes
    assert copies.device == torch.device("cuda", 0)
    assert told == 2 * [("copies", copies), ("waits", computes, copies), ("is read by", computes)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies beside a step need a GPU")
def test_what_a_gpu_reads_is_what_was_sent() -> None:
    sent = [torch.full((1 << 20,), float(i)).pin_memory() for i in range(8)]
    busy = torch.randn(4096, 4096, device="cuda")
    sums: list[Tensor] = []
    for each in sent:
        there = copying.moved({"x": each}, ("x",), torch.device("cuda"))["x"]
        busy = (busy @ busy).clamp(-1, 1)
        sums.append(there.mean())
        del there
    assert [value.item() for value in sums] == [each.mean().item() for each in sent]
