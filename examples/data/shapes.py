"""A data set of one's own: pictures in one folder, and a table that says what each shows and which split it is of."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import DataError
from neural_rdm.data.base import Listing
from neural_rdm.data.folder import FolderModule
from neural_rdm.data.source import Source
from neural_rdm.media.images import CROP, load_pixels


class Pictures(Source):
    """One split: what training asks (`__len__`, `load`), and the file that a sample is."""

    def __init__(self, paths: list[Path], classes: list[int], image_size: int, flip: bool, seed: int) -> None:
        self.paths, self.y, self.image_size = paths, torch.tensor(classes), image_size
        self.flip, self.seed = flip, seed  # for `mirrored`

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """x [3, S, S] in [-1, 1] and y; a picture that cannot be read is a BrokenSample, which `load_pixels` raises."""
        x = load_pixels(self.paths[index], self.image_size, mirror=self.mirrored(key))
        return {"x": x, "y": int(self.y[index])}

    def path(self, index: int) -> str:
        """Small parts, latents and the comparison of the splits need it."""
        return os.fspath(self.paths[index])


@checked()
class Shapes(FolderModule):
    """Drawn shapes, and one table of them:

    ROOT/pictures/*.png
    ROOT/shapes.csv     with the columns file (below pictures), shape, and split: train or val

    Args:
        image_size: S, height and width of the crop in pixels.
        flip: mirror training pictures half of the time.

    The other arguments: see `DataModule`.
    """

    crop = CROP
    experiment = (
        "exp=digits_gated ~metric data=shapes data.image_size=8 backbone.in_channels=3 backbone.num_classes={classes}"
    )
    official = {
        "name": "Shapes",
        "where": "https://example.org/shapes.zip",
        "train": 24,
        "val": 12,
        "classes": 3,
        "commands": ["unzip -q shapes.zip -d {root}"],
    }

    def __init__(
        self,
        root: str | None,
        image_size: Count = 32,
        flip: bool = True,
        batch_size: Count = 64,
        num_workers: Natural = 0,
        limit: Count | None = None,
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(root, batch_size, num_workers, limit, max_bad_fraction)
        self.image_size, self.flip, self.sample_shape = image_size, flip, (3, image_size, image_size)

    def load_datasets(self) -> None:
        """Read the table; pictures are decoded when they are drawn."""
        rows = self._rows()
        self.class_names = sorted({row["shape"] for row in rows})
        self.num_classes = len(self.class_names)
        for split in ("train", "val"):
            of_it = [row for row in rows if row["split"] == split]
            paths = [self.root / "pictures" / row["file"] for row in of_it]
            classes = [self.class_names.index(row["shape"]) for row in of_it]
            source = Pictures(paths, classes, self.image_size, self.flip and split == "train", self.seed)
            setattr(self, f"{split}_set", source if of_it else None)
        if self.train_set is None:
            raise DataError(f"data.root: {self.root / 'shapes.csv'} names no picture to train on.\n{self.layout}")

    def _rows(self) -> list[dict[str, str]]:
        try:
            text = (self.root / "shapes.csv").read_text(encoding="utf-8")
            return [{key: row[key] for key in ("file", "shape", "split")} for row in csv.DictReader(io.StringIO(text))]
        except (OSError, UnicodeError, KeyError) as error:
            raise DataError(f"data.root: cannot read the table: {error}.\n{self.layout}") from error

    # What follows is for `prepare` alone: what the table names and is not there, and a small part of it.

    def listings(self) -> list[Listing]:
        """See `DataModule`; missing pictures are counted when they are drawn."""
        found = []
        for split in ("train", "val"):
            names = [f"pictures/{row['file']}" for row in self._rows() if row["split"] == split]
            missing = [name for name in names if not (self.root / name).is_file()]
            found.append(Listing(self.root / "shapes.csv", split, len(names), missing, counts=True))
        return found

    def part_of_lists(self, kept: Collection[str]) -> Iterator[tuple[Path, str]]:
        """See `DataModule`."""
        text = io.StringIO()
        table = csv.DictWriter(text, ("file", "shape", "split"), lineterminator="\n")
        table.writeheader()
        table.writerows(row for row in self._rows() if f"pictures/{row['file']}" in kept)
        yield self.root / "shapes.csv", text.getvalue()
