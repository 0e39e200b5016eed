"""What a folder says of its own origin: which command has made it, under which configurations, of which data.

`provenance.json` is written before anything else is, and says of each process that worked there how it began (`starts`,
see `origin`). A run's `config.yaml` must be one that the run itself has written: each one's hash stands here, and the
hash of the one in force in every checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.extras import typed
from neural_rdm.core.files import write_text
from neural_rdm.core.given import read_json

FILE, CONFIG = "provenance.json", "config.yaml"
#: key of the hash in a checkpoint
KEY = "config_sha256"


def config_hash(cfg: DictConfig) -> str:
    """sha256 of a configuration's values, whatever the order of its keys.

    They are taken as they come back from YAML, so that the hash of what is written is that of what is read.
    """
    plain = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)))
    return _sha256(plain)


def read_provenance(folder: Path) -> dict[str, Any]:
    """What a folder says of itself; empty where it says nothing.

    Raises:
        CheckpointError: it cannot be read, or was changed.
    """
    path = folder / FILE
    try:
        found = read_json(path)
        if found.pop("sha256") != _sha256(found):
            raise ValueError("it is not as it was written")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error or type(error).__name__}): restore it from a copy, so that it is sure again "
            "what this folder holds"
        ) from error
    return dict(found)


def write_provenance(folder: Path, **facts: Any) -> None:
    """Add facts to what a folder says of itself, or replace them."""
    found = {**read_provenance(folder), **facts}
    write_text(folder / FILE, json.dumps({**found, "sha256": _sha256(found)}, indent=1, ensure_ascii=False) + "\n")


def write_config(folder: Path, cfg: DictConfig) -> None:
    """Write a run's `config.yaml`, and its hash beside the hashes of those that the run had before."""
    known, digest = read_provenance(folder).get("configurations", []), config_hash(cfg)
    if digest not in known:
        write_provenance(folder, configurations=[*known, digest])  # first: a kill in between leaves the old one valid
    text = OmegaConf.to_yaml(cfg)
    if not (folder / CONFIG).is_file() or (folder / CONFIG).read_bytes() != text.encode():
        write_text(folder / CONFIG, text)


def check_config(folder: Path, cfg: DictConfig) -> None:
    """Refuse a configuration that the run in `folder` has not written itself.

    Raises:
        CheckpointError: it was changed, or what the folder says of itself is damaged.
    """
    known = read_provenance(folder).get("configurations")
    if known is not None and config_hash(cfg) not in known:
        raise _changed(folder / CONFIG, f"it is none that this run has written ({folder / FILE})")


def check_checkpoint(folder: Path, cfg: DictConfig, path: Path, content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that was written under another configuration than the run's (or one that the run had before).

    Args:
        path, content: the checkpoint. One without a hash is taken as it is.

    Raises:
        CheckpointError: naming both files.
    """
    held = content.get(KEY)
    if held is not None and held not in (config_hash(cfg), *read_provenance(folder).get("configurations", [])):
        raise _changed(folder / CONFIG, f"{path} was written under another one")


def _changed(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} was changed behind the run's back: {why}. Restore it as the run wrote it. What may change is changed "
        f"by a resume: {typed('resume', path.parent)} KEY=VALUE; for all else start a new run"
    )


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()
