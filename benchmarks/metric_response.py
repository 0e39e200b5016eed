"""How the numbers of `metrics.suite` answer what is done to real images, in the features of EfficientNet-Lite0.

The reference is a random half of Tiny ImageNet's images, equally many of ten classes; `COUNT` images of the other half
are measured against it: as they are, blurred, noisy, and of ever fewer classes. None of these numbers is an FID. As
they are fewer than the 1280 dimensions, the Frechet distance of untouched halves is far from 0; the kernel distance,
which has no such bias, is not.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from neural_rdm.core.errors import DataError
from neural_rdm.core.files import write_atomically
from neural_rdm.core.progress import progress_bar
from neural_rdm.metrics.networks import feature_network
from neural_rdm.metrics.suite import Evaluation
from neural_rdm.reports.tables import markdown_table

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "tiny_imagenet" / "tiny_imagenet_10class.zip"
SPACE, BATCH, COUNT, SEED = "efficientnet_lite0", 50, 500, 0
BLUR, NOISE, CLASSES = (0.5, 1, 2, 4), (8, 16, 32, 64), (7, 4, 2)
CASES = {
    "blur": "deviation of the Gaussian, pixels",
    "noise": "deviation, grey levels",
    "classes": "classes left of 10",
}
SHOWN = ("frechet", "kernel_distance", "precision", "recall", "inception_score")
Pixels = NDArray[np.uint8]


def run() -> dict[str, Any]:
    """All numbers as plain values; `metric_response.png` beside the results shows them."""
    reference, rest = halves()
    evaluation = Evaluation(feature_network(SPACE), spatial=False, subset_size=COUNT // 2)
    sets = [("blur", 0, balanced(rest, 10)), *altered(rest)]
    rows = []
    with progress_bar("features", sum(map(len, [reference[0], *(x for *_, x in sets)])) // BATCH, "batches") as advance:

        def add(images: Pixels, real: bool) -> None:
            for part in torch.from_numpy(images).movedim(-1, 1).split(BATCH):
                evaluation.update(part.contiguous(), real=real)
                advance()

        add(reference[0], real=True)
        for case, amount, images in sets:
            evaluation.reset(real=False)
            add(images, real=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # fewer samples than dimensions, equally many in every row
                found = evaluation.compute()
            rows.append({"case": case, "amount": amount} | {name: found[f"{name}_{SPACE}"] for name in SHOWN})
    print(markdown_table(rows))
    plot(rows, Path(__file__).parent / "results" / "metric_response.png")
    protocol = f"{evaluation.protocol}; {len(reference[0])} real images, {COUNT} measured a row"
    return {"method": " ".join((__doc__ or "").split()), "protocol": protocol, "rows": rows}


def halves() -> list[tuple[Pixels, NDArray[np.int64]]]:
    """Two random halves, each of uint8 images [N, 64, 64, 3] and classes [N], equally many of each class.

    Raises:
        DataError: the images are not on this machine.
    """
    if not ARCHIVE.is_file():
        raise DataError(f"this benchmark needs the real images in {ARCHIVE}")
    images, names = [], []
    with zipfile.ZipFile(ARCHIVE) as archive:
        for path in sorted(n for n in archive.namelist() if "train/" in n and n.lower().endswith(".jpeg")):
            images.append(np.asarray(Image.open(io.BytesIO(archive.read(path))).convert("RGB")))
            names.append(path.split("train/")[1].split("/")[0])
    x, y = np.stack(images), np.unique(names, return_inverse=True)[1]
    order = np.random.default_rng(SEED).permutation(len(x))
    order = order[np.argsort(y[order], kind="stable")]  # shuffled within each class
    return [(x[order[start::2]], y[order[start::2]]) for start in (0, 1)]


def balanced(half: tuple[Pixels, NDArray[np.int64]], classes: int) -> Pixels:
    """`COUNT` images of the first so many classes, equally many of each."""
    x, y = half
    members = [x[y == c][: -(-COUNT // classes)] for c in range(classes)]
    return np.concatenate(members)[:COUNT]


def altered(half: tuple[Pixels, NDArray[np.int64]]) -> list[tuple[str, float, Pixels]]:
    """(case, amount, images) of everything that is done to them."""
    x = balanced(half, 10)
    noise = np.random.default_rng(SEED).standard_normal(x.shape)
    found: list[tuple[str, float, Pixels]] = []
    found += [("blur", sigma, gaussian_filter(x, (0, sigma, sigma, 0))) for sigma in BLUR]
    found += [("noise", s, (x + s * noise).round().clip(0, 255).astype(np.uint8)) for s in NOISE]
    return found + [("classes", count, balanced(half, count)) for count in CLASSES]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A row of axes for each number, a column for each case; the untouched images are the first point of each."""
    figure = Figure(figsize=(10, 2.1 * len(SHOWN)), dpi=110, layout="constrained")
    for line, name in zip(figure.subplots(len(SHOWN), len(CASES), sharey="row"), SHOWN, strict=True):
        for axis, (case, label) in zip(line, CASES.items(), strict=True):
            mine = [row for row in rows if row["case"] == case and row["amount"]]
            ticks = ["10" if case == "classes" else "0", *(f"{row['amount']:g}" for row in mine)]
            axis.plot(range(len(ticks)), [row[name] for row in [rows[0], *mine]], marker="o")
            axis.axhline(rows[0][name], color="0.7", linewidth=0.8)
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set(xlabel=f"{case}: {label}" if name == SHOWN[-1] else "", ylabel=name if case == "blur" else "")
    figure.suptitle(f"{SPACE} features (no FID): {COUNT} real images of one half, altered, against the other half")
    write_atomically(path, lambda file: figure.savefig(file, format="png"))
