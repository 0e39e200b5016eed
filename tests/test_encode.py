"""`python -m neural_rdm.encode`: the same shards whatever kills it, and however many processes share the work."""

from __future__ import annotations

import csv
import json
import signal
import sys
from pathlib import Path

import pytest

from neural_rdm.cli.app import main
from neural_rdm.core.errors import ConfigError, DataError, UserError
from neural_rdm.data import source as source_module
from neural_rdm.data.encoded import encoder
from neural_rdm.encode import complete, encode
from neural_rdm.latents.shards import Shard
from tests import processes
from tests.data.encoding import clip_tree, composed, image_tree, make, picture, stage
from tests.helpers import ROOT, shared
from tests.latents.test_first_stage import tiny_autoencoder


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def images(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = image_tree(tmp_path_factory.mktemp("images"))
    return ["data=image_folder", f"data.root={root}", "data.image_size=16", *stage(autoencoder), "shard_size=3"]


@pytest.fixture(scope="module")
def whole(images: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an encoding leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    make(folder, *images)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_manifest_says_what_was_made_and_how(whole: Path, autoencoder: Path) -> None:
    found = json.loads((whole / "manifest.json").read_text())
    assert found["splits"]["train"] | {"source": 0} == {
        "count": 10, "counts": [3, 3, 3, 1], "flipped": True, "bad": [], "source": 0,
    }  # fmt: skip
    assert (found["splits"]["val"]["count"], found["splits"]["val"]["flipped"]) == (4, False)
    assert (found["dtype"], found["shape"], found["class_names"]) == ("float16", [4, 8, 8], ["c0", "c1"])
    first_stage = found["first_stage"]
    assert (first_stage["kind"], first_stage["path"], len(first_stage["sha256"])) == (
        "AutoencoderKL",
        str(autoencoder),
        64,
    )
    assert (first_stage["scale"], first_stage["shift"], first_stage["downsample"]) == (0.5, 0.0, 2)
    assert found["data"]["image_size"] == 16
    assert "root" not in found["data"]
    read = [Shard(whole / "train" / f"{n:07d}.safetensors") for n in range(4)]
    assert [shard[i].index for shard in read for i in range(len(shard))] == list(range(10))
    assert [shard[i].y for shard in read for i in range(len(shard))] == [0] * 5 + [1] * 5


class Killed(BaseException):
    """Ends an encoding in this process as SIGKILL would another."""


def test_a_stopped_encoding_goes_on_to_the_same_bytes(
    images: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, written = encoder.write_shard, []

    def dying(path: Path, *rest: object) -> None:
        if len(written) == 2:
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.123.tmp").write_bytes(b"half of it")
            raise Killed
        written.append(path)
        original(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder, "write_shard", dying)
    for _ in range(2):
        written.clear()
        with pytest.raises(Killed):
            make(tmp_path, *images)
    assert len(content(tmp_path / "train")) > 4
    monkeypatch.setattr(encoder, "write_shard", original)
    make(tmp_path, *images)
    assert content(tmp_path) == content(whole)
    monkeypatch.setattr(encoder, "write_shard", dying)  # nothing is written again
    written[:] = [Path(), Path()]
    make(tmp_path, *images)


def test_a_real_kill_in_the_middle_of_a_shard(images: list[str], whole: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, neural_rdm.core.files as files; replace, seen = os.replace, []\n"
        "def dying(a, b):\n"
        "    seen.extend([b] * str(b).endswith('.safetensors'))\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if len(seen) == 3 else replace(a, b)\n"
        "os.replace = dying\n"
        "from tests.data.encoding import make; from pathlib import Path; make(Path(sys.argv[1]), *sys.argv[2:])"
    )
    done = processes.run([sys.executable, "-c", code, str(tmp_path), *images], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    names = [p.name for p in (tmp_path / "train").iterdir()]
    assert len([n for n in names if n.endswith(".safetensors")]) == 2
    assert len([n for n in names if n.endswith(".tmp")]) == 1
    make(tmp_path, *images)
    assert content(tmp_path) == content(whole)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_a_signal_to_the_parent_alone_ends_all_and_the_same_command_goes_on(
    number: signal.Signals, code: int, images: list[str], whole: Path, tmp_path: Path
) -> None:
    script = (
        "import os, sys; from pathlib import Path; from neural_rdm.data.encoded import encoder\n"
        "from neural_rdm.encode import encode; from tests.data.encoding import composed\n"
        "from neural_rdm.cli.stopping import Work, stoppable\n"
        "original = encoder.write_shard\n"
        "def sent(*rest):\n"
        f"    original(*rest); os.kill(os.getpid(), {int(number)})\n"
        "encoder.write_shard = sent\n"
        "folder = Path(sys.argv[1])\n"
        "with stoppable(Work('encode', folder)):\n"
        "    encode(composed('encode', *sys.argv[2:], 'data.num_workers=2'), folder)"
    )
    done = processes.run(
        [sys.executable, "-c", script, str(tmp_path), *images],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert f"stopped by {number.name}. Kept are the shards finished so far; the same command with" in done.stdout
    assert "Traceback" not in done.stderr
    make(tmp_path, *images)
    assert content(tmp_path) == content(whole)


def test_what_fails_before_it_begins_leaves_no_folder(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (f"first_stage.path={tmp_path / 'absent'}", f"hydra.run.dir={tmp_path / 'run'}")
    monkeypatch.setattr("sys.argv", ["encode", *images, *own])
    with pytest.raises(SystemExit) as ended:
        main("encode", encode, complete)
    assert ended.value.code == 2
    assert "cannot load the autoencoder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_only_the_files_that_are_used_are_compared(
    images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = source_module._files
    monkeypatch.setattr(source_module, "_files", lambda path: seen.append(path) or original(path))
    make(tmp_path, *images, "data.limit=2")
    assert [Path(path).name for path in seen] == ["0.png", "1.png", "v0.png", "v1.png"]


def test_raising_what_may_be_broken_goes_on_in_the_same_folder(images: list[str], tmp_path: Path) -> None:
    root = image_tree(tmp_path / "tree")
    for name in ("c0/1", "c1/0", "c1/2"):
        (root / "train" / f"{name}.png").write_bytes(b"")
    (root / "train" / "c2").mkdir()  # a class without pictures is left out by the listing
    (root / "train" / "c2" / "note.txt").touch()
    broken, out = [*images, f"data.root={root}"], tmp_path / "out"
    with pytest.raises(DataError, match=r"(?s)samples cannot be read.*Raise data.max_bad_fraction and give the same"):
        make(out, *broken, "data.max_bad_fraction=0.3")
    (out / "bad_samples.csv").unlink()  # what the shards say counts all the same
    with pytest.raises(DataError, match="repair them and encode into a new folder"):
        make(out, *broken, "data.max_bad_fraction=0.3")
    found = make(out, *broken, "data.max_bad_fraction=0.5")
    assert found["splits"]["train"]["bad"] == [1, 5, 7]
    rows = list(csv.DictReader((out / "bad_samples.csv").read_text().splitlines()))
    assert [row["index"] for row in rows] == ["", "1", "5", "7"]
    assert "c2" in rows[0]["path"]


def test_two_processes_write_what_one_does(
    images: list[str], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = composed("encode", "data.num_workers=0", *images)
    monkeypatch.setenv("RANK", "1")
    assert encode(cfg, tmp_path) == 0
    assert [p.name for p in sorted((tmp_path / "train").iterdir())] == ["0000001.safetensors", "0000003.safetensors"]
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.setenv("RANK", "0")
    assert encode(cfg, tmp_path) == 0
    assert content(tmp_path) == content(whole)


def test_loader_processes_change_nothing(images: list[str], whole: Path, tmp_path: Path) -> None:
    assert encode(composed("encode", *images, "data.num_workers=2"), tmp_path) == 0
    assert content(tmp_path) == content(whole)


def test_a_folder_of_other_latents_or_of_changed_files_is_refused(
    images: list[str], whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds latents of another request \(different: dtype\)"):
        make(whole, *images, "dtype=float32")
    root = image_tree(tmp_path / "tree")
    again = [*images, f"data.root={root}"]
    make(tmp_path / "out", *again)
    picture(root / "train" / "c0" / "0.png", seed=77)
    with pytest.raises(ConfigError, match=r"different: source"):
        make(tmp_path / "out", *again)


def test_broken_samples_are_left_out_listed_and_counted(images: list[str], tmp_path: Path) -> None:
    root = image_tree(tmp_path / "tree")
    (root / "train" / "c0" / "3.png").write_bytes(b"")
    (root / "val" / "c1" / "v0.png").write_bytes(b"no picture")
    broken = [*images, f"data.root={root}", "data.max_bad_fraction=0.5"]
    found = make(tmp_path / "out", *broken)["splits"]
    assert (found["train"]["count"], found["train"]["counts"], found["train"]["bad"]) == (9, [3, 2, 3, 1], [3])
    assert (found["val"]["count"], found["val"]["bad"]) == (3, [2])
    shard = Shard(tmp_path / "out" / "train" / "0000001.safetensors")
    assert [shard[i].index for i in range(len(shard))] == [4, 5]
    with (tmp_path / "out" / "bad_samples.csv").open(newline="") as file:
        rows = [(row["split"], row["index"], Path(row["path"]).name) for row in csv.DictReader(file)]
    assert rows == [("train", "3", "3.png"), ("val", "2", "v0.png")]
    (root / "train" / "c1" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 10 training samples cannot be read"):
        make(tmp_path / "other", *broken, "data.max_bad_fraction=0.1")
    assert not (tmp_path / "other" / "manifest.json").exists()


def test_broken_videos_are_left_out_too(autoencoder: Path, tmp_path: Path) -> None:
    root = clip_tree(tmp_path / "tree")
    (root / "train" / "a" / "2" / "1.png").write_bytes(b"")
    clips = ["data=sky", f"data.root={root}", "data.image_size=16", *stage(autoencoder), "data.max_bad_fraction=0.5"]
    found = make(tmp_path / "out", *clips)
    assert (found["rows"], found["shard_size"]) == ("every frame of every video", 16)
    assert len(found["splits"]["train"]["bad"]) == 1
    shard = Shard(tmp_path / "out" / "train" / "0000000.safetensors")
    assert [len(shard[i].moments) for i in range(len(shard))] == [9, 2]


def test_moments_that_a_dtype_cannot_hold_are_refused(images: list[str], tmp_path: Path) -> None:
    from diffusers import AutoencoderKL

    folder = next(o.partition("=")[2] for o in images if o.startswith("first_stage.path"))
    network = AutoencoderKL.from_pretrained(folder)
    network.quant_conv.weight.data *= 1e7
    network.save_pretrained(tmp_path / "loud")
    with pytest.raises(UserError, match=r"not finite in float16; pass dtype=bfloat16 or float32"):
        make(tmp_path / "out", *images, f"first_stage.path={tmp_path / 'loud'}")


def test_an_experiment_is_encoded_as_it_would_be_trained() -> None:
    typed = ["exp=dit_xl_gated", "data.root=/somewhere", "first_stage.path=/vae", "dtype=bfloat16", "hydra.run.dir=x"]
    cfg = composed("encode", *typed)
    trained = composed("train", *typed[:3])
    assert cfg.data == trained.data
    assert cfg.first_stage == trained.first_stage
    assert (cfg.condition, cfg.experiment, cfg.dtype) == (None, "dit_xl_gated", "bfloat16")
    texts = composed("encode", "exp=uvit_s_gated_coco", "data.root=/somewhere")
    assert texts.condition.keep_padding
    assert texts.data.source == "pixels"
    vq = composed("encode", "exp=ldm4_gated", "data.root=/somewhere")
    assert (vq.first_stage._target_.rpartition(".")[2], vq.first_stage.channels) == ("VQ", 3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "data and first_stage: encode what, with what"),
        (["data=sky"], "first_stage: encode what"),
        (["exp=digits_gated"], "no files of pictures"),
        (["data=sky", "first_stage=identity"], "nothing is encoded without a first stage"),
        (["data=sky", "first_stage=kl_f8", "data.source=latents"], "leave data.source out"),
        (["exp=digits_gated,dit_xl_gated"], "start the command once for each"),
        (["exp=dit_xl_gated", "data.rot=x"], "Did you mean data.root"),
        (["data=sky", "first_stage=kl_f8", "dtype=float"], "dtype=float is not one of float16"),
    ],
)
def test_what_cannot_be_encoded_is_refused_at_once(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        composed("encode", *overrides)
    assert complete(["data=sky", "first_stage=kl_f8"])[0] == "experiment='sky'"


def test_captions_need_data_that_have_them(images: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ImageFolder has no captions; leave condition out"):
        make(tmp_path, *images, "condition=minilm")


def test_real_images_are_encoded_in_their_order(autoencoder: Path, tmp_path: Path) -> None:
    root = shared("data/imagenet/sample1000_256")
    real = ["data=image_folder", f"data.root={root}", "data.image_size=32", "data.limit=20", *stage(autoencoder)]
    found = make(tmp_path, *real)
    assert (found["splits"]["train"]["count"], found["num_classes"]) == (20, 1000)
    shard = Shard(tmp_path / "train" / "0000000.safetensors")
    assert [shard[i].y for i in range(20)] == list(range(20))
