"""The hash of a run's configuration in each of its checkpoints."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from neural_rdm.core.provenance import KEY


class Stamp(pl.Callback):
    """Writes into every checkpoint under which configuration it was made.

    Args:
        config_hash: see `core.provenance.config_hash`.
    """

    def __init__(self, config_hash: str) -> None:
        self.config_hash = config_hash

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add it."""
        checkpoint[KEY] = self.config_hash
