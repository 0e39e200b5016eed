"""Images with captions: COCO and JourneyDB, as their own sites ship them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.layouts import check_folder
from neural_rdm.core.seeding import choice, keys, uniform
from neural_rdm.data.base import DataModule
from neural_rdm.data.image_folder import adm_crop, read_rgb

MAX_MISSING = 0.01  # share of a list's images that may be absent


class CaptionedImages:
    """Images of one split and what is said of each.

    Args:
        paths: image files.
        captions: for each image one or more captions.
        random: draw a caption (and mirror the image, with `flip`) by the sample's position; otherwise take the first.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        captions: Sequence[Sequence[str]],
        image_size: int,
        flip: bool,
        random: bool,
        seed: int,
    ) -> None:
        self.paths, self.captions = [os.fspath(p) for p in paths], [list(c) for c in captions]
        self.image_size, self.flip, self.random, self.seed = image_size, flip, random, seed

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Image `index` as x float32 [3, S, S] in [-1, 1], and one of its captions.

        Raises:
            BrokenSample: the file cannot be read; the message names it.
        """
        pixels, which = adm_crop(read_rgb(self.paths[index]), self.image_size), 0
        if self.random:
            which = choice(self.seed, "caption", key, len(self.captions[index]))
            if self.flip and uniform(self.seed, "flip", [key])[0] < 0.5:
                pixels = pixels[:, ::-1]
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
        return {"x": x.div_(127.5).sub_(1), "caption": self.captions[index][which]}


class Captioned(DataModule):
    """What both share: images [3, S, S] in [-1, 1] with a caption each.

    Args:
        root: the folder of the data set.
        image_size: S, height and width of the crop.
        flip: mirror training images half of the time; off, since captions speak of left and right.
        batch_size: samples per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank.
        limit: use only the first `limit` images of each split, None for all.

    Raises:
        DataError: the folder is missing or is not laid out so.
        ConfigError: a number out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: int = 256,
        flip: bool = False,
        batch_size: int = 256,
        num_workers: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        if image_size < 1:
            raise ConfigError(f"data.image_size must be at least 1, not {image_size}.")
        self.root = Path(os.path.expanduser(root or ""))  # looked at by `setup`: sampling needs no data
        self.image_size, self.flip = image_size, flip
        self.sample_shape = (3, image_size, image_size)

    def setup(self, stage: str | None = None) -> None:
        """Check the folder, then read its annotations unless they are read; may be called without a Trainer."""
        self.root = check_folder(self.root, type(self).__doc__ or "")
        super().setup(stage)

    def prompts(self, count: int) -> list[str] | None:
        """`count` captions of the validation images (of the training images without any), the same for every seed."""
        self.setup()
        source = self.val_set or self.train_set
        assert isinstance(source, CaptionedImages)
        order = np.argsort(keys(0, "prompts", range(len(source))), kind="stable")[:count]
        return [source.captions[i][0] for i in order.tolist()]

    def _images(self, folder: Path, captions: dict[str, list[str]], training: bool) -> CaptionedImages:
        """The images of an annotation file; absent ones are left out and counted.

        Raises:
            DataError: more than 1 % are absent.
        """
        there = [name for name in captions if (folder / name).is_file()]
        absent = len(captions) - len(there)
        if absent > MAX_MISSING * len(captions):
            example = next(name for name in captions if not (folder / name).is_file())
            raise DataError(
                f"data.root: {absent} of {len(captions)} annotated images are not in {folder}, such as {example}. "
                f"Unpack all of its archives.\n{type(self).__doc__}"
            )
        if absent:
            print(f"{absent} of {len(captions)} annotated images are not in {folder}; left out", flush=True)
        paths = [folder / name for name in there]
        return CaptionedImages(paths, [captions[n] for n in there], self.image_size, self.flip, training, self.seed)


class COCO(Captioned):
    """COCO 2014 or 2017, as its site ships it:

    ROOT/train2017/*.jpg   ROOT/val2017/*.jpg
    ROOT/annotations/captions_train2017.json   captions_val2017.json

    (or 2014 in all four names). One of an image's five captions is drawn each time. Arguments: see `Captioned`.
    """

    def load_datasets(self) -> None:
        """Read the annotations; images are decoded when they are drawn."""
        for year in ("2017", "2014"):
            if (self.root / f"train{year}").is_dir():
                self.train_set = self._split(f"train{year}", training=True)
                if (self.root / f"val{year}").is_dir():
                    self.val_set = self._split(f"val{year}", training=False)
                return
        raise DataError(f"data.root: neither train2017 nor train2014 in {self.root}.\n{type(self).__doc__}")

    def _split(self, name: str, training: bool) -> CaptionedImages:
        file = self.root / "annotations" / f"captions_{name}.json"
        content = _json(file)
        try:
            files = {image["id"]: image["file_name"] for image in content["images"]}
            captions: dict[str, list[str]] = {}
            for said in sorted(content["annotations"], key=lambda a: a["id"]):
                captions.setdefault(files[said["image_id"]], []).append(said["caption"].strip())
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} is not an annotation file of COCO captions: it lacks {error}") from error
        return self._images(self.root / name, captions, training)


class JourneyDB(Captioned):
    """JourneyDB (Sun et al. 2023), as its archives unpack:

    ROOT/train/train_anno.jsonl   ROOT/train/imgs/<NNN>/<id>.jpg
    ROOT/valid/valid_anno.jsonl   ROOT/valid/imgs/...          may be left out

    The last `*.jsonl` of a split is read, which is the one with the paths of the release. A line's `Task2.Caption` is
    the caption; where there is none, its `prompt` without the trailing flags (`--ar 16:9 --v 5`). Arguments: see
    `Captioned`.
    """

    def load_datasets(self) -> None:
        """Read the annotations; images are decoded when they are drawn."""
        for name, training in (("train", True), ("valid", False)):
            folder = self.root / name
            files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
            if not files and training:
                raise DataError(f"data.root: no *.jsonl in {folder}.\n{type(self).__doc__}")
            if not files:
                continue
            captions: dict[str, list[str]] = {}
            for number, line in enumerate(files[-1].read_text(encoding="utf-8").splitlines(), start=1):
                if not line.strip():
                    continue
                try:
                    entry = json.loads(line)
                    said = (entry.get("Task2") or {}).get("Caption") or without_flags(entry["prompt"])
                    captions[_inside(folder, entry["img_path"])] = [said.strip()]
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    raise DataError(f"{files[-1]}, line {number} is not an annotation of JourneyDB: {error}") from error
            split = self._images(folder, captions, training)
            if training:
                self.train_set = split
            else:
                self.val_set = split


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without its trailing parameters: everything from the first ` --name` on."""
    return re.split(r"(?:^|\s)(?:--|—)\w", prompt, maxsplit=1)[0].strip()


def _inside(folder: Path, path: str) -> str:
    """An annotation's path as it lies below `folder`: `./000/a.jpg`, there or in `imgs/`."""
    name = path.removeprefix("./")
    return name if name.startswith("imgs/") or not (folder / "imgs").is_dir() else f"imgs/{name}"


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"data.root: cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
