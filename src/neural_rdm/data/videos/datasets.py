"""The video data sets of the paper: SkyTimelapse, Taichi-HD and UCF-101, read as their own sites ship them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from neural_rdm.core.arguments import Count, Fraction, Natural, between, checked
from neural_rdm.core.errors import DataError
from neural_rdm.core.ranks import is_first_rank
from neural_rdm.data import constraints
from neural_rdm.data.base import Listing
from neural_rdm.data.folder import FolderModule
from neural_rdm.data.layouts import TRAIN_NAMES, held_out, is_held_out, nothing_to_train_on, split_folder
from neural_rdm.data.videos.clips import ClipFiles
from neural_rdm.data.videos.files import by_name, clip_name, find_candidates, find_videos
from neural_rdm.data.videos.index import index_videos
from neural_rdm.data.videos.lists import class_numbers, clip_rows, clip_table, list_folder, list_lines
from neural_rdm.media.images import CROP

#: part of a list -> its split
_PARTS = {"train": "train", "test": "val"}


@checked(constraints.images_follow_clips)
class Clips(FolderModule):
    """What all three share: clips [F, 3, S, S] in [-1, 1] from video files or folders of frames.

    Training clips begin anywhere and are mirrored half of the time, keyed by (seed, position); validation takes the
    middle of every video. A video too short for `frame_interval` is read at the largest interval that fits, and the
    last frame of one with fewer than `num_frames` is repeated. How many frames each video has is found out once (see
    `video_index`); a video that cannot be read is a broken sample, whatever decodes it.

    Args:
        image_size: S, height and width of the crop.
        num_frames: F; 1 gives images [3, S, S].
        frame_interval: frames of the video from one frame of a clip to the next; 3 in Latte.
        flip: mirror training clips.
        image_frames: single frames of other videos appended to each clip, for joint training on clips and images
            (Latte, Sec. 3.4); 0 for none, 31 at most.
        decoder: "decord", "pyav" or "torchcodec", for video files.

    The other arguments: see `DataModule`. Setting it up raises a DataError where the folder holds no videos, and a
    ConfigError where the decoder is not installed.
    """

    reading = ("num_frames", "frame_interval", "image_frames")  # all frames are encoded; training draws clips of them
    crop = CROP

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        image_size: Count = 256,
        num_frames: Count = 16,
        frame_interval: Count = 3,
        flip: bool = True,
        image_frames: Annotated[int, between(0, 31)] = 0,
        batch_size: Count = 40,
        num_workers: Natural = 0,
        limit: Count | None = None,
        decoder: Literal["decord", "pyav", "torchcodec"] = "decord",
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(root, batch_size, num_workers, limit, max_bad_fraction)
        self.image_size, self.num_frames, self.frame_interval = image_size, num_frames, frame_interval
        self.flip, self.image_frames, self.decoder = flip, image_frames, decoder
        frames, image = num_frames + image_frames, (3, image_size, image_size)
        self.sample_shape = image if frames == 1 else (frames, *image)

    def _use(self, train: list[Path], val: list[Path], labels: Mapping[Path, int] | None = None) -> None:
        """Make the sets of these videos, of which `limit` are looked at."""
        if not train:
            problem = f"data.root: no training video (file or folder of frames) in {self.root}."
            if self._split() is None and held_out(self.root):
                problem = nothing_to_train_on(self.root, "videos")
            raise DataError(f"{problem}\n{self.layout}")
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

    def _split(self) -> Path | None:
        """The folder of the training split, where there is one."""
        return split_folder(self.root, (*self.TRAIN, *TRAIN_NAMES))

    def load_datasets(self) -> None:
        """List the videos of both splits; frames are decoded when they are drawn.

        Where there is no folder of the training split, ROOT stands in for it. What is held out by its name is left out
        of either.
        """
        train, others = self._split(), held_out(self.root)
        val = split_folder(self.root, self.VAL) or next(iter(others), None)
        if train is None and is_held_out(self.root.name):
            self.note(f"{self.root} is trained on, though it is called as what is held out is")
        trained = self._found(train or self.root, is_root=train is None, training=True)
        self._use(trained, [] if val is None else self._found(val))

    def _found(self, folder: Path, is_root: bool = False, training: bool = False) -> list[Path]:
        """The videos below a folder; what is left out is said."""
        videos, notes = find_videos(folder, is_root, training)
        self.note(*notes)
        return videos

    def _named(self, *lists: tuple[Path, Iterable[str]]) -> dict[str, Path]:
        """{name: its video} of those in some lists that are there; says how many are not."""
        found = find_candidates(self.root)
        videos, notes = by_name(found, [name for _, names in lists for name in names])
        for file, names in lists:
            there = [name in videos for name in names]
            if not all(there) and is_first_rank():
                print(f"{file.name}: {sum(there)} of {len(there)} videos are there", flush=True)
        self.note(*found.notes(), *notes)
        return videos

    def _listing(self, file: Path, part: str, names: Mapping[str, str]) -> Listing:
        """What a list says of a part: names of videos, and how it writes them."""
        found = find_candidates(self.root)
        there = _names([*found.files, *found.folders])
        missing = [text for name, text in names.items() if name.casefold() not in there]
        return Listing(file, _PARTS[part], len(names), missing)

    TRAIN: tuple[str, ...] = ()
    """Folders of the training split, in small letters, besides `train`."""
    VAL: tuple[str, ...] = ("test",)
    """Folders of the validation split that go before others that are held out."""


class SkyTimelapse(Clips):
    """SkyTimelapse (Xiong et al. 2018), unconditional, as its archive unpacks:

    ROOT/sky_train/<video>/<clip>/*.jpg     training: every folder that holds frames is one clip
    ROOT/sky_test/<video>/<clip>/*.jpg      validation; may be left out

    `train` and `test` (val, valid, ...) are read as well. Without a folder for training, all of ROOT is, but what is
    held out by its name. Users get the archive by the link in the README of https://github.com/weixiong-ur/mdgan.
    Arguments: see `Clips`.
    """

    TRAIN = ("sky_train",)
    VAL = ("sky_test",)
    # Xiong et al. 2018; no source found for how many clip folders the archive holds
    official = {
        "name": "SkyTimelapse",
        "where": "https://github.com/weixiong-ur/mdgan (its README links the archive); unpack sky_train and sky_test "
        "into the folder",
    }


class TaichiHD(Clips):
    """Taichi-HD (Siarohin et al. 2019), unconditional, as its loading script writes it:

    ROOT/train/<id>#<start>#<end>.mp4       training: video files, or folders of frames of the same name
    ROOT/test/<id>#<start>#<end>.mp4        validation; may be left out

    or the same clips anywhere below ROOT, with a ROOT/*.csv that has the columns video_id, start, end and partition
    (train or test), as taichi-metadata.csv has. Without either, all videos below ROOT are for training but those in
    folders that are held out by their names. Users make the clips with load_videos.py of
    https://github.com/AliaksandrSiarohin/first-order-model, data/taichi-loading; videos that have left YouTube since
    are left out. Arguments: see `Clips`.
    """

    experiment = "exp=latte_s_gated data=taichi"
    # the rows of taichi-metadata.csv in the first-order-model repository, by its column `partition`; videos that have
    # left YouTube since then cannot be had any more
    official = {
        "name": "Taichi-HD",
        "where": "https://github.com/AliaksandrSiarohin/first-order-model, folder data/taichi-loading: its "
        "load_videos.py fetches the videos of taichi-metadata.csv and cuts the clips; --out_folder is data.root",
        "train": 3_049,
        "val": 285,
    }

    def load_datasets(self) -> None:
        """List the videos by folder, or else by the table of clips."""
        file = clip_table(self.root)
        if self._split() is not None or file is None:
            super().load_datasets()
            return
        rows = clip_rows(file)
        splits = {split: [name for name, part, _ in rows if part == split] for split in ("train", "test")}
        videos = self._named(*((file, names) for names in splits.values()))
        if not videos:
            super().load_datasets()
            return
        train, test = ([videos[name] for name in splits[split] if name in videos] for split in ("train", "test"))
        self._use(train, test)

    def listings(self) -> list[Listing]:
        """See `DataModule`."""
        if (file := clip_table(self.root)) is None:
            return []
        rows = clip_rows(file)
        named = {part: {name: f"{part}/{name}" for name, of, _ in rows if of == part} for part in _PARTS}
        return [self._listing(file, part, names) for part, names in named.items()]

    def part_of_lists(self, kept: Collection[str]) -> Iterator[tuple[Path, str]]:
        """See `DataModule`."""
        if (file := clip_table(self.root)) is not None:
            rows, names, text = clip_rows(file), _names(map(Path, kept)), io.StringIO()
            table = csv.DictWriter(text, list(rows[0][2]) if rows else [], extrasaction="ignore", lineterminator="\n")
            table.writeheader()
            table.writerows(row for name, _, row in rows if name.casefold() in names)
            yield file, text.getvalue()


@checked()
class UCF101(Clips):
    """UCF-101 (Soomro et al. 2012), 101 classes, as its site ships it:

    ROOT/**/<v_Class_gNN_cNN>.avi           the videos, in class folders or not (UCF-101/, videos/, ...)
    ROOT/**/ucfTrainTestlist/               classInd.txt, trainlist0{1,2,3}.txt, testlist0{1,2,3}.txt

    Labels are those of classInd.txt, which begin at 1, less one. Videos of another format and folders of frames of the
    same names are read as well; a video file goes before frames, and optical flow is left out. Names are compared
    without case. Videos of the list that are not there are left out, with a line that says how many.
    Users get UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip at https://www.crcv.ucf.edu/data/UCF101.php.

    Args:
        split: which of the three official lists.

    The other arguments: see `Clips`.
    """

    num_classes = 101
    experiment = "exp=latte_s_gated data=ucf101 backbone.extras=class optimizer.clip_after=100000"
    official = {
        "where": "https://www.crcv.ucf.edu/data/UCF101.php (UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip, "
        "both into the folder)",
        "classes": 101,
        "commands": ["unrar x UCF101.rar {root}/", "unzip -q UCF101TrainTestSplits-RecognitionTask.zip -d {root}"],
        "versions": [  # the lines of the official lists
            {"name": "UCF-101, split 1", "train": 9_537, "val": 3_783, "when": {"split": 1}},
            {"name": "UCF-101, split 2", "train": 9_586, "val": 3_734, "when": {"split": 2}},
            {"name": "UCF-101, split 3", "train": 9_624, "val": 3_696, "when": {"split": 3}},
        ],
    }

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        split: Literal[1, 2, 3] = 1,
        image_size: Count = 256,
        num_frames: Count = 16,
        frame_interval: Count = 3,
        flip: bool = True,
        image_frames: Annotated[int, between(0, 31)] = 0,
        batch_size: Count = 40,
        num_workers: Natural = 0,
        limit: Count | None = None,
        decoder: Literal["decord", "pyav", "torchcodec"] = "decord",
        max_bad_fraction: Fraction = 0.01,
    ) -> None:
        super().__init__(
            root, image_size, num_frames, frame_interval, flip, image_frames, batch_size, num_workers, limit,
            decoder, max_bad_fraction,
        )  # fmt: skip
        self.split = split

    def load_datasets(self) -> None:
        """Read the official lists and find their videos."""
        lists = list_folder(self.root)
        if lists is None:
            raise DataError(f"data.root: no classInd.txt below {self.root}.\n{self.layout}")
        numbers = class_numbers(lists / "classInd.txt")
        self.class_names = sorted(numbers, key=lambda name: numbers[name])
        labels = {name.casefold(): number for name, number in numbers.items()}
        listed: dict[Path, dict[str, int]] = {}
        for kind in ("train", "test"):
            file = lists / f"{kind}list0{self.split}.txt"
            listed[file] = {}
            for line in list_lines(file):
                path = Path(line.split()[0])
                if (label := labels.get(path.parent.name.casefold())) is None:
                    raise DataError(f"data.root: {file} says {line!r}, but classInd.txt has no class {path.parent}")
                listed[file][path.stem] = label
        videos = self._named(*listed.items())
        train, test = ([videos[name] for name in names if name in videos] for names in listed.values())
        if not train:
            raise DataError(f"data.root: no video of trainlist0{self.split}.txt is below {self.root}.\n{self.layout}")
        of = {videos[name]: label for names in listed.values() for name, label in names.items() if name in videos}
        self._use(train, test, of)

    def listings(self) -> list[Listing]:
        """See `DataModule`."""
        found, lists = [], list_folder(self.root)
        if lists is None:
            return []
        for part in _PARTS:
            if (file := lists / f"{part}list0{self.split}.txt").is_file():
                lines = (line.split()[0] for line in list_lines(file))
                found.append(self._listing(file, part, {Path(name).stem: name for name in lines}))
        return found

    def part_of_lists(self, kept: Collection[str]) -> Iterator[tuple[Path, str]]:
        """See `DataModule`."""
        lists, names = list_folder(self.root), _names(map(Path, kept))
        if lists is not None:
            for file in [lists / "classInd.txt", *sorted(lists.glob("t*list0?.txt"))]:
                lines = list_lines(file)
                if file.name != "classInd.txt":
                    lines = [line for line in lines if Path(line.split()[0]).stem.casefold() in names]
                yield file, "".join(f"{line}\n" for line in lines)


def _names(paths: Iterable[Path]) -> set[str]:
    """The names by which lists call videos, in small letters."""
    return {clip_name(path).casefold() for path in paths}
