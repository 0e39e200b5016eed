"""`python -m neural_rdm.stats`: statistics of real samples under a feature network, to compare generated ones with.

python -m neural_rdm.stats data=imagenet data.root=DIR features=inception keep_features=10000
python -m neural_rdm.stats samples=FILE.npz features=efficientnet_lite0
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.config.compose import parse
from neural_rdm.config.grammar import folder_name, literal
from neural_rdm.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from neural_rdm.evaluation.real_samples import RealSamples
    from neural_rdm.evaluation.sample_files import SampleFiles
    from neural_rdm.metrics.networks import FeatureNetwork
    from neural_rdm.metrics.statistics import Summary

SHOWN = 32  # samples in the picture; of clips a quarter of it, each with its frames in a row


def complete(overrides: list[str], _: object = None) -> list[str]:
    """Name the output folder after what the statistics are of; refuse what is not there before torch is loaded.

    Raises:
        UserError: neither a data set nor samples, or no such folder.
    """
    given = {o.key_or_group: o for o in parse(overrides)}
    choice, path = (given[key].value() if key in given else None for key in ("data", "samples"))
    if choice is None and path is None:
        raise ConfigError("statistics of what? Pass data=NAME data.root=DIR, or samples=FILE.npz or a folder")
    if path is not None and not Path(str(path)).exists():
        raise DataError(f"samples={path}: no such file or folder ({Path(str(path)).resolve()})")
    name = Path(str(path)).resolve().stem if choice is None else choice
    return [f"dataset={literal(folder_name(str(name)))}", *overrides]


def stats(cfg: DictConfig, folder: Path) -> int:
    """Write the statistics, `statistics.json` and `samples.png` into `folder`; return the exit code 0.

    Processes that torchrun starts with one `hydra.run.dir` share the work. Their number and `batch_size` change nothing
    but float32's rounding inside the network.

    Raises:
        UserError: data or weights that cannot be read, or samples that do not fit the network.
    """
    from neural_rdm.core.files import write_text
    from neural_rdm.metrics.networks import feature_network
    from neural_rdm.metrics.reference import write_reference
    from neural_rdm.runs.load import device_of

    network = feature_network(cfg.features, cfg.features_path, cfg.features_sha256)
    network.to(device_of(cfg.accelerator))
    samples = _samples(cfg, folder)
    if network.takes_clips and samples.kind == "image":
        raise ConfigError(f"features={cfg.features} is a network of clips, and these samples are images")
    try:
        with processes() as (rank, world):
            summary, first, asked = measure(cfg, network, samples, rank, world)
    except ValueError as error:
        raise DataError(f"there are no statistics of these samples: {error}") from error
    if rank > 0:
        return 0
    facts = _facts(cfg, samples, summary, first)
    per_sample = first.shape[1] if first.ndim == 5 and not network.takes_clips else 1
    facts["left_out"] = asked - summary.samples // per_sample
    path = write_reference(folder / cfg.out, network, summary.moments, summary.samples, summary.features, facts)
    counts = facts.pop("label_counts", [])  # a thousand lines say less than their extremes
    facts |= {"network": network.name, "network_hash": network.weights_hash, "count": summary.samples}
    facts |= {"classes": len(counts), "samples_of_a_class": [min(counts), max(counts)]} if counts else {}
    write_text(path.with_suffix(".json"), json.dumps(facts, indent=2) + "\n")
    picture = _picture(first, folder / "samples.png")
    dim = network.outputs[network.main()]
    few = f", no more than its {dim} dimensions: distances will be biased upwards" if summary.samples <= dim else ""
    broken = f", {facts['left_out']} samples left out" if facts["left_out"] else ""
    print(f"{summary.samples} {_unit(network, samples)} under {network.name}{broken}{few}")
    print("wrote:")
    print_paths([path, path.with_suffix(".json"), picture])
    return 0


def measure(
    cfg: DictConfig, network: FeatureNetwork, samples: RealSamples | SampleFiles, rank: int, world: int
) -> tuple[Summary, Tensor, int]:
    """Statistics of the samples of all processes, this one's first samples (uint8), and how many were asked for.

    Raises:
        UserError: samples that cannot be read.
        ValueError: fewer than two samples, or clips too short for the network.
    """
    import torch

    from neural_rdm.core.progress import progress_bar
    from neural_rdm.evaluation.real_samples import chosen
    from neural_rdm.metrics.statistics import Statistics

    positions = chosen(len(samples), cfg.count, cfg.seed, getattr(samples, "again", False))
    kept = set(chosen(len(positions), min(cfg.keep_features or 0, len(positions)), cfg.seed))
    classes = 0 if samples.labels is None else int(samples.labels.max()) + 1
    statistics, first, shown = Statistics(network, classes), [], 0
    parts = {keep: [p for i, p in enumerate(positions) if (i in kept) == keep][rank::world] for keep in (True, False)}
    total = sum(map(len, parts.values()))
    with (
        progress_bar(f"{network.name} features", total, "samples")
        if rank == 0
        else nullcontext(lambda n: None) as advance
    ):
        for keep, part in parts.items():
            for x, labels in samples.batches(cfg.batch_size, part) if part else ():
                statistics.update(x, None if labels is None else torch.from_numpy(labels), keep)
                if shown < SHOWN:
                    first.append(x[: SHOWN - shown])
                    shown += len(first[-1])
                advance(len(x))
    return statistics.compute(), torch.cat(first) if first else torch.empty(0), len(positions)


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, world size) of the processes that torchrun has started, which can exchange tensors while it is open."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1:
        yield rank, world
        return
    import torch

    from neural_rdm.training.launching import watched

    with watched(rank, world, lambda: "Give the same command again."):
        torch.distributed.init_process_group("gloo")
        try:
            yield rank, world
        finally:
            torch.distributed.destroy_process_group()


def _samples(cfg: DictConfig, folder: Path) -> RealSamples | SampleFiles:
    """The samples that were asked for, opened."""
    from neural_rdm.evaluation.real_samples import RealSamples
    from neural_rdm.evaluation.sample_files import open_samples
    from neural_rdm.runs import build

    if cfg.samples is not None:
        return open_samples(cfg.samples, cfg.num_frames, cfg.frame_interval, cfg.frame_folders)
    build.quiet()
    for key, value in (("flip", False), ("image_frames", 0)):
        if key in cfg.data:
            cfg.data[key] = value
    data = build.build(cfg.data, "data")
    data.configure(cfg.seed)
    data.report_folder = folder
    data.setup()
    return RealSamples(data, cfg.split)


def _facts(cfg: DictConfig, samples: RealSamples | SampleFiles, summary: Summary, first: Tensor) -> dict[str, Any]:
    """What is worth knowing of the statistics years later."""
    from neural_rdm.evaluation.sample_files import SampleFiles

    *frames, _, height, width = first.shape[1:]
    facts: dict[str, Any] = {"data": cfg.dataset}
    if isinstance(samples, SampleFiles):
        facts |= {"source": str(cfg.samples), "sha256": samples.fingerprint, "crop": "none"}
        facts |= samples.container._asdict()
        interval = samples.frame_interval
    else:
        facts |= {"source": cfg.data.get("root"), "split": cfg.split, "crop": samples.crop}
        interval = cfg.data.get("frame_interval", 1)
    facts |= {"image_size": [height, width], "dtype": "uint8", "flip": False}
    if frames:
        facts |= {"num_frames": frames[0], "frame_interval": interval}
    facts |= {"chosen": cfg.count, "seed": cfg.seed, "features_kept": sum(map(len, summary.features.values()))}
    return facts | ({"label_counts": summary.label_counts} if summary.label_counts else {})


def _unit(network: FeatureNetwork, samples: RealSamples | SampleFiles) -> str:
    if samples.kind == "image":
        return "images"
    return "clips" if network.takes_clips else "frames"


def _picture(first: Tensor, path: Path) -> Path:
    """The first samples, byte for byte as the network got them."""
    from neural_rdm.reports.grids import save_grid

    x = (first.float() - 127.5) / 127.5  # the middle of each byte's interval: save_grid rounds it back to that byte
    return save_grid(x[: SHOWN // 4] if x.ndim == 5 else x, path, columns=8)


if __name__ == "__main__":
    main("stats", stats, complete)
