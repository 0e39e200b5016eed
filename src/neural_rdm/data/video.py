"""The video data sets of the paper: SkyTimelapse, Taichi-HD and UCF-101, read as their own sites ship them."""

from __future__ import annotations

import os
from pathlib import Path

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.layouts import check_folder
from neural_rdm.data.base import DataModule
from neural_rdm.data.clips import ClipFiles, find_videos


class Clips(DataModule):
    """What all three share: clips [F, 3, S, S] in [-1, 1] from video files or folders of frames.

    Training clips begin anywhere and are mirrored half of the time, keyed by (seed, position); validation takes the
    middle of every video. A video too short for `frame_interval` is read at the largest interval that fits, and the
    last frame of one with fewer than `num_frames` is repeated.

    Args:
        root: the folder of the data set.
        image_size: S, height and width of the crop.
        num_frames: F; 1 gives images [3, S, S].
        frame_interval: frames of the video from one frame of a clip to the next; 3 in Latte.
        flip: mirror training clips.
        image_frames: single frames of other videos appended to each clip, for joint training on clips and images
            (Latte, Sec. 3.4); 0 for none.
        batch_size: clips per optimizer step over all ranks and micro-steps.
        num_workers: loader processes of each rank.
        limit: use only the first `limit` videos of each split, None for all.

    Raises:
        DataError: the folder is missing or holds no videos.
        ConfigError: a number out of range.
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
    ) -> None:
        super().__init__(batch_size, num_workers, limit)
        if min(image_size, num_frames, frame_interval) < 1 or image_frames < 0:
            raise ConfigError(
                "data.image_size, num_frames and frame_interval must be at least 1, image_frames 0 or more"
            )
        if num_frames == 1 and image_frames:
            raise ConfigError(f"data.image_frames={image_frames} with data.num_frames=1: images follow clips only")
        self.root = Path(os.path.expanduser(root or ""))  # looked at by `setup`: sampling needs no data
        self.image_size, self.num_frames, self.frame_interval = image_size, num_frames, frame_interval
        self.flip, self.image_frames = flip, image_frames
        frames, image = num_frames + image_frames, (3, image_size, image_size)
        self.sample_shape = image if frames == 1 else (frames, *image)

    def _clips(self, paths: list[Path], labels: list[int] | None, training: bool) -> ClipFiles:
        return ClipFiles(
            paths,
            labels,
            self.image_size,
            self.num_frames,
            self.frame_interval,
            self.image_frames if training else 0,
            random=training,
            flip=self.flip,
            seed=self.seed,
        )

    def _split(self, *names: str) -> Path | None:
        """The first of these folders that exists."""
        return next((self.root / name for name in names if (self.root / name).is_dir()), None)

    def setup(self, stage: str | None = None) -> None:
        """Check the folder, then list its videos unless they are listed; may be called without a Trainer."""
        self.root = check_folder(self.root, type(self).__doc__ or "")
        super().setup(stage)

    def load_datasets(self) -> None:
        """List the videos of both splits; frames are decoded when they are drawn."""
        train, val = self._split(*self.TRAIN) or self.root, self._split(*self.VAL)
        paths = find_videos(train)
        if not paths:
            raise DataError(f"data.root: no video file and no folder of frames below {train}.\n{type(self).__doc__}")
        self.train_set = self._clips(paths, None, training=True)
        if val is not None and (held_out := find_videos(val)):
            self.val_set = self._clips(held_out, None, training=False)

    TRAIN: tuple[str, ...] = ("train",)
    VAL: tuple[str, ...] = ("test", "val")


class SkyTimelapse(Clips):
    """SkyTimelapse (Xiong et al. 2018), unconditional, as its archive unpacks:

    ROOT/sky_train/<video>/<clip>/*.jpg     training: every folder that holds frames is one clip
    ROOT/sky_test/<video>/<clip>/*.jpg      validation; may be left out

    `train` and `test` are read as well, and ROOT itself where there is neither. Arguments: see `Clips`.
    """

    TRAIN = ("sky_train", "train")
    VAL = ("sky_test", "test", "val")


class TaichiHD(Clips):
    """Taichi-HD (Siarohin et al. 2019), unconditional, as its loading script writes it:

    ROOT/train/<id>#<start>#<end>.mp4       training: video files, or folders of frames of that name
    ROOT/test/<id>#<start>#<end>.mp4        validation; may be left out

    ROOT itself is read where there is no `train`. Arguments: see `Clips`.
    """


class UCF101(Clips):
    """UCF-101 (Soomro et al. 2012), 101 classes, as its site ships it:

    ROOT/**/<v_Class_gNN_cNN>.avi           the videos, in class folders or not (UCF-101/, videos/, ...)
    ROOT/**/ucfTrainTestlist/               classInd.txt, trainlist0{1,2,3}.txt, testlist0{1,2,3}.txt

    Labels are those of classInd.txt less one. Videos of the list that are not there are left out, with a line that says
    how many.

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
    ) -> None:
        super().__init__(
            root, image_size, num_frames, frame_interval, flip, image_frames, batch_size, num_workers, limit
        )
        if split not in (1, 2, 3):
            raise ConfigError(f"data.split={split} is not one of 1, 2, 3")
        self.split = split

    def load_datasets(self) -> None:
        """Read the official lists and find their videos."""
        lists = next((p.parent for p in sorted(self.root.rglob("classInd.txt"))), None)
        if lists is None:
            raise DataError(f"data.root: no classInd.txt below {self.root}.\n{type(self).__doc__}")
        names = [line.split()[1] for line in _lines(lists / "classInd.txt")]
        self.class_names = names
        number = {name: i for i, name in enumerate(names)}
        found = {path.name: path for path in find_videos(self.root) if path.suffix.lower() == ".avi"}
        sets = []
        for kind in ("train", "test"):
            listed = [Path(line.split()[0]) for line in _lines(lists / f"{kind}list0{self.split}.txt")]
            there = [p for p in listed if p.name in found]
            if len(there) < len(listed):
                print(f"UCF-101 {kind}list0{self.split}: {len(there)} of {len(listed)} videos are there", flush=True)
            labels = [number[p.parent.name] for p in there]
            sets.append(self._clips([found[p.name] for p in there], labels, training=kind == "train"))
        if not len(sets[0]):
            raise DataError(
                f"data.root: no video of trainlist0{self.split}.txt is below {self.root}.\n{type(self).__doc__}"
            )
        self.train_set, self.val_set = sets[0], sets[1] if len(sets[1]) else None


def _lines(path: Path) -> list[str]:
    """The lines of an official list, whatever ends them."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DataError(f"data.root: cannot read {path}: {error.strerror}") from error
