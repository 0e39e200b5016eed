"""Batches are finished in order, one at a time, in a thread where that is asked for; what goes wrong there is heard."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from neural_rdm.diffusion.process import DDPM
from neural_rdm.diffusion.samplers import Sampler, sample


def zero(x: Tensor, t: Tensor) -> Tensor:
    return torch.zeros_like(x)


def drawn(finish, overlap: bool) -> Tensor:
    return sample(zero, DDPM(), Sampler("ddim", 2), (1, 2, 2), 7, batch_size=2, finish=finish, overlap=overlap)


@pytest.mark.parametrize("overlap", [False, True])
def test_batches_are_finished_in_order_one_at_a_time(overlap: bool) -> None:
    busy, threads, sizes = threading.Lock(), set(), []

    def finish(x: Tensor) -> Tensor:
        assert busy.acquire(blocking=False)
        assert not torch.is_grad_enabled()
        time.sleep(0.01)
        threads.add(threading.current_thread())
        sizes.append(len(x))
        busy.release()
        return x + 1

    found = drawn(finish, overlap)
    assert sizes == [2, 2, 2, 1]
    assert (threading.main_thread() in threads) != overlap
    assert torch.equal(found, drawn(None, False) + 1)
    assert not any(thread.name.startswith("finishing") for thread in threading.enumerate())


def test_an_error_ends_the_drawing() -> None:
    seen = []

    def finish(x: Tensor) -> Tensor:
        seen.append(len(x))
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        drawn(finish, True)
    assert len(seen) == 1  # nobody draws on for nothing
