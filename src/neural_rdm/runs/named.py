"""A data module by the name that the command line knows it by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.config.grammar import written
from neural_rdm.data.base import DataModule
from neural_rdm.runs import build


def data_module(name: str, *, seed: int = 0, config_dir: str | Path | None = None, **arguments: Any) -> DataModule:
    """The data set of `data=NAME` as a LightningDataModule, not yet set up.

        data = data_module("imagenet", root="~/imagenet", image_size=256, batch_size=32)
        data.setup()
        batch = next(iter(data.train_dataloader()))  # x [B, 3, 256, 256] in [-1, 1], y [B], position [B]

    Args:
        name: a choice of the configuration group `data`.
        seed: of the order of the samples and of what is drawn of each.
        config_dir: a folder with further choices, as `--config-dir` takes it.
        arguments: of the data set's class, in place of those of the choice.

    Raises:
        UserError: no such choice or argument, or a value that its class refuses.
    """
    overrides = [f"data={name}", *(f"data.{key}={written(_plain(value))}" for key, value in arguments.items())]
    composed = compose_config("preview", overrides, None if config_dir is None else [str(config_dir)])
    validate(composed.cfg, "preview", composed.sources)
    module: DataModule = build.build(composed.cfg.data, "data")
    module.configure(seed)
    return module


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
