"""`python -m neural_rdm.sample` and the loading that it shares with `evaluate`."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from neural_rdm import DiT
from neural_rdm.config.compose import compose_config, parse
from neural_rdm.config.provenance import write_config
from neural_rdm.core.errors import CheckpointError, ConfigError, DataError, UserError
from neural_rdm.core.files import load_tensors, save_tensors
from neural_rdm.data.builtin.digits_text import DigitsText
from neural_rdm.data.builtin.synthetic import Synthetic
from neural_rdm.evaluation import features
from neural_rdm.evaluation.sample_parts import Parts
from neural_rdm.runs import build
from neural_rdm.runs import load as runs
from neural_rdm.runs.choosing import choose_classes
from neural_rdm.runs.load import find_runs, inherit, load_run, read_config, written
from neural_rdm.runs.loaded import LoadedRun
from neural_rdm.sample import _grids, _kept, _tell_prompts, sample
from tests import processes

TINY = (
    "trainer.max_steps=4",
    "trainer.num_threads=1",
    "backbone.depth=1",
    "backbone.hidden_size=32",
    "data.batch_size=16",
    "sampler.steps=2",
    "metric.per_class=1",
    "callbacks.samples.per_class=1",
    "checkpoint.every_n_steps=2",
    "log_every_n_steps=2",
    "logger=csv",
)


def command(module: str, *args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, from the folder `cwd`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    line = [sys.executable, "-m", f"neural_rdm.{module}", *args]
    return processes.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def refused_without_torch(module: str, *args: str, cwd: Path) -> str:
    """What a command says that must be refused with exit code 2 before torch is imported."""
    code = (
        "import runpy, sys\n"
        f"try: runpy.run_module('neural_rdm.{module}', run_name='__main__')\n"
        "except SystemExit as exit: sys.exit('torch was imported' if 'torch' in sys.modules else exit.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


@functools.cache
def tiny_run(root: Path) -> Path:
    """A run of four steps of the default experiment, trained once a test session, below the session's folder `root`."""
    folder = root / "outputs" / "train" / "digits_gated" / "tiny"
    done = command("train", *TINY, f"hydra.run.dir='{folder}'", cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _threads():
    """Loading a run sets its number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def config_of(run, *overrides):
    cfg = compose_config("sample", inherit([f"run={written(str(run))}", *overrides], groups=("sampler",))).cfg
    OmegaConf.resolve(cfg)
    return cfg


def samples_of(folder):
    with np.load(folder / "samples.npz") as arrays:
        return dict(arrays)


pytestmark = pytest.mark.end_to_end


def test_the_command_writes_what_it_says(run, tmp_path):
    done = command("sample", f"run={run}", "per_class=2", "classes=[3,0]", "batch_size=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    paths = [tmp_path / line.strip() for line in done.stdout.split("wrote:\n")[1].splitlines()]
    assert [path.name for path in paths] == ["grid.png", "samples.npz", "sampling.json"]
    assert all(path.is_file() for path in paths)
    assert paths[0].parent.parent == tmp_path / "outputs" / "sample" / "digits_gated"
    arrays = samples_of(paths[0].parent)
    assert arrays["arr_0"].shape == (4, 8, 8, 1)
    assert arrays["arr_0"].dtype == np.uint8
    assert arrays["arr_1"].tolist() == [3, 3, 0, 0]
    facts = json.loads(paths[2].read_text())
    assert facts["checkpoint"] == "step=000000004.ckpt"
    assert (facts["step"], facts["weights"], facts["seed"], facts["classes"]) == (4, "ema", 0, [3, 0])
    assert facts["sampler"] == {k: v for k, v in read_config(run).sampler.items() if k != "_target_"}
    assert "127.5 * x + 128" in facts["rounding"]


def test_the_newest_run_can_be_sampled_by_name(run, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())
    folder = "outputs/train/digits_gated/tiny"
    assert inherit(["run=last", "seed=3"]) == ["++experiment='digits_gated'", "seed=3", f"run='{folder}'"]


def test_ema_and_raw_weights_are_those_of_the_checkpoint(run):
    checkpoint = load_tensors(run / "checkpoints" / "last.ckpt")
    raw = {k.removeprefix("net."): v for k, v in checkpoint["state_dict"].items()}
    averaged = checkpoint["ema"]["weights"]
    assert any(not torch.equal(raw[name], averaged[name]) for name in averaged)
    for weights, expected in (("raw", raw), ("ema", raw | averaged)):
        loaded = load_run(run, weights, "cpu")
        state = loaded.net.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert (loaded.step, loaded.weights, loaded.pixels, loaded.net.training) == (4, weights, True, False)


def test_samples_depend_on_their_number_and_seed_alone(run, tmp_path):
    def drawn(name, *overrides):
        sample(config_of(run, "sampler.steps=3", *overrides), tmp_path / name)
        return samples_of(tmp_path / name)["arr_0"].astype(int)

    whole = drawn("whole", "per_class=2")
    assert len(whole) == 20
    assert np.abs(drawn("few", "per_class=2", "batch_size=3") - whole).max() <= 1
    assert np.abs(drawn("raw", "per_class=2", "weights=raw") - whole).max() > 0
    assert np.abs(drawn("seed", "per_class=2", "seed=1") - whole).max() > 50
    assert np.abs(drawn("part", "per_class=2", "classes=[0,1,2]") - whole[:6]).max() <= 1
    with Image.open(tmp_path / "part" / "grid.png") as grid:
        assert 0 < grid.height - (2 * 8 + 3 * 48 + 2 * 2) < 40  # the line of the title


def test_bytes_are_rounded_as_dit_does_and_shown_as_they_are(run, tmp_path):
    pixels = replace(load_run(run, "raw", "cpu"), decode=None)
    x = torch.tensor([-3.0, -1.0, -0.999, 0.0, 0.5, 1.0, 2.0, torch.nan]).reshape(1, 1, 2, 4)
    assert _kept(pixels, x).flatten().tolist() == [0, 0, 0, 128, 191, 255, 255, 0]
    parts = Parts(tmp_path, 4, 4)
    parts.save(0, np.arange(256, dtype=np.uint8).reshape(4, 8, 8, 1))
    _grids(pixels, parts, None, config_of(run), tmp_path / "every.png", "")
    shown = np.asarray(Image.open(tmp_path / "every.png"))
    assert set(range(256)) <= set(shown.flatten().tolist())
    assert shown[8, 8] == 0  # the first pixel of the first tile, inside the margin
    assert shown[8, 8 + 6] == 1


def test_a_job_goes_on_where_it_was_killed_and_is_shared_by_processes(run, tmp_path, monkeypatch, capsys):
    cfg = config_of(run, "count=23", "batch_size=4", "sampler.steps=2", "files=[npz,png]")
    sample(cfg, tmp_path / "whole")
    whole = samples_of(tmp_path / "whole")
    assert whole["arr_1"].tolist() == [i % 10 for i in range(23)]
    assert not (tmp_path / "whole" / "parts").exists()

    drawn = []
    save = Parts.save

    def killed_after_two(self, number, samples):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(number)
        save(self, number, samples)

    monkeypatch.setattr(Parts, "save", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        sample(cfg, tmp_path / "parts")
    assert drawn == [0, 1]
    monkeypatch.setattr(Parts, "save", lambda self, number, x: (drawn.append(number), save(self, number, x))[1])
    for rank in ("1", "0"):  # as torchrun would start them, here one after the other
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        sample(cfg, tmp_path / "parts")
    assert drawn == [0, 1, 3, 5, 2, 4]
    assert "2 of 6 parts" not in capsys.readouterr().out.split("\n")[0]
    for name, array in samples_of(tmp_path / "parts").items():
        assert np.array_equal(array, whole[name])
    for i in (0, 22):
        picture = np.asarray(Image.open(tmp_path / "parts" / "samples_png" / f"{i:07d}.png"))
        assert np.array_equal(picture, whole["arr_0"][i, :, :, 0])
    before = len(drawn)
    sample(cfg, tmp_path / "parts")
    assert "nothing to do" in capsys.readouterr().out
    assert len(drawn) == before
    with pytest.raises(ConfigError, match="different: seed"):
        sample(config_of(run, "count=23", "batch_size=4", "sampler.steps=2", "seed=7"), tmp_path / "parts")


class Texts:
    """In the place of a text encoder: the tokens say nothing, but the captions are written down."""

    def __init__(self):
        self.asked = []

    def cut(self, captions):
        return {}

    def remember(self, known):
        assert known == {}

    def encode(self, captions):
        self.asked.append(list(captions))
        return torch.zeros(len(captions), 2, 4), torch.ones(len(captions), 2, dtype=torch.bool)


def pretend(monkeypatch, run, **changes):
    """Let the command load the run with another network or other data."""
    loaded = replace(load_run(run, "raw", "cpu"), **changes)
    monkeypatch.setattr(runs, "load_run", lambda *_: loaded)


def dit(**changes):
    shape = {"input_size": 8, "patch_size": 4, "in_channels": 1, "hidden_size": 32, "depth": 1, "num_heads": 4}
    return DiT(**{**shape, "learn_sigma": False, **changes}).eval()


def test_a_count_takes_every_class(run, tmp_path, monkeypatch):
    pretend(monkeypatch, run, net=dit(num_classes=20), data=Synthetic([1, 8, 8], 20, 8, space="pixels"))
    sample(config_of(run, "count=45", "sampler.steps=1"), tmp_path / "all")
    assert samples_of(tmp_path / "all")["arr_1"].tolist() == [i % 20 for i in range(45)]
    assert json.loads((tmp_path / "all" / "sampling.json").read_text())["classes"] == list(range(20))
    sample(config_of(run, "count=4", "classes=[7]", "sampler.steps=1"), tmp_path / "one")
    assert samples_of(tmp_path / "one")["arr_1"].tolist() == [7] * 4
    sample(config_of(run, "per_class=1", "sampler.steps=1"), tmp_path / "few")
    assert samples_of(tmp_path / "few")["arr_1"].tolist() == list(range(10))


def test_many_classes_leave_the_facts_and_the_picture_readable(run, tmp_path, monkeypatch):
    pretend(monkeypatch, run, net=dit(num_classes=300), data=Synthetic([1, 8, 8], 300, 8, space="pixels"))
    sample(config_of(run, "count=300", "batch_size=300", "sampler.steps=1"), tmp_path / "all")
    assert samples_of(tmp_path / "all")["arr_1"].tolist() == list(range(300))
    assert json.loads((tmp_path / "all" / "sampling.json").read_text())["classes"] == "all 300"
    with Image.open(tmp_path / "all" / "grid.png") as grid:
        assert 0 < grid.height - (2 * 8 + 32 * 48 + 31 * 2) < 40


def test_prompts_that_say_nothing_or_are_cut_are_named(capsys):
    text = SimpleNamespace(max_length=4, cut=lambda said: {s: (9, "the rest") for s in said if "long" in s})
    _tell_prompts(SimpleNamespace(text=text, data=DigitsText()), ["a dog", " ", "a long text"], 7)
    assert capsys.readouterr().out.splitlines() == [
        "prompt 1 is empty: its samples show what the network draws without a text",
        "prompt 'a long text' has 9 tokens and is cut at condition.max_length=4; not read: 'the rest'",
        "7 samples of 3 prompts, up to 3 of each",
    ]


def test_a_count_takes_as_many_texts(run, tmp_path, monkeypatch):
    texts = Texts()
    net = dit(num_classes=0, context_dim=4)
    pretend(monkeypatch, run, net=net, text=texts, data=DigitsText())
    monkeypatch.setattr(features, "TEXTS", 64)
    sample(config_of(run, "count=130", "batch_size=32", "sampler.steps=1"), tmp_path / "all")
    asked = [texts for texts in texts.asked if texts != [""]]
    wanted = DigitsText().prompts(130)
    assert [text for part in asked for text in part] == wanted
    assert max(map(len, asked)) == 64
    facts = json.loads((tmp_path / "all" / "sampling.json").read_text())
    assert facts["prompts"]["count"] == 130
    assert len(facts["prompts"]["sha256"]) == 64
    assert json.loads((tmp_path / "all" / "prompts.json").read_text()) == wanted
    texts.asked.clear()
    sample(config_of(run, "per_class=1", "sampler.steps=1"), tmp_path / "few")
    assert [text for part in texts.asked for text in part if text] == wanted[:10]
    assert json.loads((tmp_path / "few" / "sampling.json").read_text())["prompts"] == wanted[:10]
    captionless = SimpleNamespace(prompts=lambda count: None, space="pixels", class_names=None)
    pretend(monkeypatch, run, net=net, text=texts, data=captionless)
    with pytest.raises(ConfigError, match=r"pass prompts=\['"):
        sample(config_of(run, "count=3"), tmp_path / "none")


def no_drawing(*_, **__):
    raise AssertionError("something was drawn")


@pytest.mark.parametrize(
    ("kind", "why"), [("gif", "files=gif does not fit images"), ("mp4", "files=mp4 does not fit images")]
)
def test_files_that_do_not_fit_are_refused_before_anything_is_drawn(run, tmp_path, monkeypatch, kind, why):
    monkeypatch.setattr(LoadedRun, "draw", no_drawing)
    with pytest.raises(ConfigError, match=why):
        sample(config_of(run, f"files=[npz,{kind}]"), tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_mp4_without_pyav_is_refused_before_anything_is_drawn(run, tmp_path, monkeypatch):
    pretend(
        monkeypatch,
        run,
        net=SimpleNamespace(input_shape=(3, 1, 8, 8), num_classes=0),
        data=SimpleNamespace(space="pixels", class_names=None),
    )
    monkeypatch.setattr(LoadedRun, "draw", no_drawing)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match="files=mp4 needs PyAV"):
        sample(config_of(run, "files=[mp4]"), tmp_path / "job")


def test_further_files_of_a_finished_job_are_made_without_drawing(run, tmp_path, monkeypatch, capsys):
    asked = ("per_class=3", "classes=[1,4]", "batch_size=4", "sampler.steps=1")
    sample(config_of(run, *asked), tmp_path)
    array = (tmp_path / "samples.npz").read_bytes()
    monkeypatch.setattr(LoadedRun, "draw", no_drawing)
    capsys.readouterr()
    sample(config_of(run, *asked, "files=[npz,png]"), tmp_path)
    assert "samples_png" in capsys.readouterr().out
    assert (tmp_path / "samples.npz").read_bytes() == array
    pictures = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "samples_png").iterdir())]
    assert np.array_equal(np.stack(pictures), samples_of(tmp_path)["arr_0"][..., 0])
    assert not (tmp_path / "parts").exists()
    sample(config_of(run, *asked, "files=[npz,png]"), tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    (tmp_path / "samples.npz").write_bytes(array[:200])
    shutil.rmtree(tmp_path / "samples_png")
    with pytest.raises(DataError, match=r"samples\.npz.*remove"):
        sample(config_of(run, *asked, "files=[png]"), tmp_path)


def test_latents_are_decoded_or_kept_as_they_are(run):
    loaded = load_run(run, "raw", "cpu")
    z = torch.linspace(-4, 4, 2 * 4 * 2 * 2).reshape(2, 4, 2, 2)
    decoded = replace(loaded, decode=lambda z: z[:, :3].repeat(1, 1, 8, 8) / 4)
    assert decoded.pixels
    assert _kept(decoded, z).shape == (2, 16, 16, 3)
    latents = replace(loaded, data=SimpleNamespace(space="latents", class_names=None))
    assert not latents.pixels
    assert torch.equal(_kept(latents, z), z.permute(0, 2, 3, 1))


def test_classes_are_chosen_and_checked():
    assert choose_classes(1000, None) == list(range(10))
    assert choose_classes(1000, None, count=5) == list(range(1000))
    assert choose_classes(3, None) == [0, 1, 2]
    assert choose_classes(10, [9, 0, 9]) == [9, 0, 9]
    assert choose_classes(0, None) is None
    for num_classes, asked in ((10, [10]), (10, [-1]), (10, []), (0, [0])):
        with pytest.raises(ConfigError, match="classes="):
            choose_classes(num_classes, asked)


def test_the_run_decides_unless_something_is_typed(run):
    own = read_config(run).sampler
    assert config_of(run).sampler == own
    assert config_of(run, "sampler.steps=7").sampler == {**own, "steps": 7}
    assert config_of(run, "sampler.interval=[100,900]").sampler.interval == [100, 900]
    assert config_of(run, "sampler=ddpm").sampler.steps == 250
    assert config_of(run, "sampler=ddpm", "sampler.steps=3").sampler.steps == 3
    assert config_of(run).experiment == "digits_gated"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab'\"\\ ,=[]{}+é"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(values)
def test_hydra_reads_back_what_is_written(value):
    (override,) = parse([f"++key={written(value)}"])
    assert _plain(override.value()) == value


def _plain(value):
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, str) else getattr(value, "text", value)


def test_runs_sort_by_their_numbers(tmp_path):
    for name in ("10", "9", "a/1", "a/0"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        (tmp_path / "sweep" / name / "config.yaml").write_text("{}")
    assert [p.name for p in find_runs(tmp_path / "sweep")] == ["9", "10"]
    assert find_runs(tmp_path / "sweep" / "9") == [tmp_path / "sweep" / "9"]
    assert [p.parent.name for p in find_runs(tmp_path)] == ["sweep", "sweep", "a", "a"]
    assert find_runs(tmp_path / "sweep" / "a" / "0") == [tmp_path / "sweep" / "a" / "0"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "which run"),
        (["run=missing"], "no such folder"),
        (["run=empty"], "holds no config.yaml"),
        (["run=parent"], "run=parent/job is the last one"),
        (["run=parent/job"], "no checkpoint in"),
        (["run=odd"], "cannot be read"),
        (["run=last"], "there is no trained run below"),
        (["run=a,b"], "one folder"),
        (["run=missing", "sampler=dpmm"], "no such folder"),
    ],
)
def test_a_run_that_cannot_be_used_is_refused(run, tmp_path, monkeypatch, args, message):
    for name in ("empty", "parent/job", "odd"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(run / "config.yaml", tmp_path / "parent" / "job")
    (tmp_path / "odd" / "config.yaml").write_text("a: [unclosed")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        inherit(args, groups=("sampler",))


def test_a_refusal_takes_one_line_and_no_torch(run, tmp_path):
    assert "no such folder" in refused_without_torch("sample", "run=missing", cwd=tmp_path)
    assert "Did you mean weights" in refused_without_torch("sample", f"run={run}", "wieghts=raw", cwd=tmp_path)
    assert "must be ema, raw, or ema-DECAY" in refused_without_torch(
        "sample", f"run={run}", "weights=mean", cwd=tmp_path
    )
    assert not (tmp_path / "outputs").exists()


def copy_of(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_damaged_checkpoint_is_passed_over(run, tmp_path):
    copy = copy_of(run, tmp_path)
    newest = copy / "checkpoints" / "step=000000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert load_run(copy, "ema", "cpu").step == 2
    for path in (copy / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="none of the 3 checkpoints"):  # last.ckpt is tried too
        load_run(copy, "ema", "cpu")


def test_checkpoints_of_something_else_are_refused(run, tmp_path):
    copy = copy_of(run, tmp_path)
    newest = copy / "checkpoints" / "step=000000004.ckpt"
    whole = load_tensors(run / "checkpoints" / "last.ckpt")
    save_tensors(newest, {k: v for k, v in whole.items() if k != "ema"})
    assert load_run(copy, "raw", "cpu").step == 4
    with pytest.raises(CheckpointError, match="pass weights=raw"):
        load_run(copy, "ema", "cpu")
    save_tensors(newest, {"global_step": 4, "weights": {}})
    with pytest.raises(CheckpointError, match="is not a checkpoint of"):
        load_run(copy, "raw", "cpu")
    config = OmegaConf.load(copy / "config.yaml")
    config.backbone.hidden_size = 64
    write_config(copy, config)
    save_tensors(newest, dict(whole))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_run(copy, "raw", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(run):
    with pytest.raises(ConfigError, match="accelerator=cpu"):
        load_run(run, "ema", "gpu")


def test_a_sampler_that_does_not_fit_is_a_mistake_of_the_user(run, tmp_path):
    loaded = load_run(run, "ema", "cpu")
    sampler = build.build(config_of(run, "sampler=dpm", "sampler.steps=1000").sampler, "sampler")
    with pytest.raises(ConfigError, match="at most 999"):
        loaded.draw(sampler, torch.zeros(1, dtype=torch.long), 1, 0, 1, lambda x: x)
    guided = build.build(config_of(run, "sampler.cfg_scale=2").sampler, "sampler")
    with pytest.raises(ConfigError, match="use cfg_scale=1"):
        loaded.draw(guided, None, 1, 0, 1, lambda x: x)
