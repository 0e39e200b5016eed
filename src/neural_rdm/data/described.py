"""What a run writes down of its data: what label k means, and which samples there were, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from neural_rdm.core.errors import ConfigError

if TYPE_CHECKING:
    from neural_rdm.data.base import DataModule

#: split -> its name in a sentence
SPLITS = {"train": "training", "val": "validation"}


def described(data: DataModule) -> dict[str, Any]:
    """Class names in label order, their number, and of each split how many samples are used and a hash of which.

    The hash is of the samples' names below the root and of their labels, so that it is the same where the data set was
    moved; None for data that are made rather than read. Nothing of a sample is read.

    Args:
        data: set up.
    """
    facts: dict[str, Any] = {"num_classes": data.num_classes, "class_names": data.class_names}
    for split, source in data.sources.items():
        size = data.sizes[split]
        facts[split] = {"samples": size, "listing": source.listing(size, getattr(data, "root", None))}
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
    for split, name in SPLITS.items():
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


def other_classes(held: Mapping[str, Any], number: int | None, names: list[str] | None) -> str:
    """What is different about the classes that a run has written down and these; empty where nothing is."""
    before = held["class_names"]
    if held["num_classes"] != number:
        return f"the data have {number} classes, but the run {held['num_classes']}"
    if before == names:
        return ""
    if before is None or names is None:
        return f"the classes have {'names now' if names else 'no names now'}, other than in the run"
    label = next(k for k, (old, new) in enumerate(zip(before, names, strict=True)) if old != new)
    return f"label {label} means {before[label]} in the run, but {names[label]} in the data"
