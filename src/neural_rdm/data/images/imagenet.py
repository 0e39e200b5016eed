"""ImageNet (ILSVRC 2012) and Tiny-ImageNet, as their own sites and Kaggle ship them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch

from neural_rdm.core.errors import BrokenSample, DataError
from neural_rdm.core.given import regular
from neural_rdm.data.images.image_folder import ImageFiles, ImageFolder
from neural_rdm.data.layouts import GROUND_TRUTH, check_imagenet, image_names
from neural_rdm.data.packed import PackedPaths


class ImageNet(ImageFolder):
    """ImageNet (ILSVRC 2012) as image-net.org ships it, unpacked:

    ROOT/train/<wnid>/*.JPEG                  the archive of archives, each unpacked into a folder of its name
    ROOT/val/<wnid>/*.JPEG                    sorted into class folders; or as the archive unpacks:
    ROOT/val/ILSVRC2012_val_*.JPEG            with ROOT/ILSVRC2012_devkit_t12/data/, the development kit, for the labels

    or as Kaggle's ImageNet Object Localization Challenge ships it:

    ROOT/ILSVRC/Data/CLS-LOC/{train/<wnid>,val}/*.JPEG     with ROOT/LOC_val_solution.csv for the labels

    or Tiny-ImageNet as cs231n.stanford.edu/tiny-imagenet-200.zip unpacks:

    ROOT/train/<wnid>/images/*.JPEG   ROOT/val/images/*.JPEG   ROOT/val/val_annotations.txt

    or ROOT/<wnid>/*.JPEG. `val` may be left out. Labels follow the sorted wnids, the standard 0 ... 999; the numbers of
    the development kit, which have another order, are translated. Arguments: see `ImageFolder`.
    """

    experiment = ""
    check = staticmethod(check_imagenet)
    official = {
        "versions": [
            # as TensorFlow Models counts them (slim/datasets/imagenet.py)
            {
                "name": "ImageNet-1k (ILSVRC 2012)",
                "where": "https://image-net.org/download.php, after registration: ILSVRC2012_img_train.tar and "
                "ILSVRC2012_img_val.tar; or https://www.kaggle.com/c/imagenet-object-localization-challenge",
                "train": 1_281_167,
                "val": 50_000,
                "classes": 1000,
                "when": {"num_classes": 1000},
            },
            # 500 training and 50 validation images of each of 200 classes (Le and Yang 2015)
            {
                "name": "Tiny-ImageNet",
                "where": "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                "train": 100_000,
                "val": 10_000,
                "classes": 200,
                "commands": [
                    "curl -LO http://cs231n.stanford.edu/tiny-imagenet-200.zip && "
                    "unzip -q tiny-imagenet-200.zip -d {root}"
                ],
                "when": {"num_classes": 200},
            },
        ]
    }

    def load_datasets(self) -> None:
        """List the files of both splits; images are decoded when they are drawn.

        Raises:
            DataError: more class folders are empty than may be, or a list of labels cannot be read.
        """
        super().load_datasets()
        assert self.tree is not None
        val, labels = self.tree.val, self.tree.labels
        if val is None or labels is None:
            return
        number = {wnid: label for label, wnid in enumerate(self.tree.classes)}
        wnids = read_labels(labels)
        names, y, left_out, foreign = [], [], [], 0
        for name in image_names(val):
            wnid = wnids.get(Path(name).stem)
            if wnid is None:
                left_out.append(BrokenSample(f"no class in {labels.name}", val / name))
            elif wnid not in number:
                foreign += 1  # where only some of the classes are trained
            else:
                names.append(name)
                y.append(number[wnid])
        if foreign:
            self.note(f"{foreign} validation images are of classes that {self.tree.train} lacks; left out")
        if not names:
            raise DataError(
                f"data.root: {labels} says no class for any image in {val}, such as {next(iter(wnids), '')}"
            )
        paths, size = PackedPaths([str(val)], names, [len(names)]), self.sample_shape[-1]
        self.val_set = ImageFiles(paths, size, torch.tensor(y), left_out=left_out, folders=[str(val)])


def read_labels(file: Path) -> dict[str, str]:
    """The wnid of each validation image, by the image's name without ending.

    Args:
        file: the devkit's ground truth (line i is the class number of image i; `meta.mat` beside it names the classes),
            Kaggle's LOC_val_solution.csv, or Tiny-ImageNet's val_annotations.txt.

    Raises:
        DataError: the list, or the devkit's meta.mat, is missing or not what it should be.
    """
    try:
        lines = Path(regular(file)).read_text(encoding="utf-8").splitlines()
        if file.name == GROUND_TRUTH:
            wnids = _devkit_wnids(file.with_name("meta.mat"))
            return {f"ILSVRC2012_val_{i:08d}": wnids[int(number)] for i, number in enumerate(lines, start=1)}
        if file.suffix == ".csv":
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(lines)}
        return {Path(name).stem: wnid for name, wnid, *_ in (line.split("\t") for line in lines if line)}
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(f"data.root: cannot read the labels in {file}: {error}") from error


def _devkit_wnids(meta: Path) -> dict[int, str]:
    """The devkit's class numbers (from 1, not in the order of wnids) -> wnids."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DataError(f"reading {meta} needs scipy: pip install scipy") from error
    try:
        synsets: Any = loadmat(str(regular(meta)), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # a damaged file raises what its bytes happen to mean
        raise DataError(f"data.root: cannot read {meta}: {error}. Unpack the development kit again.") from error
