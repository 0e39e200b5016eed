"""The video data sets of the paper: SkyTimelapse, Taichi-HD and UCF-101, read as their own sites ship them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.files import walk
from neural_rdm.core.layouts import VIDEO_SUFFIXES, check_folder, drawn
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.data.base import DataModule
from neural_rdm.data.clips import ClipFiles, find_videos
from neural_rdm.data.decoders import DECODERS
from neural_rdm.data.video_index import index_videos


class Clips(DataModule):
    """What all three share: clips [F, 3, S, S] in [-1, 1] from video files or folders of frames.

    Training clips begin anywhere and are mirrored half of the time, keyed by (seed, position); validation takes the
    middle of every video. A video too short for `frame_interval` is read at the largest interval that fits, and the
    last frame of one with fewer than `num_frames` is repeated. How many frames each video has is found out once (see
    `video_index`); a video that cannot be read is a broken sample, whatever decodes it.

    Args:
        root: the folder of the data set.
        image_size: S, height and width of the crop.
        num_frames: F; 1 gives images [3, S, S].
        frame_interval: frames of the video from one frame of a clip to the next; 3 in Latte.
        flip: mirror training clips.
        image_frames: single frames of other videos appended to each clip, for joint training on clips and images
            (Latte, Sec. 3.4); 0 for none, 31 at most.
        batch_size: clips per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank.
        limit: use only the first `limit` videos of each split, None for all.
        decoder: "decord", "pyav" or "torchcodec", for video files.
        max_bad_fraction: see `DataModule`.

    Raises:
        DataError: the folder is missing or holds no videos.
        ConfigError: a number out of range, or a decoder that is not installed.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: int = 256,
        num_frames: int = 16,
        frame_interval: int = 3,
        flip: bool = True,
        image_frames: int = 0,
        batch_size: int = 40,
        num_workers: int = 0,
        limit: int | None = None,
        decoder: str = "decord",
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(batch_size, num_workers, limit, max_bad_fraction=max_bad_fraction)
        if min(image_size, num_frames, frame_interval) < 1 or not 0 <= image_frames <= 31:
            raise ConfigError(
                "data.image_size, num_frames and frame_interval must be at least 1, image_frames between 0 and 31"
            )
        if num_frames == 1 and image_frames:
            raise ConfigError(f"data.image_frames={image_frames} with data.num_frames=1: images follow clips only")
        if decoder not in DECODERS:
            raise ConfigError(f"data.decoder={decoder} is not one of {', '.join(DECODERS)}")
        self.root = Path(os.path.expanduser(root or ""))  # looked at by `setup`: sampling needs no data
        self.image_size, self.num_frames, self.frame_interval = image_size, num_frames, frame_interval
        self.flip, self.image_frames, self.decoder = flip, image_frames, decoder
        frames, image = num_frames + image_frames, (3, image_size, image_size)
        self.sample_shape = image if frames == 1 else (frames, *image)

    def _use(self, train: list[Path], val: list[Path], labels: Mapping[Path, int] | None = None) -> None:
        """Make the sets of these videos, of which `limit` are looked at."""
        if not train:
            raise DataError(
                f"data.root: no training video (file or folder of frames) in {self.root}.\n{drawn(type(self).__doc__)}"
            )
        train, val = train[: self.limit], val[: self.limit]
        paths = list(map(os.fspath, [*train, *val]))
        frames, broken = index_videos(self.root, paths, self.decoder, self.num_workers)
        for name, used, first in (("train", train, 0), ("val", val, len(train))):
            source = ClipFiles(
                paths[first : first + len(used)],
                frames[first : first + len(used)],
                {index - first: reason for index, reason in broken.items() if 0 <= index - first < len(used)},
                self.decoder,
                None if labels is None else [labels[path] for path in used],
                self.image_size,
                self.num_frames,
                self.frame_interval,
                self.image_frames if name == "train" else 0,
                random=name == "train",
                flip=self.flip,
                seed=self.seed,
            )
            setattr(self, f"{name}_set", source if used else None)

    def _split(self, *names: str) -> Path | None:
        """The first of these folders that exists."""
        return next((self.root / name for name in names if (self.root / name).is_dir()), None)

    def setup(self, stage: str | None = None) -> None:
        """Check the folder, then list its videos unless they are listed; may be called without a Trainer."""
        self.root = check_folder(self.root, drawn(type(self).__doc__))
        super().setup(stage)

    def load_datasets(self) -> None:
        """List the videos of both splits; frames are decoded when they are drawn."""
        val = self._split(*self.VAL)
        self._use(find_videos(self._split(*self.TRAIN) or self.root), [] if val is None else find_videos(val))

    def _named(self, file: Path, names: list[str], videos: Mapping[str, Path]) -> list[str]:
        """Those of the names in a list whose videos are there; says how many are not."""
        there = [name for name in names if name in videos]
        if len(there) < len(names) and is_first_rank():
            print(f"{file.name}: {len(there)} of {len(names)} videos are there", flush=True)
        return there

    TRAIN: tuple[str, ...] = ("train",)
    VAL: tuple[str, ...] = ("test", "val")


class SkyTimelapse(Clips):
    """SkyTimelapse (Xiong et al. 2018), unconditional, as its archive unpacks:

    ROOT/sky_train/<video>/<clip>/*.jpg     training: every folder that holds frames is one clip
    ROOT/sky_test/<video>/<clip>/*.jpg      validation; may be left out

    `train` and `test` are read as well, and ROOT itself where there is neither. Users get the archive by the link in
    the README of https://github.com/weixiong-ur/mdgan. Arguments: see `Clips`.
    """

    TRAIN = ("sky_train", "train")
    VAL = ("sky_test", "test", "val")


class TaichiHD(Clips):
    """Taichi-HD (Siarohin et al. 2019), unconditional, as its loading script writes it:

    ROOT/train/<id>#<start>#<end>.mp4       training: video files, or folders of frames of the same name
    ROOT/test/<id>#<start>#<end>.mp4        validation; may be left out

    or the same clips anywhere below ROOT, with a ROOT/*.csv that has the columns video_id, start, end and partition
    (train or test), as taichi-metadata.csv has. Without either, all videos below ROOT are for training. Users make the
    clips with load_videos.py of https://github.com/AliaksandrSiarohin/first-order-model, data/taichi-loading; videos
    that have left YouTube since are left out. Arguments: see `Clips`.
    """

    def load_datasets(self) -> None:
        """List the videos by folder, or else by the table of clips."""
        file = clip_table(self.root)
        if self._split(*self.TRAIN) is not None or file is None:
            super().load_datasets()
            return
        rows, videos = clip_rows(file), by_name(find_videos(self.root))
        splits = {split: [name for name, part, _ in rows if part == split] for split in ("train", "test")}
        named = {split: self._named(file, names, videos) for split, names in splits.items()}
        if not any(named.values()):
            super().load_datasets()
            return
        self._use([videos[name] for name in named["train"]], [videos[name] for name in named["test"]])


class UCF101(Clips):
    """UCF-101 (Soomro et al. 2012), 101 classes, as its site ships it:

    ROOT/**/<v_Class_gNN_cNN>.avi           the videos, in class folders or not (UCF-101/, videos/, ...)
    ROOT/**/ucfTrainTestlist/               classInd.txt, trainlist0{1,2,3}.txt, testlist0{1,2,3}.txt

    Labels are those of classInd.txt, which begin at 1, less one. Videos of another format and folders of frames of the
    same names are read as well. Videos of the list that are not there are left out, with a line that says how many.
    Users get UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip at https://www.crcv.ucf.edu/data/UCF101.php.

    Args:
        split: which of the three official lists.

    The other arguments: see `Clips`.
    """

    num_classes = 101

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: int = 1,
        image_size: int = 256,
        num_frames: int = 16,
        frame_interval: int = 3,
        flip: bool = True,
        image_frames: int = 0,
        batch_size: int = 40,
        num_workers: int = 0,
        limit: int | None = None,
        decoder: str = "decord",
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(
            root, image_size, num_frames, frame_interval, flip, image_frames, batch_size, num_workers, limit,
            decoder, max_bad_fraction,
        )  # fmt: skip
        if split not in (1, 2, 3):
            raise ConfigError(f"data.split={split} is not one of 1, 2, 3")
        self.split = split

    def load_datasets(self) -> None:
        """Read the official lists and find their videos."""
        lists = list_folder(self.root)
        if lists is None:
            raise DataError(f"data.root: no classInd.txt below {self.root}.\n{drawn(type(self).__doc__)}")
        numbers = _classes(lists / "classInd.txt")
        self.class_names = sorted(numbers, key=lambda name: numbers[name])
        videos = by_name(find_videos(self.root))
        found: dict[str, list[Path]] = {}
        labels: dict[Path, int] = {}
        for kind in ("train", "test"):
            file = lists / f"{kind}list0{self.split}.txt"
            listed = {}
            for line in list_lines(file):
                path = Path(line.split()[0])
                if path.parent.name not in numbers:
                    raise DataError(f"data.root: {file} says {line!r}, but classInd.txt has no class {path.parent}")
                listed[path.stem] = numbers[path.parent.name]
            there = self._named(file, list(listed), videos)
            found[kind] = [videos[name] for name in there]
            labels |= {videos[name]: listed[name] for name in there}
        if not found["train"]:
            raise DataError(
                f"data.root: no video of trainlist0{self.split}.txt is below {self.root}.\n{drawn(type(self).__doc__)}"
            )
        self._use(found["train"], found["test"], labels)


def clip_table(root: Path) -> Path | None:
    """Taichi-HD's table of clips: the first csv file in the folder that has a column `partition`."""
    tables = sorted(root.glob("*.csv"))
    return next((file for file in tables if "partition" in next(iter(list_lines(file)), "").split(",")), None)


def clip_rows(file: Path) -> list[tuple[str, str, dict[str, str]]]:
    """(name of the clip as load_videos.py of first-order-model gives it, train or test, row) of a table of clips.

    Raises:
        DataError: it is no such table.
    """
    try:
        rows = list(csv.DictReader(list_lines(file)))
        found = [(f"{r['video_id']}#{int(r['start']):06d}#{int(r['end']):06d}", r["partition"], r) for r in rows]
        if strange := {part for _, part, _ in found} - {"train", "test"}:
            raise ValueError(f"partition {min(map(str, strange))}")
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise DataError(
            f"data.root: {file} is not a table of clips (video_id, start, end, partition train or test): {error}"
        ) from error
    return found


def list_folder(root: Path) -> Path | None:
    """The folder of UCF-101's official lists."""
    return next((Path(folder) for folder, _, files in walk(root) if "classInd.txt" in files), None)


def by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Videos by their names without the ending; a folder of frames may have that of a file."""
    return {path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name: path for path in paths}


def _classes(file: Path) -> dict[str, int]:
    """{name: label from 0 on} of a list that counts from 1."""
    try:
        found = {name: int(number) - 1 for number, name in (line.split() for line in list_lines(file))}
    except ValueError as error:
        raise DataError(f"data.root: a line of {file} is not a number and a name: {error}") from error
    if sorted(found.values()) != list(range(len(found))):
        raise DataError(f"data.root: {file} does not number its classes from 1 on")
    return found


def list_lines(path: Path) -> list[str]:
    """The lines of an official list that are not blank, whatever ends them."""
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.root: cannot read {path}: {getattr(error, 'strerror', error)}") from error
