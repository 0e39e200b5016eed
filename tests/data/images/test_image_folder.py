from __future__ import annotations

import csv
import io
import os
import tracemalloc
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.seeding import uniform
from neural_rdm.data.base import BrokenSample
from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.media.images import adm_crop, load_pixels, read_rgb
from tests.helpers import shared


def picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some noise, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x * a + y * b) for a, b in rng.uniform(0.02, 0.3, (3, 2))]
    return np.clip(np.stack(waves, -1) * 90 + 128 + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def plain_adm(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The published crop, restated."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


def to_bytes(x: torch.Tensor) -> NDArray[np.uint8]:
    return ((x.permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for label in ("b", "a"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(40, 32, seed=i + 10 * (label == "b"))).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    "size", [(64, 64), (301, 200), (131, 129), (40, 90), (128, 500), (33, 21), (67, 64), (65, 150)]
)
def test_the_crop_is_adms(size):
    image = Image.fromarray(picture(*size))
    for target in (32, 31):
        ours = adm_crop(image, target)
        assert ours.shape == (target, target, 3)
        assert np.array_equal(ours, plain_adm(image, target))


def test_the_crop_is_adms_on_real_images():
    files = sorted(shared("data/imagenet/sample1000_256").glob("n*/*.JPEG"))[::97]
    assert len(files) > 5
    for file in files:
        assert np.array_equal(adm_crop(read_rgb(file), 64), plain_adm(Image.open(file).convert("RGB"), 64))


def test_a_thousand_real_classes_get_their_standard_labels():
    data = ImageFolder(shared("data/imagenet/sample1000_256"), 64, batch_size=4, num_classes=1000)
    assert data.train_size == 1000
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (4, 3, 64, 64)
    assert data.class_names[207] == "n02099601"  # golden retriever
    assert "n02099601" in data.train_set.path(207)


def test_samples_labels_and_order(tree):
    data = ImageFolder(tree, image_size=16, batch_size=4)
    data.setup()
    assert (data.space, data.num_classes, data.class_names) == ("pixels", 2, ["a", "b"])
    assert data.sample_shape == (3, 16, 16)
    assert (len(data.train_set), len(data.val_set)) == (10, 4)
    paths = [Path(data.train_set.path(i)) for i in range(10)]
    assert paths == sorted((tree / "train").glob("*/*.png"))
    assert data.train_set.y.tolist() == [0] * 5 + [1] * 5
    sample = data.val_set.load(3, 0)
    assert sample["y"] == 1
    assert sample["x"].dtype == torch.float32
    pixels = plain_adm(Image.fromarray(picture(40, 32, seed=11)), 16)
    assert torch.equal(sample["x"], torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1)


def test_flips_are_keyed_by_seed_and_position(tree):
    straight = ImageFolder(tree, 16, 5, flip=False)
    straight.setup()
    batches = {}
    for workers in (0, 2):
        data = ImageFolder(tree, 16, 5, num_workers=workers)
        data.configure(seed=4)
        data.trainer = SimpleNamespace(global_step=3, world_size=1, global_rank=0, strategy=None, default_root_dir=tree)
        batches[workers] = list(islice(data.train_dataloader(), 6))
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(batches[0], batches[2], strict=True))
    flips = 0
    for position in range(200):
        flipped = bool(uniform(4, "flip", [position])[0] < 0.5)
        flips += flipped
        plain = straight.train_set.load(position % 10, position)["x"]
        assert torch.equal(data.train_set.load(position % 10, position)["x"], plain.flip(-1) if flipped else plain)
    assert 70 < flips < 130
    assert torch.equal(data.val_set.load(0, 1)["x"], data.val_set.load(0, 2)["x"])


def test_grey_and_palette_images_become_rgb(tmp_path):
    grey = Image.fromarray(picture(24, 20)).convert("L")
    grey.save(tmp_path / "l.png")
    pixels = np.asarray(read_rgb(tmp_path / "l.png"))
    assert np.array_equal(pixels, np.repeat(np.asarray(grey)[..., None], 3, -1))
    palette = Image.fromarray(picture(24, 20)).quantize(16)
    palette.save(tmp_path / "p.png")
    colours = np.asarray(palette.getpalette()).reshape(-1, 3)[np.asarray(palette)]
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "p.png")), colours)
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.asarray(read_rgb(tmp_path / "deep.png"))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_cmyk_images_become_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "c.jpg", quality=95)
    red, green, blue = np.asarray(read_rgb(tmp_path / "c.jpg")).reshape(-1, 3).mean(0)
    assert red < 8
    assert min(green, blue) > 247


def test_transparency_goes_over_black(tmp_path):
    rgba = np.full((4, 6, 4), 200, dtype=np.uint8)
    rgba[..., 3] = [0, 51, 102, 153, 204, 255]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba[..., 2:]).save(tmp_path / "la.png")  # mode LA
    for name in ("a.png", "la.png"):
        assert np.asarray(read_rgb(tmp_path / name))[0, :, 0].tolist() == [0, 40, 80, 120, 160, 200]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 70, 80, 90])
    palette.save(tmp_path / "p.png", transparency=1)
    assert np.asarray(read_rgb(tmp_path / "p.png")).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = picture(24, 16)
    stored = {  # how a camera stores an upright picture under each orientation
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "x.png")), upright)


@pytest.mark.filterwarnings("ignore")
def test_damaged_metadata_do_not_spoil_a_good_image(tmp_path):
    Image.fromarray(picture(16, 16)).save(tmp_path / "x.png", exif=b"Exif\0\0nonsense")
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "x.png")), picture(16, 16))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_replaced_and_listed(tree, ending, workers):
    for file in (tree / "train").glob("*/*.png"):
        file.unlink()
    for label in ("a", "b"):
        good = tree / "train" / label / f"x.{ending}"
        Image.fromarray(picture(64, 64)).save(good)
    good.write_bytes(good.read_bytes()[:-400])
    data = ImageFolder(tree, 16, 2, num_workers=workers)
    data.report_folder = tree
    assert next(iter(data.train_dataloader()))["y"].tolist() == [0, 0]
    rows = list(csv.DictReader((tree / "bad_samples.csv").open()))
    assert [(row["index"], row["path"], row["replacement"]) for row in rows] == [("1", str(good), "0")]
    assert len(rows[0]["reason"]) > 5


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    for name in ("x.jpg", "empty.png", "f.tif", "absent.png", "folder.png", "link.png"):
        with pytest.raises(BrokenSample, match=f"cannot read .*{name}: .") as error:
            read_rgb(tmp_path / name)
        assert error.value.path == str(tmp_path / name)
        assert str(tmp_path) not in error.value.reason
    with pytest.raises(BrokenSample, match=r"cannot read shard\.tar/key: "):
        load_pixels(io.BytesIO(b"no image"), 8, name="shard.tar/key")


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    Image.fromarray(picture(30, 30)).save(tmp_path / "big.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"big\.png: Image size \(900 pixels\) exceeds limit"):
        read_rgb(tmp_path / "big.png")


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (3, 2000)])
def test_an_elongated_image_takes_little_memory(tmp_path, size):
    tracemalloc.start()
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    pixels = adm_crop(image, 256)  # whole, the first one would be 12 GB
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()
    assert pixels.shape == (256, 256, 3)
    assert 100 < pixels.mean() < 155  # the middle of the gradient


def test_the_ending_of_a_name_and_animations_do_not_matter(tmp_path):
    pixels = picture(20, 16)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", format="PNG")
    frames = [Image.fromarray(picture(20, 16, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "b.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "c.webp", save_all=True, append_images=frames[1:], lossless=True)
    for name in ("a.jpg", "b.png", "c.webp"):
        assert np.array_equal(np.asarray(read_rgb(tmp_path / name)), pixels), name
    frames[0].save(tmp_path / "d.png", format="GIF", save_all=True, append_images=frames[1:])
    assert np.abs(np.asarray(read_rgb(tmp_path / "d.png")).astype(int) - pixels).mean() < 12


def test_deep_colours_become_eight_bits(tmp_path):
    header = b"P6 2 1 65535 "
    (tmp_path / "deep.ppm").write_bytes(header + bytes([0, 0, 128, 0, 255, 255, 0, 255, 64, 0, 1, 0]))
    assert np.abs(np.asarray(read_rgb(tmp_path / "deep.ppm")).astype(int) - [[[0, 128, 255], [1, 64, 1]]]).max() <= 1


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_not_utf8_are_read(tmp_path):
    folder = os.fsencode(tmp_path) + b"/set/\xe9t\xe9"
    os.makedirs(folder)
    for i in range(3):
        Image.fromarray(picture(20, 16, i)).save(os.fsdecode(folder + b"/caf\xe9%d.png" % i))
    (tmp_path / "set" / os.fsdecode(b"\xe9t\xe9") / os.fsdecode(b"x\xff.png")).touch()
    data = ImageFolder(tmp_path / "set", 16, 4, num_workers=1)
    data.report_folder = tmp_path
    assert data.class_names == ["\\xe9t\\xe9"]
    assert next(iter(data.train_dataloader()))["x"].shape == (4, 3, 16, 16)
    assert "/x\\xff.png,empty," in (tmp_path / "bad_samples.csv").read_text(encoding="utf-8")


def test_folders_that_do_not_fit_are_refused(tree):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        ImageFolder(tree / "nowhere")
    with pytest.raises(DataError, match=r"2 class folders .*data\.num_classes=1000"):
        ImageFolder(tree, num_classes=1000)
    with pytest.raises(ConfigError, match="image_size=0 must be above 0"):
        ImageFolder(tree, image_size=0)


def test_an_empty_class_folder_is_listed_and_keeps_its_label(tree):
    (tree / "train" / "aa").mkdir()
    data = ImageFolder(tree, 16, 4)
    data.report_folder = tree
    next(iter(data.train_dataloader()))
    assert data.num_classes == 3
    assert data.train_set.y.unique().tolist() == [0, 2]
    assert f"train,,{tree / 'train/aa'},a class folder without an image," in (tree / "bad_samples.csv").read_text()
    (tree / "train" / "c").mkdir()
    with pytest.raises(DataError, match=r"2 of 4 class folders hold no image, such as .*aa"):
        ImageFolder(tree).setup()
    ImageFolder(tree, max_bad_fraction=0.5).setup()


def test_a_validation_split_may_lack_classes(tree):
    for file in (tree / "val/a").iterdir():
        file.unlink()
    (tree / "val/a").rmdir()
    data = ImageFolder(tree, 16, 4)
    data.setup()
    assert data.val_set.y.tolist() == [1, 1]
    assert Path(data.val_set.path(0)) == tree / "val/b/0.png"


def test_postscript_is_never_handed_to_an_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(secret) run\n"
    (tmp_path / "picture.jpg").write_bytes(eps)
    with pytest.raises(BrokenSample, match="a PostScript file"):
        read_rgb(tmp_path / "picture.jpg")


def test_pictures_of_formats_that_are_not_read_are_counted(tree: Path) -> None:
    for name in ("x.jfif", "x.gif", "x.AVIF", "x.jp2", "x.heic"):
        (tree / "train" / "a" / name).write_bytes(b"picture")
    (tree / "train" / "a" / "notes.txt").touch()
    data = ImageFolder(tree, 16, 4, max_bad_fraction=0.5)
    data.setup()
    assert len(data.train_set.left_out) == 5
    assert {Path(error.path).suffix for error in data.train_set.left_out} == {".jfif", ".gif", ".AVIF", ".jp2", ".heic"}
    with pytest.raises(DataError, match=r"(?s)5 of 10 .*files are not read"):
        next(iter(ImageFolder(tree, 16, 4).train_dataloader()))


def test_label_order_is_said_where_class_names_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in (1, 2, 10):
        (tmp_path / "set" / str(label)).mkdir(parents=True)
        Image.fromarray(picture(16, 16)).save(tmp_path / "set" / str(label) / "a.png")
    data = ImageFolder(tmp_path / "set", 16, 1)
    data.setup()
    assert data.class_names == ["1", "10", "2"]
    assert "(1, 10, 2, ...): label 1 is class 10, not 2" in capsys.readouterr().out
    (tmp_path / "set" / "10").rename(tmp_path / "set" / "3")
    ImageFolder(tmp_path / "set", 16, 1).setup()
    assert capsys.readouterr().out == ""


def test_files_of_two_names_are_said(tree: Path) -> None:
    for name, target in (("a/again.png", "0.png"), ("b/other.png", "../a/1.png")):
        (tree / "train" / name).symlink_to(target)
    Image.fromarray(picture(40, 32, seed=3)).save(tree / "train" / "a" / "3.jpg")
    (tree / "train" / "c").symlink_to("a")
    data = ImageFolder(tree, 16, 1)
    data.setup()
    said = "\n".join(data.notes)
    assert data.train_size == 5 + 1 + 5 + 1 + 6  # a link to a class is a class; in a folder a file counts once
    assert "second names of images are left out, such as" in said
    assert "are one folder: its images have two labels" in said
    assert "1 images are files of two names" in said
    assert "another ending, such as" in said
