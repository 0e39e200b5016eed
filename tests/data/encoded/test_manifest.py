"""Latents that are not the experiment's are refused before anything heavy is imported, naming the field."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from neural_rdm.core.errors import ConfigError
from neural_rdm.data.encoded.manifest import check_manifest, content, read_manifest

DATA: dict[str, Any] = {"_target_": "a.ImageNet", "image_size": 256, "flip": True, "limit": None, "latents": "DIR"}
STAGE: dict[str, Any] = {"_target_": "a.KL", "channels": 4, "downsample": 8, "path": "vae", "scale": 0.18}
TEXT: dict[str, Any] = {"kind": "clip", "path": "c", "dim": 768, "max_length": 77, "keep_padding": True, "cache": None}


def refused(field: str, there: Any, here: Any, manifest: dict[str, Any], *nodes: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        check_manifest(manifest, *nodes)
    assert f"data.latents=DIR does not fit this experiment: {field} is {there} there, but {here} here." in str(
        caught.value
    )
    assert f"Pass {field}={there}, or encode again with {field}={here}" in str(caught.value)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        *(("data", key, value) for key, value in {"_target_": "a.Sky", "image_size": 128, "split": 2}.items()),
        *(("first_stage", key, value) for key, value in {"_target_": "a.VQ", "channels": 3, "downsample": 4}.items()),
        *(("condition", key, value) for key, value in {"kind": "t5", "dim": 1, "max_length": 9}.items()),
    ],
)
def test_every_field_that_decides_what_latents_are(group: str, key: str, value: Any) -> None:
    here = {"data": dict(DATA), "first_stage": dict(STAGE), "condition": dict(TEXT)}
    manifest = copy.deepcopy(here)
    check_manifest(manifest, *here.values())
    here[group][key] = value
    there = manifest[group].get(key)
    refused(f"{group}.{key}", "null" if there is None else there, value, manifest, *here.values())


def test_what_does_not_matter_is_not_asked() -> None:
    manifest = {"data": content(DATA, []), "first_stage": STAGE, "condition": None}
    here = {**DATA, "batch_size": 3, "flip": False, "limit": 7, "num_frames": 9}
    check_manifest(manifest, here, {**STAGE, "scale": None}, TEXT, ["num_frames"])
    refused("data.num_frames", "null", 9, manifest, here, STAGE, None)  # a class that does not say so of its key
    check_manifest({**manifest, "condition": TEXT}, DATA, STAGE, None)


def test_mirrored_copies_and_samples_that_are_not_there() -> None:
    manifest: dict[str, Any] = {"data": {**DATA, "flip": False}, "first_stage": STAGE, "condition": None}
    refused("data.flip", "false", "true", manifest, DATA, STAGE, None)
    manifest["data"] |= {"flip": True, "limit": 10}
    refused("data.limit", 10, "null", manifest, DATA, STAGE, None)
    refused("data.limit", 10, 11, manifest, {**DATA, "limit": 11}, STAGE, None)
    check_manifest(manifest, {**DATA, "limit": 10}, STAGE, None)


def test_a_folder_without_finished_latents_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pass its folder with data\.latents=DIR"):
        read_manifest(None)
    with pytest.raises(ConfigError, match=r"no manifest\.json in .*Make latents with `python -m neural_rdm\.encode"):
        read_manifest(tmp_path / "nowhere")
    (tmp_path / "request.json").write_text("{}")
    with pytest.raises(
        ConfigError, match=rf"not finished: give its encode command again with hydra\.run\.dir={tmp_path}"
    ):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('{"data')
    with pytest.raises(ConfigError, match="cannot read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"data": 1}))
    assert read_manifest(tmp_path) == {"data": 1}


@pytest.mark.parametrize("said", ["3", "[1]", "null", '"x"', "{", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(said)
    with pytest.raises(ConfigError, match=r"cannot read .*manifest\.json"):
        read_manifest(tmp_path)
