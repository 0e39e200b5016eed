"""What stands in for a small file in a folder from a stranger is refused, and neither waited for nor read for ever."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from neural_rdm import DiT, load_gates
from neural_rdm.cli.jobs import finished
from neural_rdm.config.provenance import FILE, read_provenance
from neural_rdm.config.resume import find_run
from neural_rdm.core.errors import CheckpointError, DataError
from neural_rdm.core.files import load_tensors
from neural_rdm.core.given import blown_up, read_given, read_json, regular
from neural_rdm.core.locks import HOLDER, LEASED, LOCK, held, is_held
from neural_rdm.core.output import LOG, kept, last_error
from neural_rdm.core.records import StepRecords, read_rows, truncate
from neural_rdm.core.weights import read_weights
from neural_rdm.data.images.captions import COCO, JourneyDB
from neural_rdm.data.images.imagenet import read_labels
from neural_rdm.data.videos.lists import clip_rows, list_lines
from neural_rdm.latents.shards import Shard
from neural_rdm.reports.figures import titled
from neural_rdm.reports.pages.index import STORE, _stored
from neural_rdm.reports.pages.render import picture
from neural_rdm.reports.runs import progress, read_mapping
from neural_rdm.reports.tiles import read_tiles
from neural_rdm.runs.load import read_config


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
@pytest.mark.parametrize("read", [read_given, read_json, regular, read_rows])
def test_a_pipe_a_device_and_a_folder_are_no_files_to_read(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(OSError, match="no file"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_a_text_that_is_large_or_deep_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    monkeypatch.setattr("neural_rdm.core.given.MOST_TEXT", 7)
    with pytest.raises(ValueError, match="8 bytes, and at most 7"):
        read_json(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_run_folder_of_pipes_is_one_that_says_nothing(tmp_path: Path) -> None:
    for name in (FILE, "config.yaml", "finished.json", "metrics.csv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"damaged.*no file"):
        read_provenance(tmp_path)
    assert read_mapping(tmp_path / "config.yaml") == read_mapping(tmp_path / "finished.json") == {}
    progress(tmp_path)
    os.mkfifo(tmp_path / "samples.png")
    with pytest.raises(DataError):
        picture(tmp_path / "samples.png", "samples")
    with pytest.raises(DataError):
        read_tiles(tmp_path / "samples.png")


def test_a_configuration_that_grows_as_it_is_read_is_refused(tmp_path: Path) -> None:
    aliases = ", ".join(["*a"] * 3)
    (tmp_path / "config.yaml").write_text(f"optimizer: &a {{x: 1}}\ntrainer: [{aliases}]\n")
    for read in (read_config, lambda folder: find_run(str(folder))):
        with pytest.raises(CheckpointError, match=r"config\.yaml cannot be read: it refers to parts of itself \(\*a\)"):
            read(tmp_path)
    assert read_mapping(tmp_path / "config.yaml") == {}  # of a report, which would write all of it down
    (tmp_path / "config.yaml").write_text("name: '2 * 3 *a'\n")
    assert read_mapping(tmp_path / "config.yaml") == {"name": "2 * 3 *a"}


def test_a_configuration_that_is_nested_too_deeply_says_nothing(tmp_path: Path) -> None:
    for name in ("config.yaml", "finished.json"):
        (tmp_path / name).write_text("[" * 20_000 + "]" * 20_000)
        assert read_mapping(tmp_path / name) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
@pytest.mark.parametrize(
    ("name", "read", "said"),
    [
        (HOLDER, is_held, False),
        ("finished.json", finished, {}),
        (LOG, last_error, None),
        (STORE, _stored, {}),
        ("config.yaml", lambda folder: titled("a title", folder / "metrics.csv"), "a title"),
    ],
)
def test_what_a_folder_says_of_itself_is_no_pipe(
    tmp_path: Path, name: str, read: Callable[[Path], Any], said: Any
) -> None:
    os.mkfifo(tmp_path / name)
    assert read(tmp_path) == said


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_what_is_written_into_a_folder_is_no_pipe(tmp_path: Path) -> None:
    for name in (LOCK, LEASED, HOLDER, LOG, "metrics.csv"):
        os.mkfifo(tmp_path / name)
    truncate(tmp_path / "metrics.csv", 1)
    with held(tmp_path, "train"), kept(tmp_path):
        StepRecords(tmp_path / "metrics.csv").append([{"step": 1}])
    assert read_rows(tmp_path / "metrics.csv") == [{"step": "1"}]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_the_lists_of_a_data_set_are_no_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list")
    for read in (list_lines, read_labels, clip_rows, *(partial(kind.read, tmp_path) for kind in (COCO, JourneyDB))):
        with pytest.raises(DataError, match="no file"):
            read(tmp_path / "list")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.safetensors"])
def test_weights_are_no_pipe(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    net = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    for read in (load_tensors, read_weights, Shard, partial(load_gates, net)):
        with pytest.raises(CheckpointError, match="no file"):
            read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in folders")
def test_a_checkpoint_that_is_looked_through_is_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "step=000000004.ckpt")
    with pytest.raises(CheckpointError, match="no file"):
        load_tensors(tmp_path / "step=000000004.ckpt", verify=True)


@pytest.mark.parametrize("read", [load_tensors, read_weights])
def test_a_checkpoint_that_would_fill_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], Any]
) -> None:
    monkeypatch.setattr("neural_rdm.core.given.MOST_UNPACKED", 1 << 20)
    torch.save({"net.w": torch.zeros(1 << 19)}, tmp_path / "good.pt")
    (weight,) = read(tmp_path / "good.pt").values()
    assert weight.shape == (1 << 19,)  # large, and not packed
    bomb = zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED)
    with bomb, zipfile.ZipFile(tmp_path / "good.pt") as good:
        for name in good.namelist():
            bomb.writestr(name, good.read(name))
    with pytest.raises(CheckpointError, match="would unpack to"):
        read(tmp_path / "bomb.pt")


def test_many_small_members_that_would_fill_the_memory_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neural_rdm.core.given.MOST_UNPACKED", 1 << 20)
    with zipfile.ZipFile(tmp_path / "many.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(9):
            archive.writestr(f"data/{number}", bytes(1 << 17))
    assert blown_up(tmp_path / "many.pt") == "9 of its members would unpack to 0.0 GiB"
    assert blown_up(tmp_path / "many.pt", leave_out="data/0") is None  # exactly as much as there may be
