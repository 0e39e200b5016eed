"""What a folder says of its origin, and that no changed configuration passes for the run's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from neural_rdm.config.provenance import (
    CONFIG,
    FILE,
    KEY,
    check_checkpoint,
    check_config,
    config_hash,
    read_provenance,
    write_config,
    write_provenance,
)
from neural_rdm.core.errors import CheckpointError


def configuration() -> DictConfig:
    return OmegaConf.create(
        {"seed": 17, "name": "a: b # c", "data": {"root": "/d/2024_01", "flip": True, "limit": None, "lr": 0.00012},
         "times": [0.5, 1.0, "1e-3"], "on": "yes", "größe": 2}
    )  # fmt: skip


def test_every_flip_of_a_bit_that_is_accepted_leaves_the_values(tmp_path: Path) -> None:
    write_config(tmp_path, configuration())
    written = (tmp_path / CONFIG).read_bytes() + b"# a comment\n"
    values = OmegaConf.to_container(configuration())
    accepted = refused = 0
    for bit in range(8 * len(written)):
        content = bytearray(written)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / CONFIG).write_bytes(content)
        try:
            found: Any = OmegaConf.load(tmp_path / CONFIG)
            check_config(tmp_path, found)
        except Exception:  # whatever a YAML reader raises; commands make one message of it
            refused += 1
            continue
        accepted += 1
        assert OmegaConf.to_container(found) == values, f"bit {bit}"
    assert accepted > 20  # those in the comment
    assert refused > accepted


def test_a_flip_in_what_the_folder_says_of_itself_is_noticed(tmp_path: Path) -> None:
    write_config(tmp_path, configuration())
    write_provenance(tmp_path, data={"class_names": ["cat", "Hündin"]})
    said, written = read_provenance(tmp_path), (tmp_path / FILE).read_bytes()
    for bit in range(0, 8 * len(written), 5):
        content = bytearray(written)
        content[bit // 8] ^= 1 << bit % 8
        (tmp_path / FILE).write_bytes(content)
        try:
            assert read_provenance(tmp_path) == said, f"bit {bit}"
        except CheckpointError as error:
            assert "restore it from a copy" in str(error)  # noqa: PT017 (either is right)


def test_a_changed_configuration_is_refused_and_one_that_the_run_had_is_not(tmp_path: Path) -> None:
    first = configuration()
    write_config(tmp_path, first)
    second = OmegaConf.merge(first, {"data": {"root": "/elsewhere"}})
    write_config(tmp_path, second)  # type: ignore[arg-type]
    for cfg in (first, second):
        check_config(tmp_path, OmegaConf.create(OmegaConf.to_yaml(cfg)))
    changed = OmegaConf.merge(second, {"seed": 18})
    with pytest.raises(CheckpointError, match=r"changed behind the run's back: .*Restore it.* resume="):
        check_config(tmp_path, changed)  # type: ignore[arg-type]
    check_checkpoint(tmp_path, second, tmp_path / "a.ckpt", {KEY: config_hash(first)})  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"a\.ckpt was written under another one"):
        check_checkpoint(tmp_path, second, tmp_path / "a.ckpt", {KEY: config_hash(changed)})  # type: ignore[arg-type]


def test_the_order_of_keys_is_no_change(tmp_path: Path) -> None:
    cfg = configuration()
    assert config_hash(OmegaConf.create(dict(reversed(list(cfg.items()))))) == config_hash(cfg)
    write_config(tmp_path, cfg)
    before = (tmp_path / FILE).read_bytes()
    write_config(tmp_path, cfg)
    assert (tmp_path / FILE).read_bytes() == before
    assert json.loads(before)["configurations"] == [config_hash(cfg)]
