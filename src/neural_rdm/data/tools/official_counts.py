"""How many samples a whole data set has, and where its users get it. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Official:
    """A data set as its own site describes it.

    Attributes:
        name: what people call it.
        where: a page, and what has to be fetched there.
        train: samples of the training split; None where no source for the number is known.
        val: samples of what is used for validation; None likewise.
        classes: how many; None without labels.
        commands: what a user types to fetch and unpack it, `{root}` being the folder; empty where a form has to be
            filled in first.
    """

    name: str
    where: str
    train: int | None = None
    val: int | None = None
    classes: int | None = None
    commands: tuple[str, ...] = ()


def _coco(year: int, train: int, val: int) -> Official:
    site = "http://images.cocodataset.org"
    archives = (f"zips/train{year}.zip", f"zips/val{year}.zip", f"annotations/annotations_trainval{year}.zip")
    commands = tuple(f"curl -LO {site}/{a} && unzip -q {a.rpartition('/')[2]} -d {{root}}" for a in archives)
    return Official(f"COCO {year}", "https://cocodataset.org/#download", train, val, commands=commands)


def _ucf(split: int, train: int, val: int) -> Official:
    page = "https://www.crcv.ucf.edu/data/UCF101.php"
    where = f"{page} (UCF101.rar and UCF101TrainTestSplits-RecognitionTask.zip, both into the folder)"
    commands = ("unrar x UCF101.rar {root}/", "unzip -q UCF101TrainTestSplits-RecognitionTask.zip -d {root}")
    return Official(f"UCF-101, split {split}", where, train, val, 101, commands)


#: by the names that `official` gives
COUNTS: dict[str, Official] = {
    # as TensorFlow Models counts them (slim/datasets/imagenet.py)
    "imagenet": Official(
        "ImageNet-1k (ILSVRC 2012)",
        "https://image-net.org/download.php, after registration: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar; "
        "or https://www.kaggle.com/c/imagenet-object-localization-challenge",
        1_281_167,
        50_000,
        1000,
    ),
    # 500 training and 50 validation images of each of 200 classes (Le and Yang 2015)
    "tiny_imagenet": Official(
        "Tiny-ImageNet",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        100_000,
        10_000,
        200,
        ("curl -LO http://cs231n.stanford.edu/tiny-imagenet-200.zip && unzip -q tiny-imagenet-200.zip -d {root}",),
    ),
    # 2014 as TensorFlow Datasets' coco_captions counts them (82,783, and 5,000 + 5,000 + 30,504 of the validation set);
    # 2017 as the Hub's copy of the captions does (AKCIT/coco2017-captioning)
    "coco2014": _coco(2014, 82_783, 40_504),
    "coco2017": _coco(2017, 118_287, 5_000),
    # the lines of the official lists
    "ucf101_1": _ucf(1, 9_537, 3_783),
    "ucf101_2": _ucf(2, 9_586, 3_734),
    "ucf101_3": _ucf(3, 9_624, 3_696),
    # Xiong et al. 2018; no source found for how many clip folders the archive holds
    "sky": Official(
        "SkyTimelapse",
        "https://github.com/weixiong-ur/mdgan (its README links the archive); unpack sky_train and sky_test into the "
        "folder",
    ),
    # the rows of taichi-metadata.csv in the first-order-model repository, by its column `partition`; videos that have
    # left YouTube since then cannot be had any more
    "taichi": Official(
        "Taichi-HD",
        "https://github.com/AliaksandrSiarohin/first-order-model, folder data/taichi-loading: its load_videos.py "
        "fetches the videos of taichi-metadata.csv and cuts the clips; --out_folder is data.root",
        3_049,
        285,
    ),
    # labelled images, Table 1 of https://journeydb.github.io (its text says 235,156 of the validation set)
    "journeydb": Official(
        "JourneyDB",
        "https://huggingface.co/datasets/JourneyDB/JourneyDB, after agreeing to its terms: data/train and data/valid; "
        "unpack the archives where they lie",
        4_189_737,
        234_156,
    ),
}


def official(choice: str, kind: str = "", split: int | None = None, folders: frozenset[str] = frozenset(),
             classes: list[str] | None = None) -> Official | None:  # fmt: skip
    """The data set that a configuration speaks of, None for one of the user's own.

    Args:
        choice: of the group `data`, such as `imagenet`.
        kind: name of the data module's class.
        split: UCF-101's list.
        folders: names in `data.root`; tell COCO's years apart.
        classes: class names; 200 wnids in the place of ImageNet are Tiny-ImageNet.
    """
    if kind == "COCO":
        return COUNTS["coco2014" if "train2014" in folders and "train2017" not in folders else "coco2017"]
    if kind == "UCF101":
        return COUNTS[f"ucf101_{split or 1}"]
    if choice == "imagenet" and len(classes or ()) == 200:
        choice = "tiny_imagenet"
    return COUNTS.get(choice)
