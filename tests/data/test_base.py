from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path
from traceback import clear_frames
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data._utils import signal_handling

from neural_rdm.core.errors import ConfigError, DataError, LoaderError
from neural_rdm.core.seeding import uniform
from neural_rdm.data import loader
from neural_rdm.data.base import DataModule
from neural_rdm.data.builtin.digits import Digits
from neural_rdm.data.builtin.synthetic import Synthetic
from neural_rdm.data.source import Source
from tests import processes
from tests.helpers import ROOT

L = pytest.importorskip("lightning.pytorch")


class Flags(Source):
    """A set whose augmentation shows: x holds the index and a coin keyed by the position."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed

    def __len__(self) -> int:
        return self.size

    def load(self, index: int, key: int) -> dict[str, Any]:
        return {"x": torch.tensor([index, float(uniform(self.seed, "flip", [key])[0] < 0.5)]), "y": index % 3}


class FlagData(DataModule):
    def __init__(self, size: int = 50, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def load_datasets(self) -> None:
        self.train_set = Flags(self.size, self.seed)
        self.val_set = Flags(13, self.seed)


def at(
    data: DataModule,
    step: int = 0,
    world_size: int = 1,
    rank: int = 0,
    seed: int = 3,
    micro: int = 1,
    folder: Path = Path("nothing is written here"),
) -> DataModule:
    data.configure(seed, micro)
    ranks = {"world_size": world_size, "global_rank": rank, "strategy": None}
    data.trainer = SimpleNamespace(global_step=step, default_root_dir=folder, **ranks)
    return data


def batches(data: DataModule, count: int) -> list[dict[str, Tensor]]:
    return list(islice(data.train_dataloader(), count))


def assert_equal(ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]]) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(("limit", "start"), [(None, 13), (100, 5)])  # mid-epoch; just before an epoch's end
def test_a_resume_with_workers_gives_the_batches_of_an_uninterrupted_run(limit, start):
    whole = batches(at(Digits(batch_size=32, limit=limit)), start + 4)
    resumed = batches(at(Digits(batch_size=32, limit=limit, num_workers=2), step=start), 4)
    assert_equal(resumed, whole[start:])


def test_micro_steps_and_ranks_share_out_the_same_samples():
    whole = batches(at(FlagData(batch_size=24)), 3)
    ranks = [batches(at(FlagData(batch_size=24), world_size=2, rank=r, micro=3), 9) for r in range(2)]
    shares = [rank[i] for i in range(9) for rank in ranks]
    assert all(len(share["y"]) == 4 for share in shares)
    for key in ("x", "y", "position"):
        assert torch.equal(torch.cat([b[key] for b in shares]), torch.cat([b[key] for b in whole]))


def test_augmentation_depends_on_seed_and_position_only():
    alone, busy = batches(at(FlagData(batch_size=20)), 10), batches(at(FlagData(batch_size=20, num_workers=2)), 10)
    assert_equal(alone, busy)
    positions = torch.cat([b["position"] for b in alone])
    coins = torch.cat([b["x"][:, 1] for b in alone])
    assert torch.equal(coins.bool(), torch.from_numpy(uniform(3, "flip", positions) < 0.5))
    assert 60 < coins.sum() < 140
    assert not torch.equal(coins, torch.cat([b["x"][:, 1] for b in batches(at(FlagData(batch_size=20), seed=4), 10)]))


def test_the_batch_contract():
    batch = batches(at(FlagData(batch_size=8), step=2), 1)[0]
    assert batch["x"].dtype == torch.float32
    assert batch["y"].dtype == batch["position"].dtype == torch.int64
    assert batch["position"].tolist() == list(range(16, 24))


def test_a_label_beyond_the_classes_is_no_null_class():
    data = at(FlagData(batch_size=2))
    data.num_classes = 2
    flags = Flags(6, 0)
    flags.y = torch.tensor([0, 1, 0, 1, 2, 0])
    data.load_datasets = lambda: setattr(data, "train_set", flags)
    with pytest.raises(DataError, match="training sample 4 has label 2, but these data have 2 classes, 0 to 1"):
        data.setup()
    assert data.train_set is None
    data.num_classes = 3
    data.setup()


def test_limit_takes_the_first_samples():
    data = at(FlagData(batch_size=10, limit=10))
    assert data.train_size == 10
    assert sorted(batches(data, 1)[0]["x"][:, 0].tolist()) == list(range(10))
    assert sum(len(b["y"]) for b in data.val_dataloader()) == 10
    assert at(FlagData(batch_size=10, limit=99)).train_size == 50


def test_validation_is_in_order_and_every_sample_comes_once():
    def seen(world: int) -> list[list[int]]:
        loaders = [at(FlagData(batch_size=8), world_size=world, rank=r).val_dataloader() for r in range(world)]
        return [[p for b in loader for p in b["position"].tolist()] for loader in loaders]

    assert seen(1) == [list(range(13))]
    two = seen(2)
    assert two == [list(range(0, 13, 2)), [*range(1, 13, 2), 13]]  # 13 fills up; it is not below val_size
    assert at(FlagData(batch_size=8)).val_size == 13
    loader = at(FlagData(batch_size=8)).val_dataloader()
    assert [int(b["x"][0, 0]) for b in loader] == [0, 8]
    assert at(Synthetic([1, 4, 4], None, 2)).val_dataloader() == []


def test_another_number_of_ranks_on_resume_repeats_nothing_and_leaves_no_gap():
    """25 steps of 12 over 50 samples (6 epochs), resumed in the middle of the second and of the fourth."""
    legs = [(0, 7, 1, 0), (7, 16, 3, 1), (16, 25, 2, 2)]  # first step, last, ranks, workers
    indices, positions = [], []
    for first, last, world, workers in legs:
        ranks = [
            batches(at(FlagData(batch_size=12, num_workers=workers), first, world, rank), last - first)
            for rank in range(world)
        ]
        for step in zip(*ranks, strict=True):
            indices += [int(i) for batch in step for i in batch["x"][:, 0]]
            positions += [p for batch in step for p in batch["position"].tolist()]
    assert positions == list(range(300))
    assert all(sorted(indices[e * 50 : (e + 1) * 50]) == list(range(50)) for e in range(6))
    whole = [int(i) for batch in batches(at(FlagData(batch_size=12)), 25) for i in batch["x"][:, 0]]
    assert indices == whole


def test_without_a_trainer_the_run_begins_at_step_0():
    data = FlagData(batch_size=4)
    assert next(iter(data.train_dataloader()))["position"].tolist() == [0, 1, 2, 3]
    assert data.train_set.seed == 0
    data.configure(5)
    assert next(iter(data.train_dataloader()))["y"].shape == (4,)
    assert data.train_set.seed == 5


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="batch_size=0 must be above 0"):
        FlagData(batch_size=0)
    with pytest.raises(ConfigError, match="num_workers=-1 must be at least 0"):
        FlagData(batch_size=1, num_workers=-1)
    with pytest.raises(ConfigError, match="limit=0 must be above 0"):
        FlagData(batch_size=1, limit=0)
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=f"max_bad_fraction={share} must be between 0 and 1"):
            FlagData(batch_size=1, max_bad_fraction=share)
    with pytest.raises(NotImplementedError, match="DataModule does not say"):
        DataModule(1).setup()
    with pytest.raises(ConfigError, match=r"nearest that works is data\.batch_size=9"):
        at(FlagData(batch_size=10), world_size=3).train_dataloader()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_processes_leave_the_workers_at_work(number):
    before = set(multiprocessing.active_children())
    loader = iter(at(FlagData(batch_size=4, num_workers=2)).train_dataloader())
    first = [next(loader), next(loader)]  # of each worker one: both are at work
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for process in [*workers, *workers]:
        os.kill(process.pid, number)
    assert [int(batch["position"][0]) for batch in [*first, *islice(loader, 12)]] == list(range(0, 56, 4))


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param("raise ValueError('mine')", marks=pytest.mark.full),
        "os.kill(os.getpid(), signal.SIGINT)",
        pytest.param("sys.exit(3)", marks=pytest.mark.full),
    ],
)
def test_workers_do_not_keep_a_process_from_ending(ending, tmp_path):
    code = (
        "import os, signal, sys, time\nfrom tests.data.test_base import *\n"
        "class Stuck(Flags):\n"
        "    def load(self, index, key):\n"
        "        if key > 20: time.sleep(100)\n"
        "        return super().load(index, key)\n"
        "data = at(FlagData(batch_size=4, num_workers=2))\n"
        "data.train_set = Stuck(50, 3)\n"
        "loader = iter(data.train_dataloader())\n"
        f"next(loader)\n{ending}\n"
    )
    done = processes.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in {"r": (1,), "o": (-signal.SIGINT, 130), "s": (3,)}[ending[0]], done.stderr
    assert ending[0] != "r" or done.stderr.strip().endswith("ValueError: mine")


class Slow(FlagData):
    def load_datasets(self) -> None:
        super().load_datasets()
        self.train_set.load = self.act

    def act(self, index: int, key: int) -> dict[str, Any]:
        if self.size == 50:
            time.sleep(1)
        os._exit(3)


@pytest.mark.parametrize(
    ("size", "message"),
    [(50, "no batch has come for 0.2 s: reading or decoding a sample"), (51, "a process that loads data has died")],
)
def test_a_worker_that_hangs_or_dies_is_one_message(size, message, monkeypatch):
    monkeypatch.setattr(loader, "PATIENCE", 0.2 if size == 50 else 20)
    data = at(Slow(size, batch_size=4, num_workers=1))
    with pytest.raises(LoaderError, match=message) as error:
        next(iter(data.train_dataloader()))
    clear_frames(error.tb)
    gc.collect()  # the loader, of whose worker torch would tell whatever test comes next


def test_a_worker_that_dies_is_told_where_a_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `benchmarks soak`: torch raised it wherever the parent was, such as in a page that was drawn when no
    worker was needed any more.
    """
    monkeypatch.setattr(loader, "EVERY", 0.2)
    before = set(multiprocessing.active_children())  # joblib keeps some that another test has asked for
    batches = iter(at(FlagData(400, batch_size=4, num_workers=1)).train_dataloader())
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    while worker.exitcode is None:
        time.sleep(0.01)
    with pytest.raises(LoaderError, match=r"data has died \(DataLoader worker \(pid.*\)\. Where memory") as error:
        list(batches)
    clear_frames(error.tb)
    gc.collect()


def test_a_worker_that_dies_before_torch_listens_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `benchmarks soak`: torch waited for its batch until the patience was over."""

    before = set(multiprocessing.active_children())

    def all_end() -> None:
        for process in set(multiprocessing.active_children()) - before:
            process.join()

    monkeypatch.setattr(loader, "PATIENCE", 20)
    monkeypatch.setattr(loader, "EVERY", 0.2)
    monkeypatch.setattr(loader, "_start_worker", lambda worker: os.kill(os.getpid(), signal.SIGKILL))
    for name in ("_set_worker_pids", "_remove_worker_pids"):
        monkeypatch.setattr(signal_handling, name, lambda *_: None)
    monkeypatch.setattr(signal_handling, "_set_SIGCHLD_handler", all_end)
    data = at(FlagData(50, batch_size=4, num_workers=1))
    with pytest.raises(
        LoaderError, match=r"has died \(DataLoader worker \(pid\(s\) \d+\) exited unexpectedly"
    ) as error:
        next(iter(data.train_dataloader()))
    clear_frames(error.tb)
    gc.collect()


def test_a_worker_whose_parent_was_killed_as_it_began_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `benchmarks soak`: torch asked who its parent is when that was another one already."""
    monkeypatch.setattr(loader, "PATIENCE", 20)
    monkeypatch.setattr(loader, "EVERY", 0.2)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # the worker is a copy of this process
    with pytest.raises(LoaderError, match="a process that loads data has died") as error:
        next(iter(at(FlagData(50, batch_size=4, num_workers=1)).train_dataloader()))
    clear_frames(error.tb)
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch's, where it is told early
@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("can't start new thread", "can't start new thread"),
        ("AF_UNIX path too long", "AF_UNIX path too long. Set TMPDIR to a folder with a shorter name"),
    ],
)
def test_a_worker_that_cannot_send_a_batch_ends(why, told, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """Found by `benchmarks soak`: its memory was too short for a thread, Python dropped the batch with a traceback, and
    asked it for the next one for ever.
    """
    monkeypatch.setattr(loader, "PATIENCE", 20)
    monkeypatch.setattr(loader, "EVERY", 0.2)
    data = at(FlagData(50, batch_size=4, num_workers=2))
    batches = data.train_dataloader()

    def no_thread(*_: Any) -> None:
        raise OSError(why)

    monkeypatch.setattr(multiprocessing.resource_sharer, "DupFd", no_thread)  # the workers are copies of this process
    with pytest.raises(LoaderError, match=r"has died \(DataLoader worker \(pid\(s\) [\d, ]+\) exited unexp") as error:
        next(iter(batches))
    clear_frames(error.tb)
    gc.collect()
    said = capfd.readouterr().err
    assert f"cannot hand over what it has read: {told}\n" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("lost", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_batch_that_a_dead_worker_cannot_hand_over_is_told(lost: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by `benchmarks soak`: Python asks the worker for it when torch has not noticed yet that it is gone."""

    def batches(_: Any) -> Any:
        raise lost
        yield

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", batches)
    with pytest.raises(LoaderError, match="a process that loads data has died"):
        next(iter(at(FlagData(50, batch_size=4, num_workers=1)).train_dataloader()))
    with pytest.raises(type(lost)):  # here it is of the data themselves
        next(iter(at(FlagData(50, batch_size=4, num_workers=0)).train_dataloader()))


class Recorder(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen += batch["position"].tolist()
        return self.layer(batch["x"]).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(steps: int, **settings: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(max_steps=steps, accelerator="cpu", use_distributed_sampler=False, **quiet, **settings)


@pytest.mark.filterwarnings("ignore")
def test_a_real_trainer_sees_every_position_once_through_a_resume(tmp_path):
    first, second = Recorder(), Recorder()
    data = FlagData(batch_size=8)
    data.configure(0, 2)
    run = trainer(3, accumulate_grad_batches=2)
    run.fit(first, data)
    run.save_checkpoint(tmp_path / "a.ckpt")
    assert first.seen == list(range(24))
    data = FlagData(batch_size=8, num_workers=1)
    data.configure(0, 2)
    trainer(5, accumulate_grad_batches=2).fit(second, data, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert second.seen == list(range(24, 40))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
def test_lightning_epochs_cut_short_do_not_repeat_data(workers):
    module = Recorder()
    trainer(5, limit_train_batches=2).fit(module, FlagData(batch_size=4, num_workers=workers))
    assert module.seen == list(range(20))
