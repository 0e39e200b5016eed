"""Features a second on a CPU: our FID InceptionV3 against torch-fidelity's extractor, both on the same weights.

Both take uint8 images of 256 x 256 and give the 2048 pooled features and the logits of the Inception Score; ours gives
the spatial features of the sFID besides. Ours has its batch norms folded, its tensors channels last, and its average
pools behind the convolutions that follow them. The weights are random, which does not change the time. The offline
network (EfficientNet-Lite0) is timed for comparison. All run interleaved.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.residual import interleaved
from neural_rdm.core.errors import CheckpointError
from neural_rdm.core.files import sha256_of
from neural_rdm.metrics.networks import FeatureNetwork, feature_network
from neural_rdm.metrics.networks.inception import published
from neural_rdm.reports.tables import markdown_table

ROUNDS, BATCH, SIZE = 7, 8, 256
THEIRS, OURS = "torch-fidelity", "inception"


def run() -> dict[str, Any]:
    """All measurements as plain values; a table is printed on the way."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (BATCH, 3, SIZE, SIZE), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = random_weights(Path(folder) / "inception.pth")
        ours = feature_network(OURS, path, sha256_of(path))
        theirs = torch_fidelity(path)
    cases: dict[str, Callable[[], Any]] = {THEIRS: lambda: theirs(images), OURS: lambda: ours(images)}
    if (offline := offline_network()) is not None:
        cases[offline.name] = lambda: offline(images)
    error = float((ours(images)["pool"] - theirs(images)).norm() / theirs(images).norm())
    times = interleaved(cases, ROUNDS)
    rows = []
    for name, values in times.items():
        ratios = [base / value for base, value in zip(times[THEIRS], values, strict=True)]
        rows.append(
            {
                "network": name,
                "images_per_s": 1000 * BATCH / statistics.median(values),
                "speedup": statistics.median(ratios),
                "speedup_min": min(ratios),
                "speedup_max": max(ratios),
            }
        )
    print(f"features of {BATCH} images of {SIZE} x {SIZE}, float32:\n\n{markdown_table(rows)}")
    print(f"relative difference of the pooled features: {error:.1e}")
    return {
        "method": (
            "networks interleaved A B C C B A, a round's time is the mean of the two; images_per_s: median over "
            "rounds, per second of CPU time; speedup: over torch-fidelity, ratios paired within a round, their median "
            "and extremes"
        ),
        "batch": BATCH,
        "size": SIZE,
        "rounds": ROUNDS,
        "networks": rows,
        "relative_difference": error,
    }


def random_weights(path: Path) -> Path:
    """A file in the layout of the FID InceptionV3; He-initialised, so that no number on the way underflows."""
    with torch.device("meta"):
        layout = published().state_dict()
    state = {}
    for name, value in layout.items():
        if value.ndim > 1:
            state[name] = torch.randn(value.shape) * (2 / value[0].numel()) ** 0.5
        else:
            state[name] = torch.full(value.shape, float(name.endswith(("running_var", "bn.weight"))), dtype=value.dtype)
    torch.save(state, path)
    return path


def torch_fidelity(path: Path) -> Callable[[Tensor], Tensor]:
    """torch-fidelity's extractor with the weights in `path`, giving the pooled features."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
    )

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return network(images)[0]

    return features


def offline_network() -> FeatureNetwork | None:
    """EfficientNet-Lite0, where the package with its weights is installed."""
    try:
        return feature_network("efficientnet_lite0")
    except CheckpointError:
        return None
