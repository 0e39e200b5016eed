"""What a folder of latents says of itself, and whether it is what an experiment wants. Standard library only: training
asks before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError
from neural_rdm.core.extras import typed
from neural_rdm.core.given import read_json

#: written when the first shard begins: what was asked for
REQUEST = "request.json"
#: written when the last shard is there
MANIFEST = "manifest.json"

#: keys of every data set that change how samples are read, and not what one is; its class adds its own
#: (`DataModule.reading`), and every other key counts
READING = ("root", "source", "latents", "batch_size", "num_workers", "max_bad_fraction")
#: what need not be the same, if there is more of it: mirrored copies, and samples
_ENOUGH = ("flip", "limit")
#: keys of a first stage that say which kind of latents these are; its weights are compared by `sha256`
STAGE = ("_target_", "channels", "downsample")
TEXT = ("kind", "path", "dim", "max_length", "keep_padding")


def read_manifest(folder: str | Path | None) -> dict[str, Any]:
    """The manifest of the finished latents in `folder`.

    Raises:
        ConfigError: no folder, not one of latents, or one that is not finished.
    """
    if folder is None:
        raise ConfigError(
            "data.source=latents reads what `python -m neural_rdm.encode` wrote; pass its folder with data.latents=DIR"
        )
    path = Path(folder).expanduser() / MANIFEST
    try:
        found = read_json(path)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, and no facts by name")
    except FileNotFoundError as error:
        if (path.parent / REQUEST).is_file():
            raise ConfigError(
                f"data.latents={folder} is not finished: give its encode command again with "
                f"{typed('hydra.run.dir', folder)}, "
                "and it goes on where it stopped"
            ) from error
        raise ConfigError(
            f"data.latents={folder}: no {MANIFEST} in {path.parent.resolve()}. Make latents with `python -m "
            "neural_rdm.encode exp=...`, and pass the folder that it prints"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return found


def content(data: Mapping[str, Any], reading: Iterable[str]) -> dict[str, Any]:
    """The keys of a data set's node, and their values, that change what a sample of it is.

    Args:
        reading: those of its class that do not (`DataModule.reading`).
    """
    return {key: value for key, value in data.items() if key not in {*READING, *reading}}


def check_manifest(
    manifest: Mapping[str, Any],
    data: Mapping[str, Any],
    first_stage: Mapping[str, Any],
    condition: Mapping[str, Any] | None,
    reading: Iterable[str] = (),
) -> None:
    """Refuse latents that are not the experiment's.

    Args:
        manifest: see `read_manifest`.
        data, first_stage, condition: the experiment's nodes.
        reading: see `content`.

    Raises:
        ConfigError: naming the first field that differs, and both values.
    """
    keys = [key for key in {**content(data, reading), **manifest["data"]} if key not in _ENOUGH]
    groups: list[tuple[str, Iterable[str], Mapping[str, Any]]]
    groups = [("data", keys, data), ("first_stage", STAGE, first_stage)]
    if condition is not None and manifest["condition"] is not None:
        groups.append(("condition", TEXT, condition))
    pairs = [
        (f"{group}.{key}", manifest[group].get(key), here.get(key)) for group, keys, here in groups for key in keys
    ]
    different = [pair for pair in pairs if pair[1] != pair[2]]
    if data.get("flip") and not manifest["data"].get("flip"):
        different.append(("data.flip", False, True))
    held, wanted = manifest["data"].get("limit"), data.get("limit")
    if held is not None and (wanted is None or wanted > held):
        different.append(("data.limit", held, wanted))
    for field, *values in different:
        there, here = (value if isinstance(value, str) else json.dumps(value) for value in values)
        pass_it, encode_it = (typed(field, value) for value in values)
        raise ConfigError(
            f"data.latents={data.get('latents')} does not fit this experiment: {field} is {there} there, but {here} "
            f"here. Pass {pass_it}, or encode again with {encode_it}"
        )
