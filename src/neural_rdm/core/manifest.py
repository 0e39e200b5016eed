"""What a folder of latents says of itself, and whether it is what an experiment wants. Standard library only: training
asks before torch is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from neural_rdm.core.errors import ConfigError

#: written when the first shard begins: what was asked for
REQUEST = "request.json"
#: written when the last shard is there
MANIFEST = "manifest.json"

#: keys of a data set that change what its latents are; others (workers, batches, clips drawn of whole videos) do not
CONTENT = ("_target_", "image_size", "split", "caption_key")
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
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if (path.parent / REQUEST).is_file():
            raise ConfigError(
                f"data.latents={folder} is not finished: give its encode command again with hydra.run.dir={folder}, "
                "and it goes on where it stopped"
            ) from error
        raise ConfigError(
            f"data.latents={folder}: no {MANIFEST} in {path.parent.resolve()}. Make latents with `python -m "
            "neural_rdm.encode exp=...`, and pass the folder that it prints"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    return dict(found)


def check_manifest(
    manifest: Mapping[str, Any],
    data: Mapping[str, Any],
    first_stage: Mapping[str, Any],
    condition: Mapping[str, Any] | None,
) -> None:
    """Refuse latents that are not the experiment's.

    Args:
        manifest: see `read_manifest`.
        data, first_stage, condition: the experiment's nodes.

    Raises:
        ConfigError: naming the first field that differs, and both values.
    """
    for field, held, wanted in _different(manifest, data, first_stage, condition):
        raise ConfigError(
            f"data.latents={data.get('latents')} does not fit this experiment: {field} is {_typed(held)} there, but "
            f"{_typed(wanted)} here. Pass {field}={_typed(held)}, or encode again with {field}={_typed(wanted)}"
        )


def _different(
    manifest: Mapping[str, Any],
    data: Mapping[str, Any],
    first_stage: Mapping[str, Any],
    condition: Mapping[str, Any] | None,
) -> Iterator[tuple[str, Any, Any]]:
    """(key, value there, value here) of everything that does not fit."""
    groups: list[tuple[str, tuple[str, ...], Mapping[str, Any], Mapping[str, Any]]] = [
        ("data", CONTENT, data, manifest["data"]),
        ("first_stage", STAGE, first_stage, manifest["first_stage"]),
    ]
    if condition is not None and manifest["condition"] is not None:
        groups.append(("condition", TEXT, condition, manifest["condition"]))
    for group, keys, here, there in groups:
        for key in keys:
            if here.get(key) != there.get(key):
                yield f"{group}.{key}", there.get(key), here.get(key)
    if data.get("flip") and not manifest["data"].get("flip"):
        yield "data.flip", False, True
    held, wanted = manifest["data"].get("limit"), data.get("limit")
    if held is not None and (wanted is None or wanted > held):
        yield "data.limit", held, wanted


def _typed(value: Any) -> str:
    """A value as one types it."""
    return value if isinstance(value, str) else json.dumps(value)
