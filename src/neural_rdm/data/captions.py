"""Images with captions: COCO and JourneyDB, as their own sites ship them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.layouts import check_folder
from neural_rdm.core.seeding import choice, keys, uniform
from neural_rdm.data.base import BrokenSample, DataModule
from neural_rdm.data.broken import bad_allowed
from neural_rdm.data.image_folder import load_pixels
from neural_rdm.data.packed import PackedLists, PackedStrings


class CaptionedImages:
    """Images of one split and what is said of each.

    Args:
        paths: image files.
        captions: for each image one or more captions.
        random: draw a caption (and mirror the image, with `flip`) by the sample's position; otherwise take the first.
        left_out: what the listing has passed over.
    """

    def __init__(
        self,
        paths: Iterable[str],
        captions: Iterable[Sequence[str]],
        image_size: int,
        flip: bool,
        random: bool,
        seed: int,
        left_out: Sequence[BrokenSample] = (),
    ) -> None:
        self.paths, self.captions = PackedStrings(paths), PackedLists(captions)
        self.image_size, self.flip, self.random, self.seed = image_size, flip, random, seed
        self.left_out = list(left_out)

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int, key: int) -> dict[str, Any]:
        """Image `index` as x float32 [3, S, S] in [-1, 1], and one of its captions.

        Raises:
            BrokenSample: the file cannot be read; the message names it.
        """
        said, which, mirror = self.captions[index], 0, False
        if self.random:
            which = choice(self.seed, "caption", key, len(said))
            mirror = self.flip and uniform(self.seed, "flip", [key])[0] < 0.5
        return {"x": load_pixels(self.paths[index], self.image_size, mirror), "caption": said[which]}


class Captioned(DataModule):
    """What both share: images [3, S, S] in [-1, 1] with a caption each.

    Args:
        root: the folder of the data set.
        image_size: S, height and width of the crop.
        flip: mirror training images half of the time; off, since captions speak of left and right.
        batch_size: samples per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank.
        limit: use only the first `limit` images of each split, None for all.
        max_bad_fraction: share of the listed images that may be missing or unreadable.

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
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(batch_size, num_workers, limit, max_bad_fraction)
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

    def _images(
        self, folder: Path, captions: dict[str, list[str]], training: bool, left_out: Sequence[BrokenSample]
    ) -> CaptionedImages:
        """The images of an annotation file. Missing ones stay in the list, so that the order of the others does not
        depend on them; they are broken samples.

        Raises:
            DataError: more of them are missing than may be.
        """
        names = list(captions)
        there: dict[str, set[str]] = {}
        used = names[: self.limit]
        for inner in {os.path.dirname(name) for name in used}:
            there[inner] = set(os.listdir(folder / inner)) if (folder / inner).is_dir() else set()
        missing = [name for name in used if os.path.basename(name) not in there[os.path.dirname(name)]]
        if len(missing) > bad_allowed(self.max_bad_fraction, len(used)):
            raise DataError(
                f"data.root: {len(missing)} of {len(used)} annotated images are not in {folder}, such as {missing[0]}. "
                f"Unpack all of its archives, or raise data.max_bad_fraction.\n{type(self).__doc__}"
            )
        paths = (os.path.join(folder, name) for name in names)
        said = (captions[name] for name in names)
        return CaptionedImages(paths, said, self.image_size, self.flip, training, self.seed, left_out)


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
        captions: dict[str, list[str]] = {}
        left_out = []
        try:
            content = json.loads(_text(file.read_bytes()))
            files = {image["id"]: image["file_name"] for image in content["images"]}
            for said in sorted(content["annotations"], key=lambda a: a["id"]):
                if said["image_id"] in files:
                    captions.setdefault(files[said["image_id"]], []).append(_plain(said["caption"]))
                else:
                    reason = f"caption {said['id']} is of image {said['image_id']}, which the file does not list"
                    left_out.append(BrokenSample(reason, f"{file}:{said['id']}"))
        except OSError as error:
            raise DataError(f"data.root: cannot read {file}: {error.strerror}.\n{type(self).__doc__}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{file} is not an annotation file of COCO captions: {problem}") from error
        return self._images(self.root / name, captions, training, left_out)


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
            split = self._split(folder, files[-1], training)
            if training:
                self.train_set = split
            else:
                self.val_set = split

    def _split(self, folder: Path, file: Path, training: bool) -> CaptionedImages:
        captions: dict[str, list[str]] = {}
        left_out, count = [], 0
        inner = "imgs" if (folder / "imgs").is_dir() else ""
        try:
            with file.open("rb") as lines:  # not read at once: the release has 4.2 million lines
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    count += 1
                    try:
                        entry = json.loads(_text(line))
                        said = (entry.get("Task2") or {}).get("Caption") or without_flags(entry["prompt"])
                        path = entry["img_path"].removeprefix("./")
                        name = path if path.startswith(f"{inner}/") or not inner else f"{inner}/{path}"
                        captions[name] = [_plain(said)]
                    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                        reason = f"not an annotation of JourneyDB ({type(error).__name__}: {error})"
                        left_out.append(BrokenSample(reason, f"{file}:{number}"))
        except OSError as error:
            raise DataError(f"data.root: cannot read {file}: {error.strerror}") from error
        if len(left_out) > bad_allowed(self.max_bad_fraction, count):
            raise DataError(f"data.root: {len(left_out)} of {count} lines cannot be read; the first: {left_out[0]}")
        return self._images(folder, captions, training, left_out)


def without_flags(prompt: str) -> str:
    """A Midjourney prompt without its trailing parameters: everything from the first ` --name` on."""
    return re.split(r"(?:^|\s)(?:--|—)\w", prompt, maxsplit=1)[0].strip()


def _text(line: bytes) -> str:
    return line.decode("utf-8-sig")


def _plain(said: str) -> str:
    """A caption without space around it, and without half characters, which tokenizers refuse."""
    return said.strip().encode("utf-8", "replace").decode("utf-8")
