"""Looking at some of a data set's samples: which ones, what they are like, and what the whole set takes on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from neural_rdm.data.images.image_folder import ImageFolder
from neural_rdm.data.sampler import spread
from neural_rdm.data.source import Source
from neural_rdm.data.tools.inspection import disk_usage, look


@given(st.integers(0, 10**7), st.integers(0, 200), st.integers(0, 99))
def test_draws_are_spread_over_the_whole_set(size: int, count: int, seed: int) -> None:
    found = spread(size, count, seed)
    assert len(found) == min(size, count)
    assert found == sorted(set(found))
    assert found == spread(size, count, seed)
    for number, index in enumerate(found):
        assert number * size // len(found) <= index < (number + 1) * size // len(found)


def test_another_seed_looks_at_other_samples() -> None:
    assert spread(1000, 10, 0) != spread(1000, 10, 1)


def test_images_are_measured_and_broken_ones_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i in range(6):
        Image.new("RGB", (10 + i, 20)).save(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = ImageFolder(tmp_path, image_size=8, batch_size=1)
    data.setup()
    assert data.train_set is not None
    ticks: list[None] = []
    looked = look([data.train_set], 64, 0, lambda: ticks.append(None))
    assert (looked.decoded, looked.failed, len(ticks)) == (6, 1, 6)
    assert list(looked.broken) == [str(tmp_path / "a" / "2.png")]
    assert looked.sizes == [(10 + i, 20) for i in (0, 1, 3, 4, 5)]
    assert data.train_set.path(5) == str(tmp_path / "a" / "5.png")
    assert np.array_equal(data.train_set.labels(), np.zeros(6))  # type: ignore[arg-type]


def test_sets_without_files_or_labels() -> None:
    class Plain(Source):
        def __len__(self) -> int:
            return 3

        def load(self, index: int, key: int) -> dict[str, torch.Tensor]:
            return {"x": torch.zeros(1, 2, 2)}

    assert Plain().path(0) is None
    assert Plain().labels() is None
    assert look([Plain()], 2, 0).decoded == 2


def test_disk_usage_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "x").write_bytes(b"12345")
    (tmp_path / "elsewhere").write_bytes(b"123")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "dangling").symlink_to(tmp_path / "nowhere")
    assert disk_usage(tmp_path / "set") == (2, 8)
