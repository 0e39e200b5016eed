"""Metrics over several ranks: simulated ones, and what each of two processes runs; only the standard library at the
top, since a spawned process imports this file before anything else.
"""

from __future__ import annotations

import os
from pathlib import Path


def merged(ranks):
    """The first of several ranks' metrics, synchronised with the others as torchmetrics does it."""
    import torch

    states = []  # per rank, in torchmetrics' order: a list becomes one tensor
    for metric in ranks:
        held = {}
        for name in metric._defaults:
            state = getattr(metric, name)
            if isinstance(state, list):
                state = torch.cat(state)
                setattr(metric, name, [state])
            held[name] = state
        states.append(held)

    def gather(state, group=None):
        """What all ranks hold of the same state, found by its identity."""
        (name,) = [name for name, own in states[0].items() if own is state]
        return [held[name] for held in states]

    ranks[0].sync(dist_sync_fn=gather, distributed_available=lambda: True)
    ranks[0]._to_sync = False  # `compute` would exchange once more
    return ranks[0]


def every_metric():
    """One of each kind, for the features that `feed` adds."""
    from neural_rdm import metrics

    return {
        "few": metrics.FrechetDistance("test", 40),  # fewer samples than dimensions: features are kept
        "many": metrics.FrechetDistance("test", 6),
        "score": metrics.InceptionScore("test", 5, splits=3),
        "neighbours": metrics.PrecisionRecall("test", 6),
        "kernel": metrics.KernelDistance("test", 6, subsets=4, subset_size=9),
        "clip": metrics.CLIPScore("test"),
    }


def data():
    """Features by metric: real [35, D] and generated [29, D]."""
    import torch

    generator = torch.Generator().manual_seed(0)
    wide, narrow = ([torch.randn(n, d, generator=generator) for n in (35, 29)] for d in (40, 6))
    probs = torch.randn(29, 5, generator=generator).softmax(1)
    texts = torch.randn(29, 6, generator=generator)
    return {"few": wide, "many": narrow, "score": probs, "neighbours": narrow, "kernel": narrow, "clip": texts}


def feed(metrics, real, generated):
    """Add the real samples numbered `real` and the generated ones numbered `generated` to every metric."""
    samples = data()
    for name, metric in metrics.items():
        if name == "score":
            metric.update(samples[name][generated])
        elif name == "clip":
            metric.update(samples["many"][1][generated], samples[name][generated])
        else:
            if len(real):
                metric.update(samples[name][0][real], real=True)
            if len(generated):
                metric.update(samples[name][1][generated], real=False)


def values(metrics):
    """Every number of every metric."""
    found = {}
    for kind, metric in metrics.items():
        value = metric.compute()
        found |= {name: float(v) for name, v in value.items()} if isinstance(value, dict) else {kind: float(value)}
    return found


def evaluation(**options):
    """All metrics of a network that takes no time, and no weights."""
    from neural_rdm.metrics.suite import Evaluation

    return Evaluation(tiny_network(), subsets=4, subset_size=9, splits=3, **options)


def tiny_network(clips=False):
    """Features that a closed form gives: means of 3 x 3 cells, of their squares, and of four of them."""
    import torch

    from neural_rdm.metrics.networks import FeatureNetwork
    from neural_rdm.metrics.networks.base import Weights

    class Tiny(FeatureNetwork):
        name = "tiny_video" if clips else "tiny"
        outputs = {"pool": 27, "spatial": 6, "logits": 4}
        weights = Weights("a test", "none", "a" * 64, 0)
        takes_clips, scores = clips, not clips

        def __init__(self):
            super().__init__()
            self.weights_hash = "a" * 64
            self.scale = torch.nn.Parameter(torch.ones(()), requires_grad=False)
            self.calls = 0

        def features(self, images):
            self.calls += 1
            x = images.double().flatten(0, -4).unflatten(0, (len(images), -1)).mean(1) / 255
            pool = torch.nn.functional.adaptive_avg_pool2d(x, 3).flatten(1)
            return {"pool": pool, "spatial": x.square().mean(3)[:, :, :2].flatten(1), "logits": 9 * pool[:, :4]}

    return Tiny()


def pictures():
    """Real [35, 3, 6, 6] and generated [29, 3, 6, 6], uint8."""
    import torch

    generator = torch.Generator().manual_seed(1)
    return [torch.randint(low, 256, (n, 3, 6, 6), generator=generator).byte() for n, low in ((35, 0), (29, 60))]


def two_ranks(rank: int, port: int, folder: Path) -> None:
    """Compute every metric with real samples on both ranks, generated ones on the second rank only."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    import neural_rdm  # noqa: F401, I001
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    metrics = every_metric()
    feed(metrics, range(rank, 35, 2), range(29) if rank else [])
    suite, (real, generated) = evaluation(), pictures()
    suite.update(real[rank::2], real=True)
    if rank:
        suite.update(generated)
    torch.save(values(metrics) | suite.compute(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
