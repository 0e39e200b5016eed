from __future__ import annotations

from itertools import islice
from pathlib import Path
from traceback import clear_frames
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from neural_rdm.core.errors import ConfigError, DataError
from neural_rdm.core.seeding import uniform
from neural_rdm.data.image_folder import ImageFolder, adm_crop, read_rgb
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
        data.trainer = SimpleNamespace(global_step=3, world_size=1, global_rank=0)
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
def test_a_truncated_image_is_named(tree, ending, workers):
    for file in (tree / "train").glob("*/*.png"):
        file.unlink()
    for label in ("a", "b"):
        good = tree / "train" / label / f"x.{ending}"
        Image.fromarray(picture(64, 64)).save(good)
    good.write_bytes(good.read_bytes()[:-400])
    with pytest.raises(DataError) as error:
        next(iter(ImageFolder(tree, 16, 2, num_workers=workers).train_dataloader()))
    clear_frames(error.tb)  # they hold the loader in a cycle, and collecting that makes its workers wait for 5 s
    assert str(error.value).startswith(f"cannot read the image {good}: ")
    assert str(error.value).endswith("Replace the file or delete it.")
    assert "Traceback" not in str(error.value)


def test_files_that_are_no_images_are_named(tmp_path):
    (tmp_path / "x.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(tmp_path / "f.tif")
    for name in ("x.jpg", "empty.png", "f.tif", "absent.png"):
        with pytest.raises(DataError, match=f"cannot read the image .*{name}"):
            read_rgb(tmp_path / name)


def test_the_pixel_limit_is_kept(tmp_path, monkeypatch):
    Image.fromarray(picture(30, 30)).save(tmp_path / "big.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"big\.png: Image size \(900 pixels\) exceeds limit.*MAX_IMAGE_PIXELS"):
        read_rgb(tmp_path / "big.png")


def test_folders_that_do_not_fit_are_refused(tree):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        ImageFolder(tree / "nowhere")
    with pytest.raises(DataError, match=r"2 class folders .*data\.num_classes=1000"):
        ImageFolder(tree, num_classes=1000)
    with pytest.raises(ConfigError, match=r"data\.image_size must be at least 1, not 0"):
        ImageFolder(tree, image_size=0)
    (tree / "train" / "c").mkdir()
    data = ImageFolder(tree)
    with pytest.raises(DataError, match=r"no images in the class folder .*c\. Fill it, or delete it"):
        data.setup()


def test_a_validation_split_may_lack_classes(tree):
    for file in (tree / "val/a").iterdir():
        file.unlink()
    (tree / "val/a").rmdir()
    data = ImageFolder(tree, 16, 4)
    data.setup()
    assert data.val_set.y.tolist() == [1, 1]
    assert Path(data.val_set.path(0)) == tree / "val/b/0.png"
