"""Loading latents against loading pixels, and against what a training step of DiT-S/2 consumes.

JPEGs of 256 pixels are made, encoded once by a small autoencoder (its weights do not matter: the moments have the shape
of the Stable Diffusion autoencoder's, 4 x 32 x 32) and loaded both ways by the loader of training, in the training
process itself (`data.num_workers=0`), from a warm page cache.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from benchmarks.step import NETWORKS, Step
from neural_rdm.config.compose import compose_config
from neural_rdm.encode import complete, encode
from neural_rdm.reports.tables import markdown_table
from neural_rdm.runs import build

PICTURES, BATCH, ROUNDS, SIZE = 512, 64, 5, 256
DTYPES = ("float16", "bfloat16", "float32")
GOAL = 20


def run() -> dict[str, Any]:
    """All measurements as plain values; a summary is printed on the way. Rates are samples a second of CPU time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _pictures(folder / "pictures")
        _autoencoder(folder / "vae")
        common = [
            *("exp=dit_s_gated", f"data.root={folder / 'pictures'}", f"first_stage.path={folder / 'vae'}"),
            *("backbone.num_classes=2", "data.num_workers=0", f"data.batch_size={BATCH}"),
        ]
        loaders = {"pixels": _loader(common)}
        sizes, errors = {}, {}
        reference: torch.Tensor | None = None
        for dtype in reversed(DTYPES):
            begin = time.process_time()
            made = folder / dtype
            encode(_composed("encode", *common, f"dtype={dtype}"), made)
            rate = PICTURES / (time.process_time() - begin)
            loaders[f"latents, {dtype}"] = _loader([*common, "data.source=latents", f"data.latents={made}"])
            shards = list((made / "train").glob("*.safetensors"))
            sizes[dtype] = sum(p.stat().st_size for p in shards) / PICTURES
            moments = _moments(made)
            reference = moments if reference is None else reference
            errors[dtype] = ((moments - reference).square().mean().sqrt() / reference.std()).item()
            print(f"{dtype}: {sizes[dtype] / 1024:.1f} KiB a picture, relative error {errors[dtype]:.1e}, {rate:.3g}/s")
        taken: dict[str, list[float]] = {name: [] for name in loaders}
        for load in loaders.values():
            load()
        for _ in range(ROUNDS):
            for name in [*loaders, *reversed(loaders)]:
                taken[name].append(loaders[name]())
        rates = {name: BATCH / statistics.median(seconds) for name, seconds in taken.items()}
    build_network, arguments, batch, rounds = NETWORKS["DiT-S/2"]
    step = Step("gated", build_network, arguments, batch)
    step()
    consumed = batch / (statistics.median(sum(step().values()) for _ in range(rounds)) / 1000)
    rows = [
        {
            "loader": name,
            "samples_per_second": rate,
            "over_dit_s_2_step": rate / consumed,
            "over_pixels": rate / rates["pixels"],
        }
        for name, rate in rates.items()
    ]
    print(markdown_table(rows))
    reached = min(row["over_dit_s_2_step"] for row in rows if row["loader"] != "pixels")
    print(f"a training step of DiT-S/2 takes {consumed:.3g} samples/s; goal {GOAL} times that: {reached:.3g} times\n")
    return {
        "method": f"the training loader without workers, {PICTURES} JPEGs of {SIZE} pixels, batches of {BATCH}, warm "
        "page cache; cases interleaved A B C C B A, medians. The step is that of benchmarks.step, gated, with its "
        "batch. Error: root mean square of a dtype's moments less float32's, over their standard deviation",
        "samples_per_second_of_a_dit_s_2_step": consumed,
        "goal_over_step": GOAL,
        "bytes_per_sample_with_flips": sizes,
        "relative_error": errors,
        "loaders": rows,
    }


def _pictures(root: Path) -> None:
    """Smooth pictures with some noise, so that the JPEGs are of usual sizes."""
    draw = np.random.default_rng(0)
    for i in range(PICTURES):
        low = Image.fromarray(draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize(
            (341, SIZE), Image.Resampling.BICUBIC
        )
        noisy = (np.asarray(low) + draw.normal(0, 6, (SIZE, 341, 3))).clip(0, 255).astype(np.uint8)
        path = root / str(i % 2) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy).save(path, quality=90)


def _autoencoder(folder: Path) -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    widths = {"block_out_channels": (4, 4, 8, 8), "latent_channels": 4, "norm_num_groups": 4}
    AutoencoderKL(**blocks, **widths).save_pretrained(folder)


def _composed(command: str, *overrides: str) -> Any:
    cfg = compose_config(command, complete(list(overrides)) if command == "encode" else list(overrides)).cfg
    OmegaConf.resolve(cfg)
    return cfg


def _loader(overrides: list[str]) -> Callable[[], float]:
    """Seconds of CPU time for the next batch."""
    data = build.data(_composed("train", *overrides))
    data.setup()
    batches = iter(data.train_dataloader())

    def load() -> float:
        begin = time.process_time()
        next(batches)["x"].float().sum()  # every byte is touched
        return time.process_time() - begin

    return load


def _moments(folder: Path) -> torch.Tensor:
    from neural_rdm.latents.shards import ShardedSet

    counts = json.loads((folder / "manifest.json").read_text())["splits"]["train"]["counts"]
    shards = ShardedSet(folder / "train", counts)
    return torch.cat([shards[i].moments.float() for i in range(len(shards))])
