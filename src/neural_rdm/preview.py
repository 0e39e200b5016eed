"""`python -m neural_rdm.preview`: look at a data set as training sees it, cropped, mirrored, with its captions.

python -m neural_rdm.preview data=ucf101 data.root=DIR count=16
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from neural_rdm.cli.app import main, print_paths
from neural_rdm.core.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

    from neural_rdm.data.base import DataModule
    from neural_rdm.media.video import VideoInfo

CLIPS_PLAYED, CLIPS_IN_STRIPS = 16, 8  # a GIF or a picture of more clips is too large to look at
COLUMNS = 8
LABEL = 32  # letters of what is said of a row


def preview(cfg: DictConfig, folder: Path) -> int:
    """Write the pictures, `samples.csv` and `preview.json`; return the exit code 0.

    Raises:
        UserError: the data set cannot be read, or has no such split.
    """
    from neural_rdm.core.files import write_text
    from neural_rdm.runs import build

    data: DataModule = build.build(cfg.data, "data")
    data.configure(cfg.seed)
    data.setup()
    seen = gather(data, cfg.split, cfg.count)
    written = draw(seen, data, folder, cfg.fps)
    facts = {"data": cfg.dataset, "root": cfg.data.get("root"), "split": cfg.split, "seed": cfg.seed}
    write_text(folder / "preview.json", json.dumps(facts | describe(seen, data), indent=2) + "\n")
    print(summary(seen, data))
    print("wrote:")
    print_paths([*written, folder / "preview.json"])
    return 0


class Seen(NamedTuple):
    """Samples as training gets them.

    Attributes:
        x: [N, ...].
        labels: the class of each (of a clip with images behind it: of the clip); empty without labels.
        captions: a text each; empty without captions.
        seconds: what loading them took in one process.
    """

    x: Tensor
    labels: list[int]
    captions: list[str]
    seconds: float

    def words(self, names: list[str] | None) -> list[str]:
        """What is said of each sample: its caption or its class; empty where the data have neither."""
        return self.captions or [names[label] if names and label < len(names) else str(label) for label in self.labels]


def gather(data: DataModule, split: str, count: int) -> Seen:
    """At most `count` samples: the first of a training run with the module's seed, or spread over the validation set,
    without those of these that are broken.

    Raises:
        DataError: there is no validation set, or nothing of it can be read.
    """
    import torch

    from neural_rdm.core.errors import BrokenSample
    from neural_rdm.data.sampler import spread

    data.num_workers = 0  # the order is the same, and the speed that of one process
    data.micro_steps, data.batch_size = 1, min(count, 8)
    count = min(count, data.sizes.get(split, 0))
    if count == 0:
        raise DataError(f"split={split}: these data have no validation set; pass split=train")
    began = time.perf_counter()
    samples: list[dict[str, Any]] = []
    if split == "train":
        for batch in data.train_dataloader():
            samples += [{key: batch[key][i] for key in batch} for i in range(len(batch["x"]))]
            if len(samples) >= count:
                break
    else:
        assert data.val_set is not None
        for index in spread(data.val_size, count, data.seed):
            try:
                samples.append(data.val_set.load(index, index))
            except BrokenSample as error:
                print(f"bad val sample {error.path}: {error.reason}; left out", flush=True)
    if not samples:
        raise DataError(f"split={split}: none of {count} samples can be read")
    samples = samples[:count]
    seconds = time.perf_counter() - began
    return Seen(
        torch.stack([sample["x"] for sample in samples]),
        [int(torch.as_tensor(sample["y"]).flatten()[0]) for sample in samples if "y" in sample],
        [str(sample["caption"]) for sample in samples if "caption" in sample],
        seconds,
    )


def draw(seen: Seen, data: DataModule, folder: Path, fps: int = 8) -> list[Path]:
    """Write `grid.png` (clips: `grid.gif`, and `strips.png` with a clip's frames side by side) and `samples.csv`."""
    from neural_rdm.core.files import write_text
    from neural_rdm.data.prompts import shortened
    from neural_rdm.reports.captioned import with_words
    from neural_rdm.reports.grids import save_grid
    from neural_rdm.reports.tables import csv_text

    words, clips = seen.words(data.class_names), seen.x.ndim == 5
    shown = seen.x[:CLIPS_PLAYED] if clips else seen.x
    tiles = with_words(shown, words[: len(shown)]) if words and shown.shape[-3] in (1, 3) else shown
    columns = min(len(shown), 4 if clips else COLUMNS)
    written = [save_grid(tiles, folder / ("grid.gif" if clips else "grid.png"), columns=columns, fps=fps)]
    if clips:
        few = seen.x[:CLIPS_IN_STRIPS]
        labels = [shortened(text, LABEL) for text in words[: len(few)]] or None
        written.append(save_grid(few, folder / "strips.png", columns=1, row_labels=labels))
    if words:
        rows: list[dict[str, Any]] = [{"number": i} for i in range(len(words))]
        if seen.labels:
            rows = [r | {"class": c, "name": w} for r, c, w in zip(rows, seen.labels, words, strict=True)]
        if seen.captions:
            rows = [r | {"caption": c} for r, c in zip(rows, seen.captions, strict=True)]
        write_text(folder / "samples.csv", csv_text(rows))
        written.append(folder / "samples.csv")
    return written


def describe(seen: Seen, data: DataModule) -> dict[str, Any]:
    """What `preview.json` says of the samples and of the data set."""
    shape = list(seen.x.shape[1:])
    x = seen.x.double()
    video = _first_video(data) if len(shape) == 4 else None
    keys = ("frame_interval", "image_frames", "flip", "limit")
    return {
        "samples": len(seen.x),
        "shape": shape,
        "space": data.space,
        **({"frames": shape[0]} if len(shape) == 4 else {}),
        **({} if video is None else {"first_video": video._asdict()}),
        **{key: getattr(data, key) for key in keys if hasattr(data, key)},
        "train_samples": data.train_size,
        "val_samples": data.val_size,
        "classes": data.num_classes,
        "classes_shown": len(set(seen.labels)),
        "captions": bool(seen.captions),
        "minimum": x.min().item(),
        "maximum": x.max().item(),
        "mean": x.mean().item(),
        "standard_deviation": x.std().item(),
        "samples_per_second_of_one_process": round(len(seen.x) / seen.seconds, 2),
    }


def _first_video(data: DataModule) -> VideoInfo | None:
    """What the first training video that can be read is like; None where the clips are no video files."""
    from neural_rdm.core.errors import BrokenSample

    source = data.train_set
    assert source is not None
    for index in range(len(source)):
        if index not in source.broken:
            try:
                return source.info(index)
            except BrokenSample:  # since its index was made
                continue
    return None


def summary(seen: Seen, data: DataModule) -> str:
    """One line on what was seen."""
    kind = f"{data.num_classes} classes" if data.num_classes else "captions" if seen.captions else "no labels"
    size = " x ".join(map(str, seen.x.shape[1:]))
    return (
        f"{data.train_size} training and {data.val_size} validation samples, {kind}; {len(seen.x)} shown, {size} each, "
        f"values {seen.x.min():.3g} to {seen.x.max():.3g}, {len(seen.x) / seen.seconds:.3g} a second in one process"
    )


if __name__ == "__main__":
    main("preview", preview)
