"""What a Trainer holds and Lightning does not declare: its callbacks and its data."""

from __future__ import annotations

from typing import Any, TypeVar

import lightning.pytorch as pl

from neural_rdm.data.base import DataModule

C = TypeVar("C", bound=pl.Callback)


def callbacks_of(trainer: Any, kind: type[C]) -> list[C]:
    """The callbacks of one kind, in the order in which they run."""
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]


def data_of(trainer: Any) -> DataModule:
    """The data module."""
    data: DataModule = trainer.datamodule
    return data
