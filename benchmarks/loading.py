"""Images per second out of the loader: JPEG files decoded, cropped as ADM crops them, flipped, batched, by workers.

The files are made here, as large as ImageNet's are on average and as large as the crop; their contents are smooth
colours with grain, which compress about as photographs do. Time is wall time, since workers are processes of their own.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.reports.tables import markdown_table

SIZES = {"as the crop": (256, 256), "as ImageNet's": (500, 375)}
FILES, BATCH, BATCHES, ROUNDS = 128, 32, 8, 3
WORKERS = (0, 1, 2)


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth colours with grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (*size[::-1], 3)), 0, 255).astype(np.uint8))


def make_tree(root: Path, size: tuple[int, int]) -> float:
    """Class folders of JPEG files; return the mean number of bytes."""
    for i in range(FILES):
        path = root / f"class{i % 4}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(size, i).save(path, quality=90)
    return statistics.mean(file.stat().st_size for file in root.glob("*/*.jpg"))


def images_per_second(root: Path, workers: int) -> float:
    """The loader's rate, without the batches that start it."""
    data = ImageFolder(root, 256, BATCH, num_workers=workers)
    batches = iter(data.train_dataloader())
    for _ in islice(batches, 1 + 2 * workers):
        pass
    start = time.perf_counter()
    for _ in islice(batches, BATCHES):
        pass
    return BATCH * BATCHES / (time.perf_counter() - start)


def run() -> dict[str, Any]:
    """Images per second for each size of file and number of workers: the median of a few rounds, interleaved."""
    rows = []
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            kilobytes = make_tree(Path(folder), size) / 1000
            found: dict[int, list[float]] = {workers: [] for workers in WORKERS}
            for _ in range(ROUNDS):
                for workers in WORKERS:
                    found[workers].append(images_per_second(Path(folder), workers))
        for workers, rates in found.items():
            rows.append(
                {
                    "files": name,
                    "pixels": f"{size[0]} x {size[1]}",
                    "mean kB": kilobytes,
                    "workers": workers,
                    "images/s": statistics.median(rates),
                    "lowest": min(rates),
                    "highest": max(rates),
                }
            )
    print(markdown_table(rows))
    return {"clock": "wall time", "crop": 256, "batch": BATCH, "rounds": ROUNDS, "rows": rows}
