"""What a perfect sampler scores in the pixel distance of the digits, by the number of samples it is allowed.

The Frechet distance of n samples to the true moments is above 0 for any n. So a distance of 359 held-out digits and one
of 500 drawn ones are not to be compared as they stand; this says by how much.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from neural_rdm.core.seeding import generator
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.metrics.digits import DigitsEvaluation
from neural_rdm.metrics.frechet import frechet_distance, moments
from neural_rdm.reports.tables import markdown_table

DRAWN, REPEATS = 500, 100


def run() -> dict[str, Any]:
    """The distances as plain values; a table is printed."""
    import torch

    data = Digits()
    data.setup()
    evaluation = DigitsEvaluation(data.train_set.x, data.train_set.y, data.val_set.x, data.val_set.y)
    train = data.train_set.x.flatten(1).double()
    mean, covariance = moments(len(train), train.sum(0), train.T @ train)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()
    held_out = len(data.val_set)
    rows = []
    for count in (held_out, DRAWN):
        distances = []
        for repeat in range(REPEATS):
            normal = torch.randn(count, len(mean), generator=generator(repeat, "equal count"), dtype=torch.float64)
            x = mean + normal @ root.T
            distances.append(float(frechet_distance(*moments(count, x.sum(0), x.T @ x), mean, covariance)))
        rows.append({"samples": count, "gaussian": float(np.mean(distances)), "std": float(np.std(distances, ddof=1))})
    known = evaluation.reference()
    print(markdown_table(rows))
    return {
        "method": (
            f"normal samples with the mean and covariance of the {len(train)} training digits, {REPEATS} draws each: "
            "mean and standard deviation of frechet_pixels; held_out: the real digits that are not trained on"
        ),
        "rows": rows,
        "held_out": {"samples": held_out, **{key: float(known[key]) for key in ("frechet_pixels", "accuracy")}},
    }
