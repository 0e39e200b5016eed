"""What is done with a finished batch (decoding, rounding, writing), beside the drawing of the next one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


class Finishing:
    """Finishes batches in the order in which they come, one at a time.

    Args:
        finish: what is made of a batch; None for the batch itself.
        device: of the batches.
        apart: in a thread, on a GPU with a stream of its own; at most one batch waits for its turn. Else at once.
    """

    def __init__(self, finish: Callable[[Tensor], Tensor] | None, device: torch.device, apart: bool) -> None:
        self.finish = finish
        self.pool = ThreadPoolExecutor(1, "finishing") if apart and finish is not None else None
        self.stream = torch.cuda.Stream(device) if self.pool and device.type == "cuda" else None
        self.done: list[Tensor | Future[Tensor]] = []

    def __enter__(self) -> Finishing:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=kind is not None)

    def add(self, batch: Tensor) -> None:
        """Take a batch whose work is on the current stream.

        Raises:
            Exception: whatever an earlier batch ended in.
        """
        if self.finish is None:
            self.done.append(batch)
        elif self.pool is None:
            self.done.append(self.finish(batch))
        else:
            if self.done:
                self._result(-1)  # no more than one batch waits
            drawn = None
            if self.stream is not None:
                drawn = torch.cuda.current_stream(batch.device).record_event()
                batch.record_stream(self.stream)  # its memory is not given away before that stream is done with it
            self.done.append(self.pool.submit(self._apart, batch, drawn))

    def _apart(self, batch: Tensor, drawn: torch.cuda.Event | None) -> Tensor:
        assert self.finish is not None
        on_stream: AbstractContextManager[Any]
        on_stream = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with torch.no_grad(), on_stream:  # both are the thread's own
            if self.stream is not None and drawn is not None:
                self.stream.wait_event(drawn)
            made = self.finish(batch)
            if self.stream is not None:
                self.stream.synchronize()  # what is made of it may be used anywhere now
            return made

    def _result(self, place: int) -> Tensor:
        found = self.done[place]
        return found.result() if isinstance(found, Future) else found

    def parts(self) -> list[Tensor]:
        """What was made of every batch.

        Raises:
            Exception: whatever one of them ended in.
        """
        return [self._result(place) for place in range(len(self.done))]
