"""What a run writes down of its data: what label k means, and which samples there were, in which order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.base import DataModule, Source
from neural_rdm.data.classes import other_classes
from neural_rdm.data.latents import Latents
from neural_rdm.data.tar_shards import TarImages

#: split -> its name in a sentence
_SPLITS = {"train": "training", "val": "validation"}


def described(data: DataModule) -> dict[str, Any]:
    """Class names in label order, their number, and of each split how many samples are used and a hash of which.

    The hash is of the samples' names below the root and of their labels, so that it is the same where the data set was
    moved; None for data that are made rather than read. Nothing of a sample is read.

    Args:
        data: set up.
    """
    facts: dict[str, Any] = {"num_classes": data.num_classes, "class_names": data.class_names}
    for split, source, size in (
        ("train", data.train_set, data.train_size),
        ("val", data.val_set, data.val_size),
    ):
        if source is not None:
            listing = data.manifest["splits"][split]["source"]["sha256"] if isinstance(data, Latents) else None
            facts[split] = {"samples": size, "listing": listing or _listing(source, size, getattr(data, "root", None))}
    return facts


def check_same(held: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse to go on with data whose labels mean something else, or whose samples are not those that a run began with.

    Args:
        held, found: see `described`.

    Raises:
        ConfigError: saying what is different, and the key that accepts it.
    """
    advice = "Pass data.root=DIR (data.latents=DIR) of the data as they were"
    if problem := other_classes(held, found["num_classes"], found["class_names"]):
        raise ConfigError(
            f"{problem}. {advice}, or name the folders as they were; only where every label still stands for the same "
            "pictures, accept_data=true goes on with the new names"
        )
    for split, name in _SPLITS.items():
        before, now = held.get(split), found.get(split)
        if before == now:
            continue
        counts = [0 if facts is None else facts["samples"] for facts in (before, now)]
        what = (
            f"there are {counts[1]:,} {name} samples, and {counts[0]:,} when this run began"
            if counts[0] != counts[1]
            else f"the {counts[1]:,} {name} samples are not those with which this run began (other files, or labels)"
        )
        raise ConfigError(
            f"{what}. {advice}; or, to go on with these (where some broken files were removed, say), accept_data=true: "
            "which samples come when is another then"
        )


def _listing(source: Source, size: int, root: str | os.PathLike[str] | None) -> str | None:
    """sha256 of the names and labels of the first `size` samples of a source; None where they have no names."""
    path: Any = getattr(source, "name" if isinstance(source, TarImages) else "path", None)
    if path is None:
        paths = getattr(source, "paths", None)
        if paths is None:
            return None
        path = paths.__getitem__
    labels, digest = getattr(source, "y", None), hashlib.sha256()
    top = f"{Path(os.path.abspath(os.path.expanduser(root or '')))}{os.sep}"
    for index in range(size):
        digest.update(f"{str(path(index)).removeprefix(top)}\0".encode("utf-8", "surrogateescape"))
    if labels is not None:
        digest.update(labels[:size].contiguous().numpy().tobytes())
    return digest.hexdigest()
