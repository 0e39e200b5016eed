"""Images with captions: COCO and JourneyDB, as their own sites ship them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from neural_rdm.core.arguments import Count, Fraction, Natural, checked
from neural_rdm.core.errors import BrokenSample, DataError
from neural_rdm.core.given import regular
from neural_rdm.core.listing import file_names
from neural_rdm.data.base import Listing
from neural_rdm.data.broken import bad_allowed
from neural_rdm.data.folder import FolderModule
from neural_rdm.data.images.image_folder import ImageFiles
from neural_rdm.data.images.midjourney import without_flags
from neural_rdm.data.layouts import TRAIN_NAMES, drawn, held_out, split_folder
from neural_rdm.data.packed import PackedLists, PackedStrings
from neural_rdm.data.prompts import blank
from neural_rdm.media.images import CROP


@checked()
class Captioned(FolderModule):
    """What both share: images [3, S, S] in [-1, 1] with a caption each.

    Args:
        image_size: S, height and width of the crop.
        flip: mirror training images half of the time; off, since captions speak of left and right.
        max_bad_fraction: share of the listed images that may be missing or unreadable.

    The other arguments: see `DataModule`.
    """

    crop = CROP

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: Count = 256,
        flip: bool = False,
        batch_size: Count = 256,
        num_workers: Natural = 0,
        limit: Count | None = None,
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(root, batch_size, num_workers, limit, max_bad_fraction)
        self.image_size, self.flip = image_size, flip
        self.sample_shape = (3, image_size, image_size)

    NEEDS: str = ""
    """What cannot be found, where there is no training split."""

    @staticmethod
    def splits(root: Path) -> dict[str, tuple[Path, Path]]:
        """{"train" or "val": (folder of its images, its annotation file)}, whether these are there or not."""
        raise NotImplementedError

    @staticmethod
    def read(folder: Path, file: Path) -> Annotated:
        """What an annotation file says; a DataError where it cannot be read at all."""
        raise NotImplementedError

    def load_datasets(self) -> None:
        """Read the annotations; images are decoded when they are drawn.

        Raises:
            DataError: an annotation file, too many of its annotations or too many of its images cannot be read.
        """
        splits = self.splits(self.root)
        if "train" not in splits or not splits["train"][0].is_dir():
            found = ", ".join(path.name for path in held_out(self.root))
            also = f"; what is held out there ({found}) is never trained on" if found else ""
            raise DataError(f"data.root: {self.NEEDS} in {self.root}{also}.\n{self.layout}")
        for split, (folder, file) in splits.items():
            if folder.is_dir():
                setattr(self, f"{split}_set", self._images(folder, file, training=split == "train"))

    def _images(self, folder: Path, file: Path, training: bool) -> ImageFiles:
        """The images of an annotation file; missing ones stay, so that the order of the others is the same without."""
        captions, left_out, count = self.read(folder, file)
        if len(left_out) > bad_allowed(self.max_bad_fraction, count):
            raise DataError(
                f"data.root: {len(left_out)} of {count} annotations cannot be read; the first: {left_out[0]}. "
                "Fetch the file again, or raise data.max_bad_fraction."
            )
        used = list(captions)[: self.limit]
        missing = absent(folder, used)
        if len(missing) > bad_allowed(self.max_bad_fraction, len(used)):
            raise DataError(
                f"data.root: {len(missing)} of {len(used)} annotated images are not in {folder}, such as {missing[0]}. "
                f"Unpack all of its archives, or raise data.max_bad_fraction.\n{self.layout}"
            )
        paths, said = PackedStrings(os.path.join(folder, name) for name in captions), PackedLists(captions.values())
        flip = self.flip and training
        return ImageFiles(paths, self.image_size, None, said, flip, training, self.seed, left_out)

    def listings(self) -> list[Listing]:
        """See `DataModule`."""
        found = []
        for split, (folder, file) in self.splits(self.root).items():
            if file.is_file():
                names = list(self.read(folder, file).captions)
                missing = [f"{folder.name}/{name}" for name in absent(folder, names)]
                found.append(Listing(file, split, len(names), missing, counts=True))
        return found

    def part_of_lists(self, kept: Collection[str]) -> Iterator[tuple[Path, str]]:
        """See `DataModule`."""
        for folder, file in self.splits(self.root).values():
            if file.is_file():
                top = f"{folder.name}/"
                yield file, self.part(folder, file, {p.removeprefix(top) for p in kept if p.startswith(top)})

    @staticmethod
    def part(folder: Path, file: Path, kept: Collection[str]) -> str:
        """An annotation file cut down to some images below its split's folder."""
        raise NotImplementedError


class Annotated(NamedTuple):
    """What an annotation file says.

    captions: path of an image below the split's folder -> what is said of it.
    left_out: annotations that cannot be read, or are of no image.
    annotations: how many there are, with those.
    """

    captions: dict[str, list[str]]
    left_out: list[BrokenSample]
    annotations: int


class COCO(Captioned):
    """COCO 2014 or 2017, as its site ships it:

    ROOT/train2017/*.jpg   ROOT/val2017/*.jpg
    ROOT/annotations/captions_train2017.json   captions_val2017.json

    (or 2014 in all four names). One of an image's five captions is drawn each time; an empty one is left out, and
    counted. Arguments: see `Captioned`.
    """

    NEEDS = "neither train2017 nor train2014"
    # 2014 as TensorFlow Datasets' coco_captions counts them (82,783, and 5,000 + 5,000 + 30,504 of the validation set);
    # 2017 as the Hub's copy of the captions does (AKCIT/coco2017-captioning)
    official = {
        "where": "https://cocodataset.org/#download",
        "versions": [
            {
                "name": "COCO 2017",
                "train": 118_287,
                "val": 5_000,
                "commands": [
                    "curl -LO http://images.cocodataset.org/zips/train2017.zip && unzip -q train2017.zip -d {root}",
                    "curl -LO http://images.cocodataset.org/zips/val2017.zip && unzip -q val2017.zip -d {root}",
                    "curl -LO http://images.cocodataset.org/annotations/annotations_trainval2017.zip && "
                    "unzip -q annotations_trainval2017.zip -d {root}",
                ],
                "when": {"folder": "train2017"},
            },
            {
                "name": "COCO 2014",
                "train": 82_783,
                "val": 40_504,
                "commands": [
                    "curl -LO http://images.cocodataset.org/zips/train2014.zip && unzip -q train2014.zip -d {root}",
                    "curl -LO http://images.cocodataset.org/zips/val2014.zip && unzip -q val2014.zip -d {root}",
                    "curl -LO http://images.cocodataset.org/annotations/annotations_trainval2014.zip && "
                    "unzip -q annotations_trainval2014.zip -d {root}",
                ],
                "when": {"folder": "train2014"},
            },
        ],
    }

    @staticmethod
    def splits(root: Path) -> dict[str, tuple[Path, Path]]:
        """Those of 2017, or of 2014 where only that is there."""
        year = "2014" if (root / "train2014").is_dir() and not (root / "train2017").is_dir() else "2017"
        names = {split: f"{split}{year}" for split in ("train", "val")}
        return {split: (root / n, root / "annotations" / f"captions_{n}.json") for split, n in names.items()}

    @staticmethod
    def read(folder: Path, file: Path) -> Annotated:
        """See `Captioned.read`."""
        captions: dict[str, list[str]] = {}
        left_out, found = [], []
        try:
            content = json.loads(Path(regular(file)).read_text("utf-8-sig"))
            files = {image["id"]: _inside(str(image["file_name"])) for image in content["images"]}
            annotations = list(content["annotations"])
        except OSError as error:
            raise DataError(f"data.root: cannot read {file}: {error.strerror}.\n{drawn(COCO.__doc__)}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} is not an annotation file of COCO captions: {_problem(error)}") from error
        for place, said in enumerate(annotations):
            try:
                number, image, caption = int(said["id"]), said["image_id"], _plain(said["caption"])
                if image not in files:
                    raise LookupError(f"caption {number} is of image {image}, which the file does not list")
                found.append((number, place, files[image], caption))
            except (LookupError, TypeError, ValueError, OverflowError) as error:
                left_out.append(BrokenSample(_problem(error), f"{file}:annotations[{place}]"))
        for _, _, name, caption in sorted(found):
            captions.setdefault(name, []).append(caption)
        return Annotated(captions, left_out, len(annotations))

    @staticmethod
    def part(folder: Path, file: Path, kept: Collection[str]) -> str:
        """Images and annotations as they are, with all that the file says of them."""
        content: dict[str, Any] = json.loads(Path(regular(file)).read_text("utf-8-sig"))
        content["images"] = [i for i in content["images"] if os.path.normpath(str(i["file_name"])) in kept]
        numbers = {str(image["id"]) for image in content["images"]}
        said = (entry for entry in content["annotations"] if isinstance(entry, dict))
        content["annotations"] = [entry for entry in said if str(entry.get("image_id")) in numbers]
        return json.dumps(content)


class JourneyDB(Captioned):
    """JourneyDB (Sun et al. 2023), as its archives unpack:

    ROOT/train/train_anno.jsonl   ROOT/train/imgs/<NNN>/<id>.jpg
    ROOT/valid/valid_anno.jsonl   ROOT/valid/imgs/...          may be left out

    The last `*.jsonl` of a split is read, which is the one with the paths of the release. A line's `Task2.Caption` is
    the caption; where there is none, its `prompt` without the trailing flags (`--ar 16:9 --v 5`). A line of which
    nothing is left then is left out, and counted. Arguments: see `Captioned`.
    """

    NEEDS = "no train/*.jsonl"
    experiment = "exp=dit_xl_gated_t2i data=journeydb"
    # labelled images, Table 1 of https://journeydb.github.io (its text says 235,156 of the validation set)
    official = {
        "name": "JourneyDB",
        "where": "https://huggingface.co/datasets/JourneyDB/JourneyDB, after agreeing to its terms: data/train and "
        "data/valid; unpack the archives where they lie",
        "train": 4_189_737,
        "val": 234_156,
    }

    @staticmethod
    def splits(root: Path) -> dict[str, tuple[Path, Path]]:
        """Those that have an annotation file; for validation the first folder of what is held out that has one."""
        found = {"train": _annotated(split_folder(root, TRAIN_NAMES))}
        there = map(_annotated, held_out(root))
        found["val"] = next((split for split in there if split and JourneyDB._is_read(*split)), None)
        return {name: split for name, split in found.items() if split is not None}

    @staticmethod
    def _is_read(folder: Path, file: Path) -> bool:
        """Whether it has captions: the questions of a test have none. The split `valid` is read whatever is in it."""
        return "val" in folder.name.casefold() or any(isinstance(f, tuple) for _, f in JourneyDB.lines(folder, file))

    @staticmethod
    def read(folder: Path, file: Path) -> Annotated:
        """See `Captioned.read`."""
        captions: dict[str, list[str]] = {}
        left_out, count = [], 0
        for _, found in JourneyDB.lines(folder, file):
            count += 1
            if isinstance(found, BrokenSample):
                left_out.append(found)
            else:
                captions[found[0]] = [found[1]]
        return Annotated(captions, left_out, count)

    @staticmethod
    def part(folder: Path, file: Path, kept: Collection[str]) -> str:
        """The lines of these images as they are."""
        found = JourneyDB.lines(folder, file)
        lines = (line for line, entry in found if isinstance(entry, tuple) and os.path.normpath(entry[0]) in kept)
        return "".join(f"{line.decode('utf-8-sig').strip()}\n" for line in lines)

    @staticmethod
    def lines(folder: Path, file: Path) -> Iterator[tuple[bytes, tuple[str, str] | BrokenSample]]:
        """Each line of an annotation file that is not blank, and its image (below the folder) and caption.

        Raises:
            DataError: the file cannot be read.
        """
        inner = "imgs" if (folder / "imgs").is_dir() else ""
        try:
            with open(regular(file), "rb") as lines:  # not read at once: the release has 4.2 million lines
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    try:
                        entry = json.loads(line.decode("utf-8-sig"))
                        said = (entry.get("Task2") or {}).get("Caption")
                        if not said or (isinstance(said, str) and blank(said)):
                            said = without_flags(entry["prompt"])
                        path = entry["img_path"].removeprefix("./")
                        name = path if path.startswith(f"{inner}/") or not inner else f"{inner}/{path}"
                        yield line, (_inside(name), _plain(said))
                    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
                        reason = f"not an annotation of JourneyDB ({_problem(error)})"
                        yield line, BrokenSample(reason, f"{file}:{number}")
        except OSError as error:
            raise DataError(f"data.root: cannot read {file}: {error.strerror}") from error


def _annotated(folder: Path | None) -> tuple[Path, Path] | None:
    """A split's folder and its last annotation file, where it has one."""
    files = [] if folder is None else file_names(folder, lambda name: name.endswith(".jsonl")).names
    return (folder, folder / files[-1]) if folder is not None and files else None


def absent(folder: Path, names: Sequence[str]) -> list[str]:
    """Those of some paths below a folder that are not there; each folder is listed once.

    Raises:
        DataError: a folder cannot be read.
    """
    there: dict[str, set[str]] = {}
    try:
        for inner in {os.path.dirname(name) for name in names}:
            there[inner] = set(os.listdir(folder / inner)) if (folder / inner).is_dir() else set()
    except OSError as error:
        raise DataError(f"cannot read the folder {error.filename}: {error.strerror}. Check its permissions.") from error
    return [name for name in names if os.path.basename(name) not in there[os.path.dirname(name)]]


def _inside(name: str) -> str:
    """The path as it is; a ValueError where it leads out of the split's folder, of which alone strangers may speak."""
    if os.path.isabs(name) or os.path.normpath(name).startswith(os.pardir):
        raise ValueError(f"its image {name[:100]!r} lies outside of the folder")
    return name


def _plain(said: object) -> str:
    """A caption without space around it, and without half characters, which tokenizers refuse.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, which is the null prompt and no caption.
    """
    if not isinstance(said, str):
        raise TypeError(f"its caption is {json.dumps(said)[:40]}, not a text")
    if blank(said):
        raise ValueError("its caption is empty")
    return said.strip().encode("utf-8", "replace").decode("utf-8")


def _problem(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)
