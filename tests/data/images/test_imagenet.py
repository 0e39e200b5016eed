"""ImageNet in each layout that its users have: class folders, flat with the devkit, Kaggle's, Tiny-ImageNet's."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neural_rdm.core.errors import DataError
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.images.imagenet import ImageNet, read_labels
from neural_rdm.data.layouts import check_imagenet
from tests.helpers import shared

WNIDS = ["n01440764", "n01751748", "n02119789"]
#: their numbers in the real development kit, which are not in the order of wnids
NUMBERS = {"n02119789": 1, "n01440764": 449, "n01751748": 490}
VAL = ["n01751748", "n02119789", "n01440764", "n02119789", "n01751748"]  # class of validation image 1, 2, ...


def image(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (value, 0, 0)).save(path)


def train(folder: Path, inner: str = "", wnids: list[str] = WNIDS) -> None:
    for i, wnid in enumerate(wnids):
        for number in range(2):
            image(folder / wnid / inner / f"{wnid}_{number}.JPEG", 10 * i)


def flat(folder: Path) -> None:
    for i, wnid in enumerate(VAL, start=1):
        image(folder / f"ILSVRC2012_val_{i:08d}.JPEG", 10 * WNIDS.index(wnid))


def devkit(folder: Path) -> Path:
    """As the real one: leaves first, in an order of its own, then the inner nodes of the tree."""
    savemat = pytest.importorskip("scipy.io").savemat
    folder.mkdir(parents=True)
    order = ["n02119789", "n02100735", "n01440764", "n01751748", "n00001740"]
    numbers = {**NUMBERS, "n02100735": 2, "n00001740": 1001}
    synsets = np.empty((len(order), 1), dtype=[(n, object) for n in ("ILSVRC2012_ID", "WNID", "words", "num_children")])
    for i, wnid in enumerate(order):
        synsets[i, 0] = (float(numbers[wnid]), wnid, f"name of {wnid}", 0.0 if numbers[wnid] <= 1000 else 4.0)
    savemat(folder / "meta.mat", {"synsets": synsets})
    labels = folder / "ILSVRC2012_validation_ground_truth.txt"
    labels.write_text("".join(f"{NUMBERS[wnid]}\n" for wnid in VAL))
    return labels


def assert_reads(root: Path, **settings: object) -> ImageNet:
    """All images come with the label of their sorted wnid, which their colour says too."""
    data = ImageNet(root, image_size=8, batch_size=3, flip=False, **settings)
    assert (data.train_size, data.val_size, data.num_classes, data.class_names) == (6, 5, 3, WNIDS)
    for source in (data.train_set, data.val_set):
        for i in range(len(source)):
            sample = source.load(i, i)
            assert round(float((sample["x"][0, 4, 4] + 1) * 127.5) / 10) == sample["y"]
    return data


def test_class_folders(tmp_path):
    train(tmp_path / "train")
    for i, wnid in enumerate(VAL):
        image(tmp_path / "val" / wnid / f"{i}.JPEG", 10 * WNIDS.index(wnid))
    assert_reads(tmp_path, num_classes=3)
    shutil.rmtree(tmp_path / "val")
    for root in (tmp_path, tmp_path / "train"):
        data = ImageNet(root, 8, 3)
        assert (data.train_size, data.val_size, data.class_names) == (6, 0, WNIDS)


def test_a_flat_validation_split_with_the_development_kit(tmp_path):
    train(tmp_path / "train")
    flat(tmp_path / "val")
    with pytest.raises(DataError, match=r"no list of its labels: unpack ILSVRC2012_devkit_t12\.tar\.gz in "):
        ImageNet(tmp_path)
    labels = devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    data = assert_reads(tmp_path)
    assert data.val_set.y.tolist() == [1, 2, 0, 2, 1]
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()  # a part of it will do: labels go by name
    data = ImageNet(tmp_path, 8, 3)
    data.setup()
    assert data.val_set.y.tolist() == [1, 0, 2, 1]
    (labels.parent / "meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(range(256)))
    with pytest.raises(DataError, match=r"cannot read .*meta\.mat: .*Unpack the development kit again"):
        ImageNet(tmp_path, 8, 3).setup()


def test_labels_are_the_standard_ones():
    """Known from outside: validation image 1 is number 490 in the devkit and label 65 (sea snake) for Caffe."""
    classes = check_imagenet(shared("data/imagenet/sample1000_256"), 1000).classes
    assert [entry["wnid"] for entry in json.loads(shared("data/imagenet/wnid_to_name.json").read_text())] == classes
    assert classes.index(next(wnid for wnid, number in NUMBERS.items() if number == 490)) == 65


def test_kaggles_layout(tmp_path):
    images = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    train(images / "train")
    flat(images / "val")
    image(images / "test" / "ILSVRC2012_test_00000001.JPEG")
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\n")
    with pytest.raises(DataError, match="no list of its labels"):
        ImageNet(tmp_path)
    rows = [f"ILSVRC2012_val_{i:08d},{wnid} 85 1 499 272 {wnid} 3 4 5 6 \n" for i, wnid in enumerate(VAL, start=1)]
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(reversed(rows)))
    assert_reads(tmp_path)


def tiny(root: Path) -> None:
    train(root / "train", "images")
    for wnid in WNIDS:
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    for i, wnid in enumerate(VAL):
        image(root / "val" / "images" / f"val_{i}.JPEG", 10 * WNIDS.index(wnid))
    lines = [f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62\n" for i, wnid in enumerate(VAL)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    image(root / "test" / "images" / "test_0.JPEG")
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)))


def test_tiny_imagenets_own_layout(tmp_path):
    tiny(tmp_path)
    assert_reads(tmp_path)
    with pytest.raises(DataError, match="no image directly in any of the 3 folders"):
        ImageFolder(tmp_path)


def test_images_without_a_label_are_listed_and_foreign_classes_left_out(tmp_path, capsys):
    tiny(tmp_path)
    image(tmp_path / "val" / "images" / "val_9.JPEG")
    shutil.rmtree(tmp_path / "train" / WNIDS[2])
    data = ImageNet(tmp_path, 8, 3)
    assert (data.num_classes, data.val_size) == (2, 3)
    assert "2 validation images are of classes that" in capsys.readouterr().out
    data.report_folder = tmp_path
    list(data.val_dataloader())
    path = tmp_path / "val" / "images" / "val_9.JPEG"
    assert f"val,,{path},no class in" in (tmp_path / "bad_samples.csv").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [("LOC_val_solution.csv", "ImageId,PredictionString\na,\n"), ("LOC_val_solution.csv", "a,b\n1,2\n"),
     ("val_annotations.txt", "val_0.JPEG\n"), ("val_annotations.txt", None),
     ("ILSVRC2012_validation_ground_truth.txt", "1\n")],
)  # fmt: skip
def test_lists_that_are_not_what_they_should_be_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=r"data\.root: cannot read "):
        read_labels(tmp_path / name)


def test_roots_that_do_not_fit_show_the_layouts(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(DataError, match=r"(?s)ILSVRC2012_val_\*\.JPEG.*LOC_val_solution\.csv.*val_annotations"):
            ImageNet(root)
    train(tmp_path / "train")
    with pytest.raises(DataError, match=r"3 class folders .*data\.num_classes=1000"):
        ImageNet(tmp_path, num_classes=1000)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=rf"or train without it: data\.root={tmp_path / 'train'}"):
        ImageNet(tmp_path)


def test_real_tiny_imagenet(tmp_path):
    archive = shared("data/tiny_imagenet/tiny_imagenet_10class.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path, [n for n in file.namelist() if "/val/" in n or n.endswith(("_0.JPEG", "_1.JPEG"))])
    root = tmp_path / "tiny_imagenet_10"
    data = ImageNet(root, 64, 20, num_classes=10)
    assert (data.train_size, data.val_size) == (20, 500)
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (20, 3, 64, 64)
    assert batch["x"].std() > 0.3
    assert sorted(batch["y"].tolist()) == [i for i in range(10) for _ in range(2)]
    assert not (root / "bad_samples.csv").exists()
