"""Small pictures, a small autoencoder, and `encode` run on them in this process; for several test files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from neural_rdm.config.check import validate
from neural_rdm.config.compose import compose_config
from neural_rdm.encode import complete, encode

SIZE = 16


def picture(path: Path, seed: int, size: tuple[int, int] = (20, 18)) -> None:
    """A colour gradient that no flip leaves as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    low = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), dtype=np.uint8)
    Image.fromarray(low).resize(size, Image.Resampling.BICUBIC).save(path)


def image_tree(root: Path, each: int = 5) -> Path:
    """Two classes, `each` training images and two validation images a class."""
    for label in (0, 1):
        for i in range(each):
            picture(root / "train" / f"c{label}" / f"{i}.png", 10 * label + i)
        for i in range(2):
            picture(root / "val" / f"c{label}" / f"v{i}.png", 100 + 10 * label + i)
    return root


def clip_tree(root: Path) -> Path:
    """Folders of 9, 4 and 2 frames for training and one of 7 for validation."""
    for name, frames in (("train/a/1", 9), ("train/a/2", 4), ("train/b/1", 2), ("test/c/1", 7)):
        for i in range(frames):
            picture(root / name / f"{i}.png", 100 * len(name) + 1000 * frames + i)
    return root


def caption_tree(root: Path) -> Path:
    """COCO's layout: three training images with two captions each, two validation images with one."""
    for split, count in (("train2017", 3), ("val2017", 2)):
        images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(count)]
        said = [(i, f"a {colour} kite {i}") for i in range(count) for colour in ("red", "blue")[: count - 1]]
        for i in range(count):
            picture(root / split / f"{i}.jpg", 50 * count + i)
        text = {
            "images": images,
            "annotations": [{"id": n, "image_id": i, "caption": words} for n, (i, words) in enumerate(said)],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"captions_{split}.json").write_text(json.dumps(text))
    return root


def composed(command: str, *overrides: str) -> DictConfig:
    """A checked, resolved configuration."""
    result = compose_config(command, complete(list(overrides)) if command == "encode" else list(overrides))
    validate(result.cfg, command, result.sources)
    OmegaConf.resolve(result.cfg)
    return result.cfg


def stage(path: Path) -> list[str]:
    """Overrides for the autoencoder of `tests.latents.test_first_stage.tiny_autoencoder`."""
    return ["first_stage=kl_f8", f"first_stage.path={path}", "first_stage.downsample=2", "first_stage.scale=0.5"]


def make(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run `encode` into `folder`; its manifest."""
    assert encode(composed("encode", "data.num_workers=0", *overrides), folder) == 0
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest
