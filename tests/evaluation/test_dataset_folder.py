"""Samples as a folder for the library `datasets`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from neural_rdm.core.errors import ConfigError
from neural_rdm.evaluation.dataset_folder import write_dataset
from neural_rdm.evaluation.sample_files import open_samples
from neural_rdm.evaluation.sample_parts import Parts, files_of, is_written

FACTS = {"seed": 7, "sampler": {"name": "dpm++", "steps": 20}, "run": "a | b"}


def parts_of(folder: Path, samples: np.ndarray) -> Parts:
    parts = Parts(folder, len(samples), 2)
    for number in parts.numbers:
        parts.save(number, samples[parts.positions(number).start : parts.positions(number).stop])
    return parts


@pytest.fixture
def written(tmp_path: Path) -> Path:
    pixels = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    folder = files_of(tmp_path, "datasets")
    assert not is_written(tmp_path, "datasets", 5)
    write_dataset(folder, parts_of(tmp_path, pixels), [0, 2, 0, 2, 0], ["cat", "dog"], FACTS, 8)
    assert is_written(tmp_path, "datasets", 5)
    return folder


def test_every_sample_has_its_line_and_the_card_says_how_they_were_drawn(written: Path) -> None:
    lines = [json.loads(line) for line in (written / "metadata.jsonl").read_text().splitlines()]
    assert lines[1] == {"file_name": "0000001.png", "position": 1, "seed": 7, "label": 2, "class": "2"}
    assert [line["class"] for line in lines] == ["cat", "2", "cat", "2", "cat"]
    assert {line["file_name"] for line in lines} == {path.name for path in written.glob("*.png")}
    _, head, text = (written / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["configs"][0]["data_files"][0]["path"] == ["*.png", "metadata.jsonl"]
    assert '"steps": 20' in text
    assert "a \\| b" in text
    assert len(open_samples(written)) == 5  # evaluate and stats take it too


def test_prompts_stand_with_their_samples_and_latents_are_refused(tmp_path: Path) -> None:
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    folder = files_of(tmp_path, "datasets")
    write_dataset(folder, parts_of(tmp_path, pixels), ["ein Schwan\n", "b"], None, FACTS, 8)
    assert json.loads((folder / "metadata.jsonl").read_text().splitlines()[0])["prompt"] == "ein Schwan\n"
    with pytest.raises(ConfigError, match="does not fit latents"):
        write_dataset(tmp_path / "more", parts_of(tmp_path, pixels.astype(np.float32)), None, None, FACTS, 8)


def test_the_library_loads_it_as_it_is(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the library datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset(str(written), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["image", "position", "seed", "label", "class"]
    assert [row["class"] for row in loaded] == ["cat", "2", "cat", "2", "cat"]
    assert np.array_equal(np.asarray(loaded[1]["image"]).ravel(), np.arange(48, 96, dtype=np.uint8))
