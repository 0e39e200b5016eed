"""Samples that cannot be read: replaced alike everywhere, listed once, too many stop the run."""

from __future__ import annotations

import csv
import multiprocessing
import os
import re
from itertools import islice
from pathlib import Path
from traceback import clear_frames
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from neural_rdm.core.errors import DataError, printable
from neural_rdm.core.seeding import choice
from neural_rdm.data.base import BrokenSample, DataModule
from neural_rdm.data.broken import COLUMNS, FILE, BadSamples, bad_allowed
from neural_rdm.data.sampler import StepBatchSampler
from neural_rdm.data.source import Source

L = pytest.importorskip("lightning.pytorch")
SEED = 3


class Numbers(Source):
    """Sample i is [i]; those in `broken` cannot be read."""

    def __init__(self, size: int, broken: frozenset[int], left_out: list[BrokenSample]) -> None:
        self.size, self.broken, self.left_out = size, broken, left_out

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, key: int) -> dict[str, Any]:
        if index in self.broken:
            try:
                raise OSError("image file is truncated")
            except OSError as error:
                raise BrokenSample(str(error), f"set/{index}.jpg") from error
        return {"x": torch.tensor([float(index)])}


class Data(DataModule):
    def __init__(
        self, size: int = 60, broken: Any = (), val_broken: Any = (), left_out: Any = (), **settings: Any
    ) -> None:
        super().__init__(**{"batch_size": 12, "max_bad_fraction": 0.2, **settings})
        self.size, self.broken, self.val_broken, self.out = size, frozenset(broken), frozenset(val_broken), left_out

    def load_datasets(self) -> None:
        self.train_set = Numbers(self.size, self.broken, list(self.out))
        self.val_set = Numbers(13, self.val_broken, [])


def at(data: Data, folder: Path | None, step: int = 0, world_size: int = 1, rank: int = 0) -> Data:
    data.configure(SEED)
    if folder is not None:
        data.trainer = SimpleNamespace(
            global_step=step, world_size=world_size, global_rank=rank, strategy=None, default_root_dir=folder
        )
    return data


def draws(data: Data, batches: int) -> dict[int, int]:
    """{position: index of the sample that came}."""
    seen = {}
    for batch in islice(data.train_dataloader(), batches):
        seen |= dict(zip(batch["position"].tolist(), batch["x"][:, 0].int().tolist(), strict=True))
    return seen


def listed(folder: Path) -> list[dict[str, str]]:
    with (folder / FILE).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refusal(act: Any) -> str:
    with pytest.raises(DataError) as error:
        act()
    clear_frames(error.tb)  # they hold the loader in a cycle, and collecting that makes its workers wait for 5 s
    assert "Traceback" not in str(error.value)
    return str(error.value)


def test_the_place_of_a_bad_sample_is_taken_alike_by_all_workers_ranks_and_resumes(tmp_path):
    broken = {5, 17, 40}
    whole = draws(at(Data(broken=broken), tmp_path / "a"), 15)
    plain = [d.index for batch in islice(StepBatchSampler(60, 12, SEED), 15) for d in batch]
    for position, index in whole.items():
        if plain[position] not in broken:
            assert index == plain[position]
        else:
            attempts = (choice(SEED, f"replacement {a}", position, 60) for a in range(99))
            assert index == next(i for i in attempts if i not in broken)
    assert {p for p, i in whole.items() if i != plain[p]} == {p for p, i in enumerate(plain) if i in broken}
    assert len({whole[p] for p, i in enumerate(plain) if i == 5}) > 1  # another one in every epoch
    assert draws(at(Data(broken=broken, num_workers=2), tmp_path / "b"), 15) == whole
    ranks = [draws(at(Data(broken=broken), tmp_path / "c", 0, 2, r), 15) for r in (0, 1)]
    assert ranks[0] | ranks[1] == whole
    assert draws(at(Data(broken=broken), tmp_path / "d", step=7), 8) == {p: i for p, i in whole.items() if p >= 84}


def test_each_is_listed_once_with_what_took_its_place(tmp_path, capsys):
    whole = draws(at(Data(broken={5, 17}), tmp_path), 10)
    rows = listed(tmp_path)
    assert sorted(int(row["index"]) for row in rows) == [5, 17]
    for row in rows:
        assert row["split"] == "train"
        assert row["path"] == f"set/{row['index']}.jpg"
        assert row["reason"] == "image file is truncated"
        assert whole[int(row["position"])] == int(row["replacement"])
        said = f"set/{row['index']}.jpg: image file is truncated; sample {row['replacement']} takes its place"
    assert said in capsys.readouterr().out
    before = (tmp_path / FILE).read_bytes()
    for world, rank, workers in ((1, 0, 2), (2, 0, 0), (2, 1, 0)):  # resumed, and by other ranks and workers
        draws(at(Data(broken={5, 17}, num_workers=workers), tmp_path, 10, world, rank), 10)
    assert (tmp_path / FILE).read_bytes() == before
    assert "bad" not in capsys.readouterr().out


def add_all(folder: Path, shift: int) -> None:
    bad = BadSamples("train", 200, 0.5, folder)
    for i in range(40):
        index = (i + shift) % 40
        bad.add({index: BrokenSample("torn", f"{index}.jpg")}, i, 0)


def test_processes_that_write_at_once_list_each_sample_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=add_all, args=(tmp_path, 7 * shift)) for shift in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(int(row["index"]) for row in listed(tmp_path)) == list(range(40))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_stop_the_run_with_the_list(tmp_path, workers):
    data = at(Data(size=100, broken=range(0, 100, 9), max_bad_fraction=0.05, num_workers=workers), tmp_path)
    text = refusal(lambda: draws(data, 50))
    assert text.startswith(f"6 of 100 training samples cannot be read so far, listed in {tmp_path / FILE}; ")
    assert "data.max_bad_fraction=0.05 allows 5." in text
    assert text.count("\n  set/") == 5
    assert ".jpg: image file is truncated\n" in text
    assert text.endswith("Replace or remove them, delete that list and resume, or raise data.max_bad_fraction.")
    assert 6 <= len(listed(tmp_path)) <= 12  # a worker reads ahead
    again = at(Data(size=100, broken={9}, max_bad_fraction=0.05), tmp_path)  # all but one repaired
    assert refusal(lambda: draws(again, 50)).startswith(f"{len(listed(tmp_path))} of 100")
    (tmp_path / FILE).unlink()
    again = at(Data(size=100, broken={9}, max_bad_fraction=0.05), tmp_path)
    draws(again, 50)
    assert len(listed(tmp_path)) == 1


def test_workers_count_together_without_a_file(capfd):
    data = at(Data(size=100, broken=range(0, 100, 9), max_bad_fraction=0.05, num_workers=2), None)
    assert re.match(r"\d+ of 100 training samples cannot be read so far; data\.max", refusal(lambda: draws(data, 50)))
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("bad train sample")]
    assert 6 <= len(lines) == len(set(lines)) <= 12


@pytest.mark.parametrize(
    ("fraction", "size", "allowed"),
    [(0.01, 1000, 10), (0.01, 1099, 10), (0.29, 100, 29), (0.01, 50, 1), (0.01, 2, 1), (0.01, 1, 0), (0.0, 1000, 0),
     (1.0, 7, 6)],
)  # fmt: skip
def test_how_many_are_allowed(fraction, size, allowed):
    assert bad_allowed(fraction, size) == allowed


def test_small_sets_and_the_ends_of_the_range(tmp_path):
    draws(at(Data(size=50, broken={7}, max_bad_fraction=0.01), tmp_path / "one"), 30)  # 2 %, but one
    assert "allows 1." in refusal(
        lambda: draws(at(Data(size=50, broken={7, 8}, max_bad_fraction=0.01), tmp_path / "two"), 30)
    )
    assert "allows 0." in refusal(
        lambda: draws(at(Data(size=500, broken={7}, max_bad_fraction=0), tmp_path / "zero"), 100)
    )
    seen = draws(at(Data(size=3, broken={0, 2}, max_bad_fraction=1), tmp_path / "most"), 3)
    assert set(seen.values()) == {1}
    for size in (1, 3):
        text = refusal(
            lambda n=size: draws(at(Data(size=n, broken=range(n), max_bad_fraction=1), tmp_path / f"all{n}"), 1)
        )
        assert text.startswith(f"{size} of {size} training samples cannot be read")


@pytest.mark.parametrize("workers", [0, 2])
def test_in_validation_a_bad_sample_is_left_out_and_the_batch_keeps_its_shape(tmp_path, workers):
    for world in (1, 2):
        kept, shapes = {}, []
        for rank in range(world):
            data = at(Data(val_broken={3, 12}, num_workers=workers), tmp_path, 0, world, rank)
            for batch in data.val_dataloader():
                real = batch["position"] < data.val_size
                shapes.append(len(batch["x"]))
                kept |= dict(zip(batch["position"][real].tolist(), batch["x"][real, 0].int().tolist(), strict=True))
        assert kept == {i: i for i in range(13) if i not in (3, 12)}
        assert shapes == {1: [12, 1], 2: [6, 1, 6, 1]}[world]
    assert sorted((row["split"], row["index"], row["position"], row["replacement"]) for row in listed(tmp_path)) == [
        ("val", "12", "12", ""), ("val", "3", "3", ""),
    ]  # fmt: skip


def test_what_a_listing_has_left_out_is_listed_and_counted(tmp_path):
    out = [BrokenSample("a class folder without an image", "train/b"), BrokenSample("torn", "list.jsonl:7")]
    for _ in range(2):
        draws(at(Data(size=100, left_out=out, broken={1}, max_bad_fraction=0.03), tmp_path), 10)
    rows = listed(tmp_path)
    assert [(row["path"], row["index"], row["replacement"]) for row in rows[:2]] == [
        ("train/b", "", ""), ("list.jsonl:7", "", ""),
    ]  # fmt: skip
    assert [row["index"] for row in rows[2:]] == ["1"]
    text = refusal(lambda: draws(at(Data(size=100, left_out=out, max_bad_fraction=0), tmp_path / "b"), 1))
    assert "\n  train/b: a class folder without an image\n" in text


def test_what_a_whole_listing_has_left_out_is_no_share_of_a_limited_run(tmp_path):
    out = [BrokenSample("of no image", f"list.json:{i}") for i in range(3)]
    draws(at(Data(size=1000, limit=40, left_out=out, broken={7}, max_bad_fraction=0.03), tmp_path / "a"), 10)
    text = refusal(
        lambda: draws(at(Data(size=1000, limit=40, broken={7, 8}, max_bad_fraction=0.03), tmp_path / "b"), 9)
    )
    assert text.startswith("2 of 40 training samples cannot be read so far")
    assert "allows 1." in text
    text = refusal(lambda: draws(at(Data(size=100, limit=40, left_out=out, max_bad_fraction=0.02), tmp_path / "c"), 1))
    assert text.startswith("3 of 100 training samples cannot be read so far")
    assert "allows 2." in text


def test_another_sample_than_the_asked_one_may_be_broken(tmp_path):
    class Pairs(Numbers):
        """A clip with a frame of another one behind it, which is beyond `limit`."""

        def load(self, index: int, key: int) -> dict[str, Any]:
            if key == 4:  # its draw is the broken one
                raise BrokenSample("no frames", "set/55.mp4", index=55)
            return super().load(index, key)

    data = at(Data(limit=20), tmp_path)
    data.setup()
    data.train_set = Pairs(60, frozenset(), [])
    seen = draws(data, 1)
    assert [(row["index"], row["path"], row["replacement"]) for row in listed(tmp_path)] == [
        ("55", "set/55.mp4", str(seen[4]))
    ]


def test_where_next_to_nothing_can_be_read_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("neural_rdm.data.base._ATTEMPTS", 20)
    text = refusal(lambda: draws(at(Data(size=500, broken=range(499), max_bad_fraction=1), tmp_path), 1))
    assert text.startswith("20 samples in a row cannot be read, such as set/")


def test_a_torn_list_is_continued(tmp_path):
    bad = BadSamples("train", 100, 0.5, tmp_path)
    bad.add({1: BrokenSample("torn", 'a\nb,"c".jpg')}, 0, 2)
    with (tmp_path / FILE).open("a") as file:
        file.write("train,7,set/7.jp")  # a full disk
    for _ in range(2):
        bad = BadSamples("train", 100, 0.5, tmp_path)
        bad.add({1: BrokenSample("torn", 'a\nb,"c".jpg'), 7: BrokenSample("torn", "7.jpg")}, 3, 4)
    rows = [row for row in listed(tmp_path) if row["replacement"]]
    assert [(row["index"], row["path"]) for row in rows] == [("1", 'a\nb,"c".jpg'), ("7", "7.jpg")]


@pytest.mark.parametrize("header", ["\ufeff" + ",".join(COLUMNS), "splxt,inde,path,reason,position,replacement"])
def test_a_list_that_a_spreadsheet_has_saved_is_continued(tmp_path, capsys, header):
    bad = BadSamples("train", 100, 0.5, tmp_path)
    bad.add({1: BrokenSample("torn", "1.jpg"), 7: BrokenSample("torn", "7.jpg")}, 3, 4)
    text = (tmp_path / FILE).read_text().replace(",".join(COLUMNS), header).replace("train,7,7.jpg", "train;7,7.jpg")
    (tmp_path / FILE).write_text(text)
    again = BadSamples("train", 100, 0.5, tmp_path)
    again.add({1: BrokenSample("torn", "1.jpg"), 7: BrokenSample("torn", "7.jpg")}, 3, 4)
    assert again.count == 2
    written = (tmp_path / FILE).read_text()
    assert written.startswith(text)  # nothing of it is lost
    assert written.count("1.jpg") == 1  # it is known
    assert written.count("7.jpg") == 2  # its line could not be read
    assert capsys.readouterr().out.count("1 lines cannot be read; they stay as they are") == 1


def test_a_list_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "run").touch()
    text = refusal(lambda: draws(at(Data(broken={5}, num_workers=1), tmp_path / "run"), 10))
    assert text.startswith(f"cannot write {tmp_path / 'run' / FILE}: ")
    assert "Not a directory" in text or "File exists" in text


def test_names_of_any_encoding_are_printed_and_listed(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9 \xe6\x97\xa5.jpg")
    assert printable(name) == "caf\\xe9 日.jpg"
    assert printable("a\x1b]0;title\x07\r\x9b2J\tb\n") == "a\\x1b]0;title\\x07\\x0d\\x9b2J\tb\n"
    assert printable("gnp.\u202eexe") == "gnp.\\u202eexe"
    assert BrokenSample("class \x1b[2J").reason == "class \\x1b[2J"
    assert printable("half \ud83d, whole \N{GRINNING FACE}") == "half \\ud83d, whole \N{GRINNING FACE}"
    BadSamples("train", 10, 0.5, tmp_path).add({1: BrokenSample("bad\0 \udce9 marker", name)}, 0, None)
    assert listed(tmp_path)[0]["path"] == "caf\\xe9 日.jpg"
    assert "caf\\xe9" in capsys.readouterr().out
    BadSamples("train", 10, 0.5, tmp_path).add({2: BrokenSample("torn", "a\nfinished")}, 0, None)
    assert "sample a\\nfinished: torn" in capsys.readouterr().out  # no line of its own


class Model(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.layer(batch["x"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_real_trainer_goes_on_and_lists_in_its_folder(tmp_path, workers):
    data = Data(broken={5, 17}, num_workers=workers)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(
        max_steps=8, accelerator="cpu", use_distributed_sampler=False, default_root_dir=tmp_path, **quiet
    )
    data.first_batch(3)  # before there is a trainer
    trainer.fit(Model(), data)
    assert trainer.global_step == 8
    assert sorted(row["index"] for row in listed(tmp_path)) == ["17", "5"]
